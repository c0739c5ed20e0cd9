"""Checkpoints that are whole or do not count: committed last, checked by digest, copied into the store.

A trainer goes on from a checkpoint without its optimiser's state, or with half of it, without a word, and
then diverges (STACK: Resume). So each one gets a marker, written after everything else, that names every file
with its SHA-256; what has no marker, or differs from it, is said on stderr and passed over.

Where the store is remote, files go to `.work/<stage>-<key>/checkpoints/checkpoint-N/<digest>/` in it and the
marker beside that folder, last and only if none is there: another machine goes on from it.
"""

from __future__ import annotations

import math
import os
import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from unirg import storage
from unirg.artifact import Draft, FileEntry
from unirg.config import canonical_json
from unirg.training import distributed

MARKER = "complete"
PREFIX = "checkpoint-"
"""transformers' name for a checkpoint's folder, before its step."""
THREADS = 8
"""Files digested or copied at a time."""


class Whole(BaseModel):
    """A checkpoint's marker."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    step: int
    processes: int
    """How many wrote it: ZeRO's state is split by process."""
    score: float | None
    """RadCliQ-v1 of the validation at its step."""
    files: dict[str, FileEntry]

    @property
    def name(self) -> str:
        return f"{PREFIX}{self.step}"

    @property
    def base(self) -> str:
        """The folder of its remote files: another writer of the same step overwrites none of them."""
        return storage.sha256(canonical_json({name: one.sha256 for name, one in self.files.items()}))[:32]


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one training. Its methods are called by all processes, but where one says so."""

    folder: Path
    mirror: str
    """Where copies lie in a remote store; empty for a local one, whose folder all machines share."""
    kept: int

    @classmethod
    def of(cls, draft: Draft, kept: int) -> Checkpoints:
        store = draft.uri.rsplit("/", 2)[0]
        remote = not storage.is_local(store)
        mirror = storage.join(store, ".work", draft.work.name, "checkpoints") if remote else ""
        return cls(draft.scratch / "checkpoints", mirror, kept)

    def path(self, found: Whole) -> Path:
        return self.folder / found.name

    def commit(self, step: int, score: float | None) -> None:
        """Make what every process has written for a step count; remove those not kept."""
        distributed.gathered(None)  # all have written
        folder = self.folder / f"{PREFIX}{step}"
        ours = _entries(folder) if distributed.leads_machine() else {}
        files = {name: entry for part in distributed.gathered(ours) for name, entry in part.items()}
        score = score if score is not None and math.isfinite(score) else None
        made = Whole(step=step, processes=distributed.processes(), score=score, files=files)
        if self.mirror:
            self._copy(made, list(ours))
        if ours:
            aside = folder / f".{MARKER}-{distributed.rank()}"  # other machines may share the folder
            aside.write_bytes(made.model_dump_json().encode())
            aside.replace(folder / MARKER)
        self._prune()

    def newest(self, what: str) -> Whole | None:
        """The newest whole checkpoint, with its files at hand; later ones are named on stderr and removed."""
        candidates = distributed.agreed(list(self._candidates()) if distributed.rank() == 0 else [])
        for step, found in candidates:
            problem = self._problem(step, found) if distributed.leads_machine() else ""
            problems = [one for one in distributed.gathered(problem) if one]
            if not problems:
                return found
            if distributed.rank() == 0:
                _say(f"{what}: {PREFIX}{step} is passed over: {problems[0]}")
                if found and self.mirror:
                    self._remove_copy(found)
            if distributed.leads_machine():
                shutil.rmtree(self.folder / f"{PREFIX}{step}", ignore_errors=True)
        return None

    def best(self, what: str) -> Whole | None:
        """The one with the lowest validation RadCliQ-v1, its files at hand; called by rank 0 alone.

        What is not whole is named on stderr, and the next best taken.
        """
        for best in _by_score([found for _, found in self._candidates() if found]):
            problem = self._problem(best.step, best)
            if not problem:
                return best
            _say(f"{what}: {best.name}, the best so far, is passed over: {problem}")
        return None

    def remove_copies(self) -> None:
        """After the artifact is committed, nobody goes on from them; called by rank 0 alone."""
        if self.mirror:
            try:
                fs, path = storage.open_fs(self.mirror)
                with storage.explained(self.mirror):
                    if fs.isdir(path):
                        fs.rm(path, recursive=True)
            except storage.StorageError as error:  # the next run, which finds the artifact, tries again
                _say(f"copies of checkpoints stay in the store for now: {error}")

    def _candidates(self) -> Iterator[tuple[int, Whole | None]]:
        """Newest first: (step, marker), the local before the remote; without a marker it was not finished."""
        here = {step: _marker(self.folder / f"{PREFIX}{step}" / MARKER) for step in _local(self.folder)}
        there = {step: self._remote_marker(step) for step in self._remote()}
        for step in sorted({*here, *there}, reverse=True):
            local, remote = here.get(step), there.get(step)
            if step in here:
                yield step, local
            if remote and not (local and local.base == remote.base):
                yield step, remote

    def _problem(self, step: int, found: Whole | None) -> str:
        """Why it cannot be gone on from; missing files are brought from the store first."""
        if found is None:
            return "it was not finished"
        with ThreadPoolExecutor(THREADS) as pool:
            wrong = pool.map(lambda item: self._wrong(found, *item), sorted(found.files.items()))
            return next((one for one in wrong if one), "")

    def _wrong(self, found: Whole, name: str, entry: FileEntry) -> str:
        file = self.path(found) / name
        wrong = _differs(file, entry)
        if wrong and self.mirror:
            if file.is_dir():
                return wrong
            try:
                storage.download(storage.join(self.mirror, found.name, found.base, name), file)
            except FileNotFoundError:
                return wrong
            wrong = _differs(file, entry)
        return wrong

    def _copy(self, made: Whole, ours: list[str]) -> None:
        """Copy this machine's files to the store; without it the checkpoint still counts on this machine."""
        base = storage.join(self.mirror, made.name, made.base)
        problem = ""
        try:
            with ThreadPoolExecutor(THREADS) as pool:
                source = self.path(made)
                list(pool.map(lambda name: storage.upload(source / name, storage.join(base, name)), ours))
        except storage.StorageError as error:
            problem = str(error)
        problems = [one for one in distributed.gathered(problem) if one]
        if distributed.rank() == 0:
            try:
                if not problems:
                    marker = storage.join(self.mirror, made.name, MARKER)
                    storage.put_new(marker, made.model_dump_json().encode())
            except storage.StorageError as error:
                problems = [str(error)]
            if problems:
                _say(f"{made.name} was not copied to the store, training goes on: {problems[0]}")

    def _prune(self) -> None:
        """Keep the newest few and the best; all copies stay while the store is away."""
        stay: set[int] = set()
        if distributed.rank() == 0:
            markers = [_marker(self.folder / f"{PREFIX}{step}" / MARKER) for step in _local(self.folder)]
            stay = self._worth([one for one in markers if one])
            try:
                found = [one for _, one in self._candidates() if one]
                stay = self._worth(found)
                for one in found:
                    if one.step not in stay and self.mirror:
                        self._remove_copy(one)
            except storage.StorageError as error:
                _say(f"older checkpoints stay in the store for now: {error}")
        stay = distributed.agreed(stay)
        if distributed.leads_machine():
            for step in _local(self.folder):
                if step not in stay:
                    shutil.rmtree(self.folder / f"{PREFIX}{step}", ignore_errors=True)

    def _worth(self, found: list[Whole]) -> set[int]:
        """Steps of those that are kept."""
        newest = sorted({one.step for one in found}, reverse=True)[: self.kept]
        return {*newest, *(one.step for one in _by_score(found)[:1])}

    def _remote(self) -> list[int]:
        if not self.mirror:
            return []
        fs, path = storage.open_fs(self.mirror)
        with storage.explained(self.mirror):
            listed = fs.ls(path, detail=False) if fs.isdir(path) else []
        return _steps(str(name).rstrip("/").rpartition("/")[2] for name in listed)

    def _remote_marker(self, step: int) -> Whole | None:
        try:
            data = storage.read_bytes(storage.join(self.mirror, f"{PREFIX}{step}", MARKER))
            return Whole.model_validate_json(data)
        except (FileNotFoundError, ValidationError):
            return None

    def _remove_copy(self, found: Whole) -> None:
        """The marker first: from then on it does not count. Another writer's copy of the step stays."""
        uri = storage.join(self.mirror, found.name)
        fs, path = storage.open_fs(uri)
        marker = self._remote_marker(found.step)
        with storage.explained(uri):
            if marker and marker.base == found.base:
                fs.rm_file(f"{path}/{MARKER}")
            if fs.isdir(f"{path}/{found.base}"):
                fs.rm(f"{path}/{found.base}", recursive=True)


