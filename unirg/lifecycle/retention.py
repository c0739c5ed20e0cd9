"""`unirg gc`: free what no cohort of a store needs, and, when asked, cohorts with withdrawn studies.

Shards are put before the manifest of the cohort that lists them, so a young shard without a cohort may
belong to one in the making: it stays for a grace period, as does work in progress with every shard that
its notes name. A cohort goes manifest first, so a process killed at any moment leaves a whole cohort
or none that opens; its roll (`lineage`), put before, tells the next run what was left. Shards with a
withdrawn study go without a grace period, unless a cohort that stays lists them.

If any cohort of the store cannot be read nothing is freed: it may need everything.
"""

from __future__ import annotations

import fcntl
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from unirg import storage
from unirg.artifact import MANIFEST, Artifact, cache_root, work_root
from unirg.cohort.reader import SHARDS, Cohort
from unirg.cohort.withdrawal import Withdrawn
from unirg.errors import UserError
from unirg.lifecycle.lineage import Roll, artifacts, names, rolls

GRACE_S = 24 * 3600.0
COHORT = "cohort"
WORK = ".work"
"""Folder of a store with the notes of unfinished cohorts."""
_SHARD = re.compile(r"([0-9a-f]{64})\.parquet")
_ASIDE = re.compile(r"\.[0-9a-f]{64}\.parquet\.[0-9a-f]{32}")
"""What `storage.put_new` writes before it links: left behind by a killed process."""
_WORK = re.compile(r"cohort-[0-9a-f]{16}")
_DIGEST = re.compile(r"[0-9a-f]{64}")

Tell = Callable[[str], None]


@dataclass
class Freed:
    """What a run freed, or with `dry_run` would free."""

    cohorts: list[str] = field(default_factory=list)
    """URIs of cohorts that held withdrawn studies."""
    shards: int = 0
    bytes: int = 0
    waiting: int = 0
    """Shards that no cohort lists but which are younger than the grace period."""


@dataclass(frozen=True)
class _File:
    name: str
    bytes: int
    modified: float
    """Seconds since 1970."""


def gc(
    store: str,
    grace_s: float = GRACE_S,
    drop_withdrawn: bool = False,
    dry_run: bool = False,
    tell: Tell = lambda line: None,
) -> Freed:
    """Free unneeded shards; with `drop_withdrawn` first the cohorts that hold withdrawn studies.

    Args:
        tell: gets a line for each thing that is freed.

    Raises:
        UserError: there is no store, or a cohort or a withdrawal of it cannot be read; nothing was freed.
    """
    if not names(store):
        raise UserError(f"there is no store at {store}: check --store")
    store = str(storage.local_path(store)) if storage.is_local(store) else store.rstrip("/")
    with ExitStack() as locks:
        # In this order: what is committed meanwhile was in progress, and its shards are young or not seen.
        found = list(_files(store))
        live, abandoned = _in_progress(store, grace_s, locks)
        withdrawn = Withdrawn.load(store) if drop_withdrawn else Withdrawn()
        kept, dropped = _parted(store, withdrawn)
        live |= {shard.sha256 for cohort in kept for shard in Cohort.open(cohort).index.shards}
        earlier = list(rolls(store))
        tainted = _tainted([roll for _, roll in dropped] + earlier, withdrawn)
        broom = _Broom(store, dry_run, tell)
        for work in abandoned:
            broom.remove_work(work)
        for cohort, roll in dropped:
            broom.drop(cohort, roll, len(roll.covered(withdrawn)))
        for key in {roll.key for roll in earlier} | {roll.key for _, roll in dropped}:
            broom.finish(key)
        for file in found:
            digest = _SHARD.fullmatch(file.name)
            if not (digest and digest[1] in live):
                broom.sweep(file, 0 if digest and digest[1] in tainted else grace_s)
        return broom.freed


@dataclass
class _Broom:
    """Removes, tells and counts; with `dry_run` it only tells and counts."""

    store: str
    dry_run: bool
    tell: Tell
    freed: Freed = field(default_factory=Freed)

    def remove_work(self, work: _Work) -> None:
        self.tell(f"{work.name}: unfinished work, not touched for the grace period")
        for uri in () if self.dry_run else work.uris:
            _remove(uri)
        if not self.dry_run:
            shutil.rmtree(work_root(self.store) / work.name, ignore_errors=True)  # empty folders

    def drop(self, cohort: Artifact, roll: Roll, withdrawn: int) -> None:
        """Keep the roll, then remove the manifest: from here on the cohort does not open."""
        self.tell(f"{cohort.uri}: a cohort with {withdrawn} withdrawn studies")
        self.freed.cohorts.append(cohort.uri)
        if not self.dry_run:
            roll.put(self.store)
            _remove(storage.join(cohort.uri, MANIFEST))

    def finish(self, key: str) -> None:
        """Remove the files of a cohort whose manifest is gone; one that was staged anew since stays."""
        uri = storage.join(self.store, COHORT, key)
        fs, path = storage.open_fs(uri)
        with storage.explained(uri):
            if self.dry_run or fs.exists(f"{path}/{MANIFEST}"):
                return
            rest = fs.find(path) if fs.exists(path) else []
        for name in rest:
            _remove(storage.join(uri, str(name).removeprefix(path)))
        if storage.is_local(uri):
            shutil.rmtree(storage.local_path(uri), ignore_errors=True)  # folders, all empty now

    def sweep(self, file: _File, grace_s: float) -> None:
        """Remove a shard that no cohort lists, or what a killed writer left of one, once it is old enough."""
        shard = _SHARD.fullmatch(file.name) is not None
        if grace_s:
            # Looked at again: a writer that found its shard there may have renewed it since.
            now = next(_files(self.store, file.name), None)
            if now is None:
                return
            if now.modified > time.time() - grace_s:
                self.freed.waiting += shard
                return
        uri = storage.join(self.store, SHARDS, file.name)
        self.tell(f"{uri}: {file.bytes} bytes")
        self.freed.shards += shard
        self.freed.bytes += file.bytes
        if not self.dry_run:
            _remove(uri)
            # The copy on this machine; other machines' caches are theirs to clear.
            (cache_root() / SHARDS / file.name).unlink(missing_ok=True)


