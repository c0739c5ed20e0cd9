"""Example cases: the best, the median and the worst of one system, with images and every system's text."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image as Pillow

from unirg import prompts
from unirg.cohort.reader import Cohort
from unirg.evaluation.candidates import System
from unirg.study import Study

KINDS = ("worst", "median", "best")
Row = Mapping[str, Any]
"""A row of scores.parquet."""


@dataclass(frozen=True)
class Picture:
    """A radiograph as it stands in the page."""

    caption: str
    uri: str
    """`data:` URI of a JPEG."""


@dataclass(frozen=True)
class Text:
    """One report of a case."""

    author: str
    findings: str | None
    impression: str | None
    scores: Mapping[str, float]
    missing: str | None
    """Why there is no text."""


@dataclass(frozen=True)
class Case:
    """One study with its reference and its candidates, the system it was chosen by first."""

    kind: str
    split: str
    study: Study
    pictures: Sequence[Picture]
    prior: Text | None
    reference: Text
    candidates: Sequence[Text]

    def numbers(self) -> dict[str, Any]:
        """The case without any text of a report."""
        scores = {text.author: dict(text.scores) for text in self.candidates}
        return {"study_id": self.study.study_id, "kind": self.kind, "split": self.split, "scores": scores}


def choose(rows: Sequence[Row], system: str, metric: str, count: int) -> list[tuple[str, str, str]]:
    """(split, kind, study_id) of the system's best, median and worst studies in each split.

    Ties go by study_id; a study is chosen once.
    """
    chosen = []
    for split in sorted({row["split"] for row in rows}):
        mine = [row for row in rows if row["split"] == split and row["system"] == system]
        scored = [row for row in mine if row[f"report_{metric}"] is not None]
        ranked = [r["study_id"] for r in sorted(scored, key=lambda r: (r[f"report_{metric}"], r["study_id"]))]
        middle = max(0, (len(ranked) - count) // 2)
        parts = (ranked[:count], ranked[middle : middle + count], ranked[::-1][:count])
        seen: set[str] = set()
        for kind, ids in zip(KINDS, parts, strict=True):
            chosen += [(split, kind, study_id) for study_id in ids if study_id not in seen]
            seen.update(ids)
    return chosen


def build(
    chosen: Sequence[tuple[str, str, str]],
    rows: Sequence[Row],
    cohort: Cohort,
    systems: Sequence[System],
    pixels: int,
    shown: Sequence[str],
) -> list[Case]:
    """The chosen cases with images, texts and the metrics `shown`; `systems` in the order to show."""
    scores = {(row["system"], row["study_id"]): row for row in rows}
    cases = []
    for split, kind, study_id in chosen:
        study = cohort.with_images(study_id)
        prior = cohort.prior(study)
        pictures = [_picture("Prior", prior, pixels), _picture("Current", study, pixels)]
        cases.append(
            Case(
                kind=kind,
                split=split,
                study=study,
                pictures=[picture for picture in pictures if picture],
                prior=_signed("Prior report", prior) if prior else None,
                reference=_signed("Reference", study),
                candidates=[_candidate(system, study, scores, shown) for system in systems],
            )
        )
    return cases


def _signed(author: str, study: Study) -> Text:
    return Text(author, study.findings, study.impression, {}, None)


def _candidate(
    system: System, study: Study, scores: Mapping[tuple[str, str], Row], shown: Sequence[str]
) -> Text:
    row = scores.get((system.name, study.study_id), {})
    found = {metric: row.get(f"report_{metric}") for metric in shown}
    kept = {metric: value for metric, value in found.items() if value is not None and math.isfinite(value)}
    written = system.texts["report"].get(study.study_id)
    findings, impression = prompts.split_sections(written or "")
    missing = system.reasons.get(study.study_id, "no candidate") if written is None else None
    return Text(system.name, findings, impression, kept, missing)


def _picture(caption: str, study: Study | None, pixels: int) -> Picture | None:
    image = study.key_image if study else None
    if image is None or image.data is None:
        return None
    with Pillow.open(io.BytesIO(image.data)) as opened:
        small = opened.convert("L")
        small.thumbnail((pixels, pixels), Pillow.Resampling.LANCZOS)
    out = io.BytesIO()
    small.save(out, "JPEG", quality=82, optimize=True)
    return Picture(caption, "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode())
