"""The stage `report`: an evaluation -> one self-contained HTML file, and a JSON with every number in it.

The file opens from disk and inside KFP's artifact viewer: no script, nothing loaded from elsewhere, a policy
that forbids both. What reports say is data: escaped, and direction marks made visible.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pyarrow.parquet as pq
from pydantic import Field

from unirg import artifact, telemetry
from unirg.artifact import Artifact
from unirg.cohort.reader import Cohort
from unirg.config import Config
from unirg.errors import UserError
from unirg.evaluation import aggregates, candidates
from unirg.evaluation.report import cards, cases, page
from unirg.evaluation.report.shown import without_addresses

VERSION = 5
STAGE = "report"
HTML = "report.html"
MARKDOWN = "report.md"
NUMBERS = "report.json"
SUITES = "suites.json"
HOW = "Evaluate again with `unirg evaluate`."


class ReportConfig(Config):
    """What the report shows."""

    title: str = "Radiology report generation: evaluation"
    """Heading of the page."""
    focus: str | None = None
    """System whose best, median and worst cases are shown; None: the last policy of the evaluation."""
    cases: int = Field(default=2, ge=0, le=50)
    """Examples of each kind (best, median, worst) in each split."""
    image_pixels: int = Field(default=320, ge=64, le=1024)
    """Longest side of an example's radiograph."""


@telemetry.verb("report")
def report(
    config: ReportConfig,
    evaluation: Artifact,
    cohort: Artifact,
    predictions: Mapping[str, Artifact],
    checkpoints: Mapping[str, Artifact],
    store: str,
) -> Artifact:
    """Render an evaluation.

    Args:
        predictions: those that the evaluation was made of, for the texts of the example cases.
        checkpoints: system's name -> checkpoint, for the training curves.

    Raises:
        UserError: cohort or predictions are not those of the evaluation, or `focus` names no policy of it.
    """
    _check(evaluation, cohort, predictions)
    inputs: dict[str, Artifact | str] = {"evaluation": evaluation, "cohort": cohort}
    inputs |= {f"predictions:{name}": found for name, found in predictions.items()}
    inputs |= {f"checkpoint:{name}": found for name, found in checkpoints.items()}
    with artifact.draft(store, STAGE, VERSION, config, inputs) as draft:
        if draft.committed:
            return draft.committed
        data = aggregates.read(evaluation)
        opened = Cohort.open(cohort)
        chosen = _cases(config, data, evaluation, opened, predictions)
        provenance = _provenance(inputs)
        numbers = data | {
            "suites": suites(evaluation),
            "cards": cards.cards(evaluation, opened, predictions, checkpoints, _policies(data)),
            "cases": [case.numbers() for case in chosen],
            "provenance": provenance,
        }
        made = page.render(config.title, numbers, chosen)
        (draft.out / HTML).write_text(made.html, encoding="utf-8")
        (draft.out / MARKDOWN).write_text(made.markdown, encoding="utf-8")
        (draft.out / NUMBERS).write_text(json.dumps(numbers, sort_keys=True, allow_nan=False))
        return draft.commit({"cases": len(chosen), "systems": len(data["systems"])})


def _check(evaluation: Artifact, cohort: Artifact, predictions: Mapping[str, Artifact]) -> None:
    used = {name: reference.digest for name, reference in evaluation.manifest.inputs.items()}
    given = {"cohort": cohort.digest} | {f"predictions:{name}": p.digest for name, p in predictions.items()}
    for name in sorted(given.keys() | (used.keys() - {"judge", "metrics", "weights"})):
        if used.get(name) != given.get(name):
            raise UserError(
                f"{name} is not what evaluation {evaluation.uri} was made of: give the same inputs"
            )


def suites(evaluation: Artifact) -> dict[str, Any]:
    """What the suites found; of an evaluation that ran none, that none ran."""
    if not any(entry == SUITES for entry in evaluation.manifest.files):
        return {"not_run": [{"suite": "every suite", "why": "the evaluation holds none", "how": HOW}]}
    return dict(without_addresses(json.loads(evaluation.path(SUITES).read_bytes())))


def _cases(
    config: ReportConfig,
    data: Mapping[str, Any],
    evaluation: Artifact,
    cohort: Cohort,
    predictions: Mapping[str, Artifact],
) -> list[cases.Case]:
    """Example cases of the system in focus, which comes first among the candidates."""
    policies = _policies(data)
    if config.focus is not None and config.focus not in policies:
        raise UserError(f"focus = {config.focus} is no policy of the evaluation: {', '.join(policies)}")
    if not policies:
        return []
    focus = config.focus or policies[-1]
    rows = pq.read_table(evaluation.path("scores.parquet")).to_pylist()
    lead = page.lead(data)
    higher = bool(data["metrics"][lead]["higher_is_better"])
    chosen = cases.choose(rows, focus, lead, config.cases, policies, higher)
    studies = candidates.attempted(predictions, cohort)
    systems = {name: candidates.policy(name, predictions[name], studies) for name in policies}
    systems |= {system.name: system for system in candidates.baselines(cohort, studies)}
    order = [focus, *(system["name"] for system in data["systems"] if system["name"] != focus)]
    shown = aggregates.shown_first(data["metrics"])
    ordered = [systems[name] for name in order]
    return cases.build(chosen, rows, cohort, ordered, config.image_pixels, shown, lead, higher)


def _policies(data: Mapping[str, Any]) -> list[str]:
    return [system["name"] for system in data["systems"] if system["kind"] == "policy"]


def _provenance(inputs: Mapping[str, Artifact | str]) -> list[dict[str, Any]]:
    """What the report rests on, by digest; the settings are the recipe."""
    return [
        {
            "input": name,
            "stage": made.manifest.stage,
            "version": made.manifest.version,
            "digest": made.digest,
            "action_key": made.manifest.action_key,
            "counts": made.manifest.counts,
            "settings": _settings(made.manifest.config),
            "software": made.manifest.software,
        }
        for name, made in sorted(inputs.items())  # a pipeline may hand them over in any order
        if isinstance(made, Artifact)
    ]


def _settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration without addresses: they say where, not what, and may name an institution's folders."""
    kept: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            kept[name] = _settings(value)
        elif name == "data":  # where a corpus lies
            continue
        elif not (isinstance(value, str) and ("://" in value or value.startswith(("/", "~")))):
            kept[name] = value
    return kept
