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
from unirg.evaluation import aggregates
from unirg.evaluation.evaluate import Predictions, compared, sources
from unirg.evaluation.report import cards, cases, page
from unirg.study import Study

VERSION = 7
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
    cohort: Artifact | None,
    predictions: Predictions,
    checkpoints: Mapping[str, Artifact],
    store: str,
    references: str = "",
) -> Artifact:
    """Render an evaluation, given what it was made of.

    Args:
        cohort: None where the evaluation had none: then the cases are texts alone, without images or priors.
        predictions: for the texts of the example cases.
        checkpoints: system's name -> checkpoint, for the training curves.
        references: the file that had the references, where there was one.

    Raises:
        UserError: something given is not what the evaluation was made of, or is missing, or `focus` names no
            policy of it.
    """
    inputs = sources(cohort, predictions, checkpoints, references)
    _check(evaluation, inputs)
    inputs |= {f"checkpoint:{name}": found for name, found in checkpoints.items()}
    inputs["evaluation"] = evaluation
    with artifact.draft(store, STAGE, VERSION, config, inputs) as draft:
        if draft.committed:
            return draft.committed
        data = aggregates.read(evaluation)
        opened = Cohort.open(cohort) if cohort else None
        chosen = _cases(config, data, evaluation, opened, predictions, references)
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


def _check(evaluation: Artifact, inputs: Mapping[str, Artifact | str]) -> None:
    """Refuse other cohorts, predictions, references and checkpoints than the evaluation's; where it knows no
    checkpoint of one of its systems, one may be given."""
    used = {name: reference.digest for name, reference in evaluation.manifest.inputs.items()}
    given = {name: made.digest if isinstance(made, Artifact) else made for name, made in inputs.items()}
    shown = {name for name in used if name in ("cohort", "references") or name.startswith("predictions:")}
    added = {name for name in given.keys() - used.keys() if name.startswith("checkpoint:")}
    for name in sorted(added):
        if name.replace("checkpoint:", "predictions:", 1) not in used:
            raise UserError(f"{name} is of no system of evaluation {evaluation.uri}: leave it out")
    for name in sorted(shown | given.keys() - added):
        if used.get(name) != given.get(name):
            raise UserError(
                f"{name} is not what evaluation {evaluation.uri} was made of: give the same inputs"
            )


def suites(evaluation: Artifact) -> dict[str, Any]:
    """What the suites found; of an evaluation that ran none, that none ran."""
    if not any(entry == SUITES for entry in evaluation.manifest.files):
        return {"not_run": [{"suite": "every suite", "why": "the evaluation holds none", "how": HOW}]}
    return dict(json.loads(evaluation.path(SUITES).read_bytes()))


def _cases(
    config: ReportConfig,
    data: Mapping[str, Any],
    evaluation: Artifact,
    cohort: Cohort | None,
    predictions: Predictions,
    references: str,
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
    corpus = str(evaluation.manifest.config.get("corpus", ""))
    studies, systems, _ = compared(policies, cohort, predictions, references, corpus)
    known = {study.study_id: study for study in studies}

    def find(study_id: str) -> tuple[Study, Study | None]:
        if cohort is None:
            return known[study_id], None
        study = cohort.with_images(study_id)
        return study, cohort.prior(study)

    ordered = sorted(systems, key=lambda system: system.name != focus)
    shown = aggregates.shown_first(data["metrics"])
    return cases.build(chosen, rows, find, ordered, config.image_pixels, shown, lead, higher)


def _policies(data: Mapping[str, Any]) -> list[str]:
    return [system["name"] for system in data["systems"] if system["kind"] == "policy"]


def _provenance(inputs: Mapping[str, Artifact | str]) -> list[dict[str, Any]]:
    """What the report rests on, by digest; the settings are the recipe. A file has its digest alone."""
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
        if isinstance(made, Artifact)
        else {
            **{"input": name, "stage": "file", "version": None, "digest": made, "action_key": ""},
            **{"counts": {}, "settings": {}, "software": {}},
        }
        for name, made in sorted(inputs.items())  # a pipeline may hand them over in any order
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