def _by_score(found: list[Whole]) -> list[Whole]:
    """The validated ones, the best first."""
    scored = [(one.score, one.step, one) for one in found if one.score is not None]
    return [one for *_, one in sorted(scored, key=lambda item: item[:2])]


def _steps(names: Iterator[str]) -> list[int]:
    numbers = [name.removeprefix(PREFIX) for name in names if name.startswith(PREFIX)]
    return [int(number) for number in numbers if number.isdecimal()]


def _local(folder: Path) -> list[int]:
    return _steps(path.name for path in folder.iterdir()) if folder.is_dir() else []


def _marker(file: Path) -> Whole | None:
    try:
        return Whole.model_validate_json(file.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def _differs(file: Path, entry: FileEntry) -> str:
    """What is wrong with a file of a checkpoint; empty where nothing is."""
    if not file.is_file():
        return f"{file.name} is missing"
    if file.stat().st_size != entry.bytes:
        return f"{file.name} has {file.stat().st_size} bytes, not {entry.bytes}"
    if storage.sha256_file(file) != entry.sha256:
        return f"{file.name} has other bytes than were written"
    return ""


def _entries(folder: Path) -> dict[str, FileEntry]:
    """Every file below a folder, on the disk for good."""

    def entry(path: Path) -> FileEntry:
        with path.open("rb") as file:
            os.fsync(file.fileno())
        return FileEntry(sha256=storage.sha256_file(path), bytes=path.stat().st_size)

    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    with ThreadPoolExecutor(THREADS) as pool:
        return {str(p.relative_to(folder)): one for p, one in zip(paths, pool.map(entry, paths), strict=True)}


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