def _parted(store: str, withdrawn: Withdrawn) -> tuple[list[Artifact], list[tuple[Artifact, Roll]]]:
    """The store's cohorts: those that stay, and those with a withdrawn study."""
    kept, dropped = [], []
    for cohort in artifacts(store, COHORT):
        roll = Roll.of(cohort) if withdrawn else None
        if roll is not None and len(roll.covered(withdrawn)):
            dropped.append((cohort, roll))
        else:
            kept.append(cohort)
    return kept, dropped


def _tainted(found: list[Roll], withdrawn: Withdrawn) -> set[str]:
    """SHA-256 of the shards, of cohorts dropped now or earlier, in which a withdrawn study lies."""
    if not withdrawn:
        return set()
    return {digest for roll in found for digest in pc.unique(roll.covered(withdrawn)["shard"]).to_pylist()}


def _files(store: str, name: str = "") -> Iterator[_File]:
    """Shards, and what killed writers left beside them; anything else there is not ours to judge."""
    uri = storage.join(store, SHARDS, name)
    try:
        with storage.explained(uri):
            fs, path = storage.open_fs(uri)
            listed: list[dict[str, Any]] = [fs.info(path)] if name else fs.ls(path, detail=True)
    except FileNotFoundError:
        return
    for info in listed:
        found = str(info["name"]).rpartition("/")[2]
        if info["type"] == "file" and (_SHARD.fullmatch(found) or _ASIDE.fullmatch(found)):
            yield _File(found, int(info["size"]), _modified(info))


@dataclass(frozen=True)
class _Work:
    """A cohort in the making: notes of finished shards in the store, scratch of this machine."""

    name: str
    uris: tuple[str, ...]
    """Every file of it."""


def _in_progress(store: str, grace_s: float, locks: ExitStack) -> tuple[set[str], list[_Work]]:
    """(every digest that work in progress names, work that nobody touched for the grace period).

    The latter must go before its shards do, and stays locked until then: a later run would take its notes
    for finished work.
    """
    here = work_root(store)
    roots = sorted({storage.join(store, WORK), str(here)})
    found = {name for root in roots for name in names(root) if _WORK.fullmatch(name)}
    protected: set[str] = set()
    abandoned = []
    for name in sorted(found):
        here.mkdir(parents=True, exist_ok=True)
        ours = locks.enter_context(_lock(here / f"{name}.lock"))
        newest = 0.0
        named: set[str] = set()
        uris = []
        for root in roots:
            for uri, modified in _tree(storage.join(root, name)):
                uris.append(uri)
                newest = max(newest, modified)
                if uri.endswith(".json"):
                    with suppress(FileNotFoundError):  # its owner has just finished
                        named.update(_DIGEST.findall(storage.read_bytes(uri).decode(errors="replace")))
        if ours and newest <= time.time() - grace_s:
            abandoned.append(_Work(name, tuple(uris)))
        else:
            protected |= named
    return protected, abandoned


def _tree(folder: str) -> Iterator[tuple[str, float]]:
    """(URI, time of its last change) of every file below a folder."""
    fs, path = storage.open_fs(folder)
    with storage.explained(folder):
        found: dict[str, dict[str, Any]] = fs.find(path, detail=True)
    for name, info in found.items():
        yield storage.join(folder, name.removeprefix(path)), _modified(info)


def _modified(info: dict[str, Any]) -> float:
    """Seconds since 1970, of a file of a folder or an object."""
    return float(info["mtime"] if "mtime" in info else info["LastModified"].timestamp())


@contextmanager
def _lock(file: Path) -> Iterator[bool]:
    """Whether the work is ours to remove: no other process of this machine has it."""
    with file.open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def _remove(uri: str) -> None:
    """Remove one object; one that is gone already was another gc's."""
    try:
        with storage.explained(uri):
            fs, path = storage.open_fs(uri)
            fs.rm_file(path)
    except FileNotFoundError:
        pass
