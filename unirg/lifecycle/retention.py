"""`unirg gc`: free what no cohort of a store needs, and, when asked, cohorts with withdrawn studies.

Shards are put before the manifest of the cohort that lists them, so a young shard without a cohort may
belong to one in the making: it stays for a grace period, as does work in progress, be it the notes of a
cohort with every shard that they name or the checkpoints of a training; who comes back to it later begins
anew. A cohort goes manifest first, so a process killed at any moment leaves a whole cohort or none that
opens; its roll (`lineage`), put before, tells the next run what was left. Shards with a withdrawn study go
without a grace period, unless unfinished work names them or somebody renews them; those that stay are
counted.

Each shard is looked at again right before it goes. On `file:` no writer comes between (`gc_lock`). On object
storage who renews a shard, or commits what lists it, between that look and the removal a request later, or in
the second in which it was put, loses it: the cohort then names a missing shard. So keep the grace period
where writers are at work; then this can hit only shards a day old, and those with a withdrawn study.

If any cohort of the store cannot be read nothing is freed: it may need everything.
"""

from __future__ import annotations

import fcntl
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from unirg import journal, storage
from unirg.artifact import MANIFEST, Artifact, cache_root, gc_lock, work_root
from unirg.cohort.reader import SHARDS, Cohort
from unirg.cohort.withdrawal import Withdrawn
from unirg.errors import UserError
from unirg.lifecycle.lineage import Roll, artifacts, names, rolls

GRACE_S = 24 * 3600.0
COHORT = "cohort"
WORK = ".work"
"""Folder of a store with notes of unfinished watches and cohorts, and checkpoints of unfinished trainings."""
_SHARD = re.compile(r"([0-9a-f]{64})\.parquet")
_ASIDE = re.compile(r"\.[0-9a-f]{64}\.parquet\.[0-9a-f]{32}")
"""What `storage.put_new` writes before it links: left behind by a killed process."""
_WORK = re.compile(r"(watch|cohort|sft|grpo)-([0-9a-f]{16})")
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
    tainted: int = 0
    """Shards with a withdrawn study that stay: unfinished work names them, or they came into use again."""


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
    store = storage.absolute(store)
    with ExitStack() as locks:
        # In this order: what is committed meanwhile was in progress, and its shards are young or not seen.
        found = list(_files(store))
        works = list(_in_progress(store, locks))
        withdrawn = Withdrawn.load(store) if drop_withdrawn else Withdrawn()
        kept, dropped = _parted(store, withdrawn)
        # What is left of the work on what is finished protects nothing, however young.
        abandoned = [
            work for work in works if work.ours and (work.done or work.newest <= time.time() - grace_s)
        ]
        live = {digest for work in works if work not in abandoned for digest in work.digests}
        live |= {shard.sha256 for cohort in kept for shard in Cohort.open(cohort).index.shards}
        earlier = list(rolls(store))
        tainted = _tainted([roll for _, roll in dropped] + earlier, withdrawn)
        broom = _Broom(store, dry_run, tell, {_key(cohort) for cohort in kept})
        for work in abandoned:
            broom.remove_work(work)
        for cohort, roll in dropped:
            broom.drop(cohort, roll, len(roll.covered(withdrawn)))
        for roll in {roll.key: roll for roll in (*earlier, *(roll for _, roll in dropped))}.values():
            broom.finish(roll)
        for file in found:
            digest = _SHARD.fullmatch(file.name)
            is_tainted = digest is not None and digest[1] in tainted
            if digest and digest[1] in live:
                broom.freed.tainted += is_tainted
            else:
                broom.sweep(file, grace_s, is_tainted)
        return broom.freed


