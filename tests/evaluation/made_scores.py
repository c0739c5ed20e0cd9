"""Scores as a test wants them: studies of a small archive, systems with chosen texts and values."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from unirg.evaluation import scores as scoring
from unirg.evaluation.candidates import SETTINGS, System, reference
from unirg.evaluation.scores import Scores
from unirg.study import Study


def study(number: int, corpus: str = "phantom", split: Any = "test", **fields: Any) -> Study:
    """Two studies a patient."""
    given: dict[str, Any] = {
        **{"corpus": corpus, "study_id": f"{corpus}-{split}-{number}", "patient_id": f"p{number // 2}"},
        **{"institution": "north", "split": split},
        **{"findings": f"Finding {number}.", "impression": f"Impression {number}."},
    }
    return Study(**given | fields)


def archive(number: int, **fields: Any) -> list[Study]:
    return [study(each, **fields) for each in range(number)]


def made(
    studies: Sequence[Study],
    systems: Mapping[str, Mapping[str, Any]],
    texts: Mapping[str, Mapping[str, str]] | None = None,
    kinds: Mapping[str, Any] | None = None,
    **more: Mapping[str, Any],
) -> Scores:
    """Scores: system -> metric -> a number or a column, the same in both settings.

    Args:
        texts: system -> study_id -> candidate; the reference where a system is not named.
        kinds: system -> "policy" or "baseline".
        more: system -> further fields of `System`.
    """
    known = []
    for name in systems:
        own = {each.study_id: reference(each, "report") for each in studies}
        said = (texts or {}).get(name, own)
        known.append(
            System(
                name,
                (kinds or {}).get(name, "policy"),
                {setting: said for setting in SETTINGS},
                {},
                "",
                **more.get(name.replace("-", "_"), {}),
            )
        )
    metrics = list(dict.fromkeys(metric for columns in systems.values() for metric in columns))
    plain = [name for name in metrics if name in scoring.CATALOG]
    found = Scores(
        list(studies),
        known,
        scoring.metrics(plain, {}),
        {setting: [reference(each, setting) for each in studies] for setting in SETTINGS},
    )
    for name, columns in systems.items():
        for setting in SETTINGS:
            for metric in {**found.metrics, **dict.fromkeys(metrics)}:
                value = np.broadcast_to(columns.get(metric, np.nan), len(studies)).astype(float)
                found.values[name, setting, metric] = value
    return found


def group(result: Mapping[str, Any], **wanted: Any) -> dict[str, Any]:
    """The one group that is wanted, by default all of a test set's reports."""
    json.dumps(result, allow_nan=False)
    wanted = {"corpus": "phantom", "split": "test", "setting": "report"} | wanted
    (found,) = [each for each in result["groups"] if all(each[key] == want for key, want in wanted.items())]
    return dict(found)


def alarms(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(alarm, system) of each; and every alarm is as the report reads it."""
    for each in result["alarms"]:
        assert list(each) == ["suite", "alarm", "system", "value", "limit", "sentence"]
        assert each["suite"] == result["suite"]
        assert each["sentence"].endswith(".")
    return [(each["alarm"], each["system"]) for each in result["alarms"]]
