"""A checkpoint as a folder that a hub takes and transformers loads: the model directory and its cards.

    README.md                  the model card
    DATA_CARD.md               of the last cohort that it learned from; DATA_CARD_<digest>.md of earlier ones
    unirg_export.json          the checkpoint's digest, and the SHA-256 of every file
    config.json, model.safetensors, tokenizer and processor files

On `file:` the folder is written aside and renamed into place. On `s3:` `unirg_export.json` is put first, if
none is there: so of two exports one has the place; `config.json` and then the README come last, and without
them nothing loads it. The same export again finds it done, or goes on where it was killed.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from unirg import checkpoint, storage, telemetry
from unirg.artifact import UPLOADS, Artifact, ArtifactError
from unirg.errors import UserError
from unirg.evaluation.evaluate import STAGE, VERSION
from unirg.lifecycle import card_stages, gate
from unirg.lifecycle.card_results import systems_of
from unirg.lifecycle.cards import UNKNOWN_LICENCE, data_card, model_card, trained_on
from unirg.lifecycle.lineage import artifacts
from unirg.lifecycle.provenance import ancestors

README, DATA_CARD, ABOUT = "README.md", "DATA_CARD.md", "unirg_export.json"
LAST = ("config.json", README)
"""Files that are written last, in this order."""


@dataclass(frozen=True)
class Measured:
    """What was found of a checkpoint's quality."""

    evaluation: Artifact | None = None
    verdict: Artifact | None = None


def measured(made: Artifact, store: str) -> Measured:
    """The newest evaluation and verdict of a store that name a checkpoint.

    Raises:
        ArtifactError: an artifact of the store cannot be read.
    """
    # One of another version may lack what a card reads; named, it is refused, and here it is passed over.
    evaluations = [each for each in artifacts(store, STAGE) if each.manifest.version == VERSION]
    evaluations = [each for each in evaluations if systems_of(each, made)]
    verdicts = [
        each
        for each in artifacts(store, gate.STAGE)
        if gate.read(each)["challenger"]["digest"] == made.digest
    ]
    return Measured(_newest(evaluations), _newest(verdicts))


def _newest(found: list[Artifact]) -> Artifact | None:
    # A manifest has no time, as time is no part of what an artifact is; its file has one.
    return max(found, key=lambda each: (_committed(each), each.uri), default=None)


def _committed(made: Artifact) -> float:
    uri = storage.join(made.uri, "manifest.json")
    fs, path = storage.open_fs(uri)
    with storage.explained(uri):
        return float(fs.modified(path).timestamp())


@telemetry.verb("export.model")
def export_model(
    made: Artifact, output: str, store: str, found: Measured, licence: str = UNKNOWN_LICENCE
) -> list[str]:
    """Write a checkpoint with its cards; the names of the files.

    Args:
        output: a folder that is not there or empty, or an `s3://` prefix with nothing below it.
        store: whose lineage and withdrawals count.

    Raises:
        UserError: something else is at the output, or `found` is of another checkpoint.
        ArtifactError: an artifact is missing or damaged.
    """
    target = storage.absolute(output)
    if not storage.is_local(target) and not target.startswith("s3://"):
        raise UserError(f"--output {output}: name a folder or an s3:// prefix")
    files = {
        name.removeprefix(f"{checkpoint.MODEL}/"): made.path(name)
        for name in made.manifest.files
        if name.startswith(f"{checkpoint.MODEL}/")
    }
    if not files:
        raise ArtifactError(f"{made.uri} has no model directory: name a checkpoint")
    with tempfile.TemporaryDirectory() as folder:
        texts = {README: model_card(made, store, found.evaluation, found.verdict, licence)}
        texts |= _data_cards(made, store)
        for name, text in texts.items():
            files[name] = Path(folder, name)
            files[name].write_text(text, encoding="utf-8")
        digests = {name: storage.sha256_file(path) for name, path in sorted(files.items())}
        about = json.dumps({"checkpoint": made.digest, "files": digests}, indent=1).encode()
        if storage.is_local(target):
            _to_folder(files, about, storage.local_path(target))
        else:
            _to_bucket(files, about, target)
    return sorted([*files, ABOUT])


def _data_cards(made: Artifact, store: str) -> Iterator[tuple[str, str]]:
    behind = ancestors(store, made.uri)
    cohorts = trained_on(card_stages.stages(made, behind.artifacts), behind)
    for number, (digest, cohort) in enumerate(cohorts.items()):
        yield f"DATA_CARD_{digest[:12]}.md" if number else DATA_CARD, data_card(cohort)


def _to_folder(files: Mapping[str, Path], about: bytes, target: Path) -> None:
    if not target.parent.is_dir():
        raise UserError(f"{target.parent} is no folder: make it, or correct --output")
    if _is_there(target, files, about):
        return
    with _aside(target) as aside:
        for name, path in files.items():
            place = aside / name
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, place)
        (aside / ABOUT).write_bytes(about)
        for place in aside.rglob("*"):
            if place.is_file():
                with place.open("rb") as file:
                    os.fsync(file.fileno())
        try:
            aside.rename(target)  # over an empty folder, too, and over no other
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
            if not _is_there(target, files, about):
                raise _occupied(str(target)) from None


@contextmanager
def _aside(target: Path) -> Iterator[Path]:
    """A folder beside the target, which goes unless it was renamed; one that was killed leaves it."""
    aside = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    with storage.explained(str(target)):
        aside.mkdir()
        try:
            yield aside
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def _is_there(target: Path, files: Mapping[str, Path], about: bytes) -> bool:
    """Whether a folder is this very export.

    Raises:
        UserError: something else is there.
    """
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return False
    known = json.loads(about)["files"]
    same = (target / ABOUT).is_file() and (target / ABOUT).read_bytes() == about
    if not same or any(
        not (target / name).is_file() or storage.sha256_file(target / name) != known[name] for name in files
    ):
        raise _occupied(str(target))
    return True


def _to_bucket(files: Mapping[str, Path], about: bytes, target: str) -> None:
    marker = storage.join(target, ABOUT)
    there = storage.names(target)
    if (there and ABOUT not in there) or (
        not storage.put_new(marker, about) and storage.read_bytes(marker) != about
    ):
        raise _occupied(target)
    if README in there:  # the last of the very same files
        return
    first = [name for name in files if name not in LAST]
    with ThreadPoolExecutor(UPLOADS) as pool:
        list(pool.map(lambda name: storage.upload(files[name], storage.join(target, name)), first))
    for name in LAST:
        if name in files:
            storage.upload(files[name], storage.join(target, name))


def _occupied(target: str) -> UserError:
    return UserError(f"{target} holds something else: name an output that is not there yet, or empty it")
