"""Example cases: the best, the median and the worst of one system, with images and every system's text."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image as Pillow

from unirg import prompts
from unirg.evaluation.candidates import System, reference
from unirg.evaluation.report import differences
from unirg.evaluation.report.differences import Piece
from unirg.evaluation.subgroups import ATTRIBUTES
from unirg.study import Study

KINDS = {"worst": "Worst", "disagreement": "Disputed", "median": "Median", "best": "Best"}
FILTERS = ("sex", "age", "race")
"""Attributes of a study that the cases can be narrowed to, as the paper's figure 4d has them."""
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
    findings: Sequence[Piece]
    impression: Sequence[Piece]
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
    levels: Sequence[str]
    """Subgroups that the study belongs to, such as "sex: female"."""
    worst: int
    """Place among the cases by the focus's score, from the worst; of 0 cases before it 0."""
    disagreement: int
    """Place by how far the policies' scores differ, from the farthest."""

    def numbers(self) -> dict[str, Any]:
        """The case without any text of a report."""
        scores = {text.author: dict(text.scores) for text in self.candidates}
        return {"study_id": self.study.study_id, "kind": self.kind, "split": self.split, "scores": scores}


def spread(rows: Sequence[Row], policies: Collection[str], metric: str) -> dict[str, float]:
    """study_id -> how far the policies' scores differ, where at least two have one."""
    known: dict[str, list[float]] = {}
    for row in rows:
        if row["system"] in policies and row[f"report_{metric}"] is not None:
            known.setdefault(row["study_id"], []).append(row[f"report_{metric}"])
    return {key: max(values) - min(values) for key, values in known.items() if len(values) > 1}


def choose(
    rows: Sequence[Row],
    system: str,
    metric: str,
    count: int,
    policies: Collection[str] = (),
    higher: bool = True,
) -> list[tuple[str, str, str]]:
    """(split, kind, study_id) of the system's worst, most disputed, median and best studies in each split.

    Ties go by study_id; a study is chosen once.

    Args:
        policies: between whose scores a dispute is.
        higher: whether more of the metric is better.
    """
    differ = spread(rows, policies, metric)
    sign = 1 if higher else -1
    chosen = []
    for split in sorted({row["split"] for row in rows}):
        mine = [row for row in rows if row["split"] == split and row["system"] == system]
        scored = {
            r["study_id"]: sign * r[f"report_{metric}"] for r in mine if r[f"report_{metric}"] is not None
        }
        ranked = sorted(scored, key=lambda key: (scored[key], key))
        disputed = sorted((key for key in ranked if differ.get(key)), key=lambda key: (-differ[key], key))
        ends = {*ranked[:count], *ranked[len(ranked) - count :]} if count else set()
        disputed = [key for key in disputed if key not in ends][:count]
        rest = [key for key in ranked if key not in disputed]
        middle = max(0, (len(rest) - count) // 2)
        parts = (ranked[:count], disputed, rest[middle : middle + count], ranked[::-1][:count])
        seen: set[str] = set()
        for kind, ids in zip(KINDS, parts, strict=True):
            chosen += [(split, kind, study_id) for study_id in ids if study_id not in seen]
            seen.update(ids)
    return chosen


def build(
    chosen: Sequence[tuple[str, str, str]],
    rows: Sequence[Row],
    find: Callable[[str], tuple[Study, Study | None]],
    systems: Sequence[System],
    pixels: int,
    shown: Sequence[str],
    metric: str,
    higher: bool = True,
) -> list[Case]:
    """The chosen cases with images, texts and the metrics `shown`; `systems` in the order to show.

    Args:
        find: study_id -> the study with its images, where there are any, and the patient's one before.
        metric: what the cases were chosen by; they sort by the first system's.
    """
    scores = {(row["system"], row["study_id"]): row for row in rows}
    ids = [study_id for _, _, study_id in chosen]
    policies = [system.name for system in systems if system.kind == "policy"]
    differ = spread([row for row in rows if row["study_id"] in set(ids)], policies, metric)
    own = {key: scores[systems[0].name, key][f"report_{metric}"] for key in ids}
    worst = sorted(ids, key=lambda key: own[key] if higher else -own[key])
    disputed = sorted(ids, key=lambda key: -differ.get(key, 0.0))
    cases = []
    for split, kind, study_id in chosen:
        study, prior = find(study_id)
        pictures = [_picture("Prior", prior, pixels), _picture("Current", study, pixels)]
        cases.append(
            Case(
                kind=kind,
                split=split,
                study=study,
                pictures=[picture for picture in pictures if picture],
                prior=_signed("Prior report", prior) if prior else None,
                reference=_reference(study, systems[0]),
                candidates=[_candidate(system, study, scores, shown) for system in systems],
                levels=[f"{name}: {level(study)}" for name, level in ATTRIBUTES.items() if name in FILTERS],
                worst=worst.index(study_id),
                disagreement=disputed.index(study_id),
            )
        )
    return cases


def _signed(author: str, study: Study) -> Text:
    return Text(author, _plain(study.findings), _plain(study.impression), {}, None)


def _plain(text: str | None) -> list[differences.Piece]:
    return [differences.Piece(text)] if text else []


def _reference(study: Study, system: System) -> Text:
    """The reference with what the first system leaves out."""
    said = system.texts["report"].get(study.study_id)
    if said is None:
        return _signed("Reference", study)
    findings, impression = (
        differences.reference(part or "", said) for part in (study.findings, study.impression)
    )
    return Text("Reference", findings, impression, {}, None)


def _candidate(
    system: System, study: Study, scores: Mapping[tuple[str, str], Row], shown: Sequence[str]
) -> Text:
    row = scores.get((system.name, study.study_id), {})
    found = {metric: row.get(f"report_{metric}") for metric in shown}
    kept = {metric: value for metric, value in found.items() if value is not None and math.isfinite(value)}
    written = system.texts["report"].get(study.study_id)
    findings, impression = prompts.split_sections(written or "")
    missing = system.reasons.get(study.study_id, "no candidate") if written is None else None
    expected = reference(study, "report")
    said = [differences.candidate(part or "", expected) for part in (findings, impression)]
    return Text(system.name, said[0], said[1], kept, missing)


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
