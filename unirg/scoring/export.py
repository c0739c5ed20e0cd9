"""Hand predictions on: as ReXrank's submission, FHIR reports, or DICOM structured reports.

One artifact and one form give the same bytes whenever they are written: ids are hashes, and the time is the
one at which the last prediction was there. An output appears whole or not at all. Each report says that it is
preliminary (where its form can), which model wrote it, and what it is for (`archive.NOTICE`).
"""

from __future__ import annotations

import filecmp
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, get_args

from unirg import prompts, storage, telemetry
from unirg.artifact import Artifact
from unirg.errors import UserError
from unirg.scoring import predictions
from unirg.scoring.archive import MODEL, NOTICE
from unirg.storage import sha256

Form = Literal["rexrank", "fhir", "sr"]
FORMS = get_args(Form)
ABOUT = "export.json"
"""In a folder that is an export: which one. No other folder is ever replaced."""
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


@dataclass(frozen=True)
class Author:
    """The model, as the artifact knows it."""

    name: str
    digest: str
    basis: str
    """What the digest rests on."""
    finished: datetime
    """When the last prediction was there."""


@dataclass(frozen=True)
class Report:
    """One prediction as the forms need it."""

    corpus: str
    study_id: str
    patient_id: str
    text: str
    complete: bool
    """Whether the model ended it itself; else it was cut off at the most tokens allowed."""
    key: str
    """Hash over what makes it this prediction: study, model, what was asked."""

    @classmethod
    def of(cls, row: dict[str, Any]) -> Report:
        parts = (row["corpus"], row["study_id"], row["model_digest"], row["prompt_digest"])
        return cls(
            row["corpus"],
            row["study_id"],
            row["patient_id"],
            plain(row["text"]),
            row["finish_reason"] != "length",
            sha256("\0".join(parts).encode()),
        )

    @property
    def sections(self) -> dict[str, str]:
        """Its texts by `findings` and `impression`; one that has no headings is all findings."""
        named = zip(("findings", "impression"), prompts.split_sections(self.text), strict=True)
        return {name: text for name, text in named if text} or {"findings": self.text}


def plain(text: str) -> str:
    """What any form may hold: control characters, which FHIR and DICOM forbid, are marked as unreadable."""
    return _CONTROL.sub("\ufffd", text)


@telemetry.verb("export")
def export(
    scored: Artifact, form: str, output: str, source: str = "", overwrite: bool = False
) -> dict[str, int]:
    """Write an artifact's predictions in a form.

    Args:
        output: a file to make (rexrank: JSON, fhir: NDJSON), or a folder (sr).
        source: rexrank: the test file that the submission repeats; empty: the one that was scored, or where
            it was another archive, what the cohort has.
        overwrite: put it in place of another export.

    Returns:
        How many reports were written, how many studies have none, and whatever else there is to know.

    Raises:
        UserError: there is no such form, or the output is there already and differs.
    """
    if form not in FORMS:
        raise UserError(f"no form is called {form}: choose one of {', '.join(FORMS)}")
    if source and form != "rexrank":
        raise UserError(f"a source is for the form rexrank; {form} needs none: leave it out")
    target = storage.local_path(output)
    if not target.parent.is_dir():
        raise UserError(f"{target.parent} is no folder: make it, or correct --output")
    if form == "rexrank":
        from unirg.scoring import export_rexrank

        with _placed(target, overwrite) as aside:
            return export_rexrank.write(scored, aside, source)
    author = _author(scored)
    try:
        if form == "fhir":
            from unirg.scoring import export_fhir

            with _placed(target, overwrite) as aside:
                return _counted(scored, export_fhir.write(_reports(scored), author, scored.digest, aside))
        from unirg.scoring import export_sr

        with _placed(target, overwrite) as aside:
            aside.mkdir()
            written = export_sr.write(_reports(scored), author, aside)
            about = {"predictions": scored.digest, "reports": written, "notice": NOTICE}
            (aside / ABOUT).write_text(json.dumps(about, indent=1))
            return _counted(scored, written)
    except ImportError as missing:
        raise UserError(f"{missing.name} is not installed: pip install 'unirg[export]'") from None


def _reports(scored: Artifact) -> Iterator[Report]:
    for batch in predictions.batches(scored):
        yield from map(Report.of, batch)


def _counted(scored: Artifact, written: int) -> dict[str, int]:
    return {"reports": written, "without": sum(map(len, predictions.failures(scored)))}


def _author(scored: Artifact) -> Author:
    if MODEL not in scored.manifest.logs:
        raise UserError(f"{scored.uri} does not say who wrote it: score it again with this version")
    told = json.loads(scored.path(MODEL).read_bytes())
    finished = datetime.fromisoformat(told["finished_at"])
    name = " ".join(plain(told["name"]).split())  # whatever a user calls a model
    return Author(name, told["digest"], told["basis"], finished)


@contextmanager
def _placed(target: Path, overwrite: bool) -> Iterator[Path]:
    """A path to write, which is put into its place when all of it is there.

    Raises:
        UserError: something else is there.
    """
    aside = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        with storage.explained(str(target)):
            yield aside
            _settle(aside, target, overwrite)
    finally:
        if aside.is_dir():
            shutil.rmtree(aside)
        aside.unlink(missing_ok=True)


def _settle(aside: Path, target: Path, overwrite: bool) -> None:
    for path in aside.rglob("*") if aside.is_dir() else [aside]:
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    if aside.is_dir():
        _settle_folder(aside, target, overwrite)
        return
    try:
        os.link(aside, target)  # unlike a rename it never replaces what another process has just put there
    except FileExistsError:
        if target.is_file() and filecmp.cmp(aside, target, shallow=False):
            return
        if not overwrite or not target.is_file():
            raise UserError(f"{target} is there and holds something else: {_REMEDY}") from None
        aside.replace(target)


def _settle_folder(aside: Path, target: Path, overwrite: bool) -> None:
    if not target.exists():
        aside.rename(target)  # of two that come at once the second fails, as the first one's is not empty
        return
    if target.is_dir() and _same(aside, target):
        return
    # Never a folder that an export did not make: it may be somebody's home.
    if not overwrite or not (target / ABOUT).is_file():
        raise UserError(f"{target} is there and holds something else: {_REMEDY}")
    old = target.with_name(f"{aside.name}.old")
    target.rename(old)
    aside.rename(target)
    shutil.rmtree(old)


_REMEDY = "name another output, or give --overwrite where it is an export that may go"


def _same(one: Path, other: Path) -> bool:
    """Whether two folders hold the same files with the same bytes."""
    names = [{path.relative_to(root) for path in root.rglob("*") if path.is_file()} for root in (one, other)]
    return names[0] == names[1] and all(
        filecmp.cmp(one / name, other / name, shallow=False) for name in names[0]
    )
