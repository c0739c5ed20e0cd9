"""Predictions as ReXrank takes them: its test file once more, with `model_prediction` in each study.

Each study also says what a prediction is for, under `notice`, which ReXrank does not read. A study that has
no prediction has an empty one. The predictions lie on disk meanwhile, so memory does not depend on how many
there are.
"""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from unirg import artifact, prompts, storage
from unirg.artifact import Artifact
from unirg.cohort.corpora import jsonstream
from unirg.cohort.reader import METADATA, VIEWS, Cohort
from unirg.errors import UserError
from unirg.scoring import predictions
from unirg.scoring.archive import NOTICE
from unirg.study import Study

PREDICTION = "model_prediction"
# Numbers and NaN as the file has them: they are written down again.
_VERBATIM = json.JSONDecoder(strict=False)
_VIEWS = {"frontal": "Frontal", "lateral": "Lateral"}

Record = dict[str, Any]


def write(scored: Artifact, target: Path, source: str = "") -> dict[str, int]:
    """Write the submission; how many reports it has, and how many studies without one.

    Args:
        source: the test file; empty: the one that was scored, or what the cohort has.

    Raises:
        UserError: the source is missing, or not the file that was scored.
    """
    source = source or _scored_file(scored)
    counts = Counter[str]({"reports": 0, "without": 0})
    with closing(_Said(scored)) as said, target.open("w", encoding="ascii", newline="\n") as file:
        file.write("{")
        for key, record in _of_file(source) if source else _of_cohort(scored):
            asked, again, text = said.of(key)
            if again or not isinstance(record, dict):
                counts["left out"] += 1
            elif asked or source:  # of a cohort, only what was asked about
                file.write(",\n" if counts["reports"] + counts["without"] else "\n")
                whole = record | {PREDICTION: text, "notice": NOTICE}
                file.write(f"    {json.dumps(key)}: {json.dumps(whole)}")
                counts["reports" if text else "without"] += 1
        file.write("\n}\n")
        left, such_as = said.left()
    if left:
        raise UserError(
            f"{left} predictions are of studies that {source or 'the cohort'} lacks, such as {such_as}: "
            "name the file that was scored with --source"
        )
    return dict(counts)


class _Said:
    """The predictions by study id."""

    def __init__(self, scored: Artifact) -> None:
        # A database without a name is on disk, this connection's alone, and gone with it whatever ends it.
        self._table = sqlite3.connect("")
        self._table.execute("CREATE TABLE said (id TEXT PRIMARY KEY, text TEXT, met INTEGER) WITHOUT ROWID")
        for batch in predictions.batches(scored, ["study_id", "text"]):
            self._add((row["study_id"], row["text"]) for row in batch)
        for batch in predictions.failures(scored):
            self._add((row["study_id"], None) for row in batch)

    def _add(self, rows: Iterator[tuple[str, str | None]]) -> None:
        self._table.executemany("INSERT INTO said VALUES (?, ?, 0)", rows)

    def of(self, study_id: str) -> tuple[bool, bool, str]:
        """(it was asked about, its id was here before, its text or an empty one)."""
        found = self._table.execute("SELECT text, met FROM said WHERE id = ?", [study_id]).fetchone()
        self._table.execute(
            "INSERT INTO said VALUES (?, NULL, 2) ON CONFLICT DO UPDATE SET met = max(met, 1)", [study_id]
        )
        text, met = found or (None, 0)
        return found is not None and met < 2, met > 0, text or ""

    def left(self) -> tuple[int, str]:
        """How many predictions no study was met for, and the first one's study."""
        asked = "SELECT count(*), min(id) FROM said WHERE met = 0 AND text IS NOT NULL"
        number, first = self._table.execute(asked).fetchone()
        return number, first or ""

    def close(self) -> None:
        self._table.close()


def _scored_file(scored: Artifact) -> str:
    """ReXrank's file that was scored; empty where the archive was something else."""
    cohort = _cohort(scored)
    if cohort.manifest.config.get("corpus") != "rexrank":
        return ""
    source = str(cohort.manifest.config["data"])
    with storage.explained(source):
        fs, path = storage.open_fs(source)
        if not fs.exists(path):
            raise UserError(f"{source}, which was scored, is not there: say where it is with --source")
    return source


def _cohort(scored: Artifact) -> Artifact:
    return artifact.open_artifact(scored.manifest.inputs["cohort"].uri or "", "cohort")


def _of_file(source: str) -> Iterator[tuple[str, Record | jsonstream.Unreadable]]:
    folder, slash, file = source.rpartition("/")
    try:
        yield from jsonstream.records(folder or slash or ".", file, source, _VERBATIM)
    except FileNotFoundError:
        raise UserError(f"{source}: no such file; correct --source") from None


def _of_cohort(scored: Artifact) -> Iterator[tuple[str, Record]]:
    """The studies of the splits that were scored, in ReXrank's form."""
    cohort = Cohort.open(_cohort(scored))
    splits = scored.manifest.config.get("splits", ())
    for shard in cohort.index.shards:
        if shard.split in splits:  # type: ignore[operator]
            with pq.ParquetFile(cohort.shard_path(shard), memory_map=True) as file:
                table = file.read(columns=METADATA + VIEWS)
            for row in table.to_pylist():
                study = Study.checked(**row)
                yield study.study_id, _record(study)
            cohort.forget(shard)


def _record(study: Study) -> Record:
    key = study.key_image
    told = [("Indication", study.indication), ("Comparison", study.comparison)]
    return {
        "key_image_path": key.uri if key else None,
        "image_path": [image.uri for image in study.images],
        "frontal_lateral": [_VIEWS.get(image.view) for image in study.images],
        "context": " ".join(f"{name}: {text}" for name, text in told if text),
        "report": prompts.report(study),
        "section_findings": study.findings,
        "section_impression": study.impression,
        "split": "test",
    }