@dataclass
class _Broom:
    """Removes, tells and counts; with `dry_run` it only tells and counts."""

    store: str
    dry_run: bool
    tell: Tell
    known: set[str]
    """Keys of the cohorts that stay."""
    used: set[str] = field(default_factory=set)
    """Shards of cohorts that were committed since."""
    freed: Freed = field(default_factory=Freed)

    def remove_work(self, work: _Work) -> None:
        why = f"its {work.stage} is finished" if work.done else "the grace period is over"
        self.tell(f"{work.name}: {work.bytes} bytes of work that nobody is at: {why}")
        self.freed.bytes += work.bytes
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

    def finish(self, roll: Roll) -> None:
        """Record a cohort whose manifest is gone, and remove its files; one staged anew since stays."""
        uri = storage.join(self.store, COHORT, roll.key)
        fs, path = storage.open_fs(uri)
        with storage.explained(uri):
            if self.dry_run or fs.exists(f"{path}/{MANIFEST}"):
                return
            rest = fs.find(path) if fs.exists(path) else []
        journal.append(self.store, "drop", {"artifact": f"{COHORT}/{roll.key}", "digest": roll.digest})
        for name in rest:
            _remove(storage.join(uri, str(name).removeprefix(path)))
        if storage.is_local(uri):
            shutil.rmtree(storage.local_path(uri), ignore_errors=True)  # folders, all empty now

    def sweep(self, file: _File, grace_s: float, tainted: bool) -> None:
        """Remove a shard that no cohort lists, or what a killed writer left of one, once it is old enough."""
        with nullcontext() if self.dry_run else gc_lock(self.store, exclusive=True):
            # Looked at again: a writer that found its shard there may have renewed it since.
            now = next(_files(self.store, file.name), None)
            if now is None:
                return
            young = not tainted and grace_s != 0 and now.modified > time.time() - grace_s
            if young or now.modified != file.modified or self._came_into_use(file, grace_s, tainted):
                self.freed.tainted += tainted
                self.freed.waiting += not tainted and _SHARD.fullmatch(file.name) is not None
                return
            self._remove_shard(file)

    def _came_into_use(self, file: _File, grace_s: float, tainted: bool) -> bool:
        """Whether a cohort lists it that was committed meanwhile; where age counts, it is young then."""
        if self.dry_run or not (tainted or grace_s == 0):
            return False
        for cohort in artifacts(self.store, COHORT, self.known):
            self.known.add(_key(cohort))
            self.used.update(shard.file for shard in Cohort.open(cohort).index.shards)
        return file.name in self.used

    def _remove_shard(self, file: _File) -> None:
        uri = storage.join(self.store, SHARDS, file.name)
        self.tell(f"{uri}: {file.bytes} bytes")
        self.freed.shards += _SHARD.fullmatch(file.name) is not None
        self.freed.bytes += file.bytes
        if not self.dry_run:
            _remove(uri)
            # The copy on this machine; other machines' caches are theirs to clear.
            (cache_root() / SHARDS / file.name).unlink(missing_ok=True)


def _key(cohort: Artifact) -> str:
    """Name of its folder in the store."""
    return cohort.uri.rpartition("/")[2]


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
    """An artifact in the making: notes or checkpoints in the store, scratch of this machine."""

    name: str
    stage: str
    done: bool
    """Its artifact is in the store."""
    ours: bool
    """No process of this machine has it, and none can begin on it before gc is done."""
    newest: float
    """When it was last touched, in seconds since 1970."""
    uris: tuple[str, ...]
    """Every file of it."""
    bytes: int
    digests: frozenset[str]
    """All that the notes of a cohort name."""


def _in_progress(store: str, locks: ExitStack) -> Iterator[_Work]:
    """The work that lies about, locked where it is nobody's.

    Abandoned work must go before its shards do, and stays locked until then: a later run would take its notes
    for finished work.
    """
    here = work_root(store)
    roots = sorted({storage.join(store, WORK), str(here)})
    found = {name: match for root in roots for name in names(root) if (match := _WORK.fullmatch(name))}
    for name, (stage, key) in sorted((name, match.groups()) for name, match in found.items()):
        here.mkdir(parents=True, exist_ok=True)
        ours = locks.enter_context(_lock(here / f"{name}.lock"))
        done = MANIFEST in names(store, stage, key)
        newest, size = 0.0, 0
        named: set[str] = set()
        uris = []
        for root in roots:
            for uri, modified, length in _tree(storage.join(root, name)):
                uris.append(uri)
                newest = max(newest, modified)
                size += length
                if stage == COHORT and uri.endswith(".json"):
                    with suppress(FileNotFoundError):  # its owner has just finished
                        named.update(_DIGEST.findall(storage.read_bytes(uri).decode(errors="replace")))
        yield _Work(name, stage, done, ours, newest, tuple(uris), size, frozenset(named))


def _tree(folder: str) -> Iterator[tuple[str, float, int]]:
    """(URI, time of its last change, bytes) of every file below a folder."""
    fs, path = storage.open_fs(folder)
    with storage.explained(folder):
        found: dict[str, dict[str, Any]] = fs.find(path, detail=True)
    for name, info in found.items():
        yield storage.join(folder, name.removeprefix(path)), _modified(info), int(info["size"])


def _modified(info: dict[str, Any]) -> float:
    """Seconds since 1970, of a file of a folder or an object; of objects whole ones, as HEAD tells them."""
    if "mtime" in info:
        return float(info["mtime"])
    return float(info["LastModified"].replace(microsecond=0).timestamp())


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
