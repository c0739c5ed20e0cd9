"""Immutable directories: configuration and inputs in, one directory out, `manifest.json` last.

A stage's *action key* is the hash of what changes its output: its name and version, the identity of its
configuration, the digests of its inputs. A stage that finds its key committed returns that artifact. This
one rule gives resume, caching, idempotent retries and lineage, on a laptop and on a cluster.
The *output digest* is over content; it is what later stages name.

    with artifact.draft(store, "sft", VERSION, config, {"cohort": cohort}) as draft:
        if draft.committed:
            return draft.committed
        ...                                  # write files below draft.out, keep progress in draft.scratch
        return draft.commit(counts)

On `file:` the finished directory is renamed into place; on `s3:` objects go to a prefix named by their
digest and the manifest is put last, if none is there. So a reader sees a whole artifact or none, and of
two writers of the same key exactly one wins, whole.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from importlib import metadata
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from unirg import journal, storage
from unirg.config import Config, canonical_json, identity, resolved
from unirg.errors import UserError

MANIFEST = "manifest.json"
CONFIG = "resolved_config.json"
LOGS = "logs/"
"""Files below this folder (timings, progress) are kept with the artifact but are no part of its digest."""
UPLOADS = 8
SOFTWARE = ("unirg", "numpy", "pyarrow", "pillow", "torch", "transformers", "trl", "kserve", "kfp", "mlflow")


class ArtifactError(UserError):
    """An artifact that is absent, of another kind, truncated or altered."""


class _Closed(BaseModel):
    # JSON has no NaN: a manifest with one could not be read again.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class FileEntry(_Closed):
    sha256: str
    bytes: int


class InputRef(_Closed):
    digest: str
    uri: str | None = None
    """Where it was read, for people; identity rests on the digest alone. None for a corpus."""


class Manifest(_Closed):
    """What an artifact is and where it came from; its presence means that the artifact is complete."""

    stage: str
    version: int
    action_key: str
    output_digest: str
    base: str
    """The folder, below the artifact's URI, that the file names are relative to; remote, a digest of all
    files with the logs, so that a writer who comes second overwrites nothing of the first one's."""
    inputs: dict[str, InputRef]
    config: dict[str, object]
    counts: dict[str, int | float | str]
    files: dict[str, FileEntry]
    logs: dict[str, FileEntry]
    software: dict[str, str]


@dataclass(frozen=True)
class Artifact:
    """A committed artifact. Files are checked against the manifest when first read."""

    uri: str
    manifest: Manifest

    @property
    def digest(self) -> str:
        return self.manifest.output_digest

    @property
    def store(self) -> str:
        """The store it lies in: the URI without stage and key."""
        return self.uri.rsplit("/", 2)[0]

    def uri_of(self, name: str) -> str:
        return storage.join(self.uri, self.manifest.base, name)

    def path(self, name: str) -> Path:
        """A local, verified copy of one file."""
        entry = (self.manifest.files | self.manifest.logs).get(name)
        if entry is None:
            known = ", ".join(sorted(self.manifest.files)[:20])
            raise ArtifactError(f"{self.uri} has no file {name}: it has {known}")
        return verified(self.uri_of(name), entry, self._local / name)

    @cached_property
    def directory(self) -> Path:
        """A local directory with every file verified, such as `from_pretrained` reads."""
        for name in self.manifest.files:
            self.path(name)
        return self._local

    @property
    def _local(self) -> Path:
        if storage.is_local(self.uri):
            return storage.local_path(self.uri) / self.manifest.base
        return cache_root() / "artifacts" / self.manifest.base


def verified(uri: str, entry: FileEntry, target: Path) -> Path:
    """`target` with the content that `entry` promises, downloaded from `uri` where it is remote.

    Raises:
        ArtifactError: the file is missing, truncated or altered; it is named.
    """
    if not storage.is_local(uri) and not (target.exists() and storage.sha256_file(target) == entry.sha256):
        try:
            storage.download(uri, target)
        except FileNotFoundError:
            raise ArtifactError(f"{uri} is missing: {_REBUILD}") from None
    if not target.exists():
        raise ArtifactError(f"{uri} is missing: {_REBUILD}")
    size = target.stat().st_size
    if size != entry.bytes:
        raise ArtifactError(f"{uri} is truncated or altered ({size} bytes, not {entry.bytes}): {_REBUILD}")
    if storage.sha256_file(target) != entry.sha256:
        raise ArtifactError(f"{uri} is altered (its SHA-256 differs from the manifest's): {_REBUILD}")
    return target


_REBUILD = "restore it, or delete the artifact that names it and run its stage again"


def cache_root() -> Path:
    """Local copies of remote artifacts, and work in progress for remote stores: `$UNIRG_CACHE`."""
    return Path(os.environ.get("UNIRG_CACHE") or "~/.cache/unirg").expanduser()


def open_artifact(uri: str, stage: str | tuple[str, ...] | None = None) -> Artifact:
    """Read an artifact's manifest; `stage` names the kinds that the caller can use.

    Raises:
        ArtifactError: there is none, its manifest is unreadable, or it is of another kind.
    """
    uri = storage.absolute(uri)
    found = find(uri)
    if found is None:
        raise ArtifactError(f"no artifact at {uri}: there is no {MANIFEST} (an unfinished run leaves none)")
    wanted = (stage,) if isinstance(stage, str) else stage
    if wanted and found.manifest.stage not in wanted:
        raise ArtifactError(
            f"{uri} was made by stage {found.manifest.stage}; this needs {' or '.join(wanted)}"
        )
    return found


def find(uri: str) -> Artifact | None:
    """The artifact at a URI; None where nothing is committed."""
    try:
        data = storage.read_bytes(storage.join(uri, MANIFEST))
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        return Artifact(uri, Manifest.model_validate_json(data))
    except ValidationError:
        raise ArtifactError(f"{uri}/{MANIFEST} is not a manifest of this version: {_REBUILD}") from None


def done(uri: str) -> Artifact | None:
    """As `find`; its maker may have been killed before the audit had it, so that is made good."""
    made = find(uri)
    return made and _recorded(made, found=True)


def _recorded(made: Artifact, found: bool = False) -> Artifact:
    inputs = {name: reference.digest for name, reference in made.manifest.inputs.items()}
    journal.made(made.uri, made.digest, made.manifest.action_key, inputs, found)
    return made


def action_key(stage: str, version: int, config: Config, inputs: Mapping[str, Artifact | str]) -> str:
    """Hash of what changes the output and of nothing else (no host, no worker count, no time)."""
    digests = {name: _digest(value) for name, value in inputs.items()}
    parts = {"stage": stage, "version": version, "config": identity(config), "inputs": digests}
    return storage.sha256(canonical_json(parts))


def place(store: str, stage: str, key: str) -> str:
    """The URI of the artifact with an action key, committed or not."""
    return storage.join(storage.absolute(store), stage, key[:16])


def _digest(value: Artifact | str) -> str:
    return value.digest if isinstance(value, Artifact) else value


@dataclass
class Draft:
    """An artifact in the making: `out` becomes its content, `scratch` survives a crash for the rerun."""

    uri: str
    stage: str
    version: int
    key: str
    config: Config
    inputs: Mapping[str, Artifact | str]
    work: Path
    committed: Artifact | None = field(default=None)

    @property
    def out(self) -> Path:
        return self.work / "out"

    @property
    def scratch(self) -> Path:
        return self.work / "scratch"

    def commit(self, counts: Mapping[str, int | float | str] | None = None) -> Artifact:
        """Make `out` an artifact, all at once; if another process was first, its artifact is returned."""
        (self.out / CONFIG).write_bytes(json.dumps(resolved(self.config), indent=1, sort_keys=True).encode())
        entries = {
            str(path.relative_to(self.out)): FileEntry(
                sha256=storage.sha256_file(path), bytes=path.stat().st_size
            )
            for path in sorted(self.out.rglob("*"))
            if path.is_file()
        }
        # The resolved configuration holds operational values too, so it is beside the content, not in it.
        files = {name: e for name, e in entries.items() if not name.startswith(LOGS) and name != CONFIG}
        digest = _content_digest(files)
        remote = not storage.is_local(self.uri)
        manifest = Manifest(
            stage=self.stage,
            version=self.version,
            action_key=self.key,
            output_digest=digest,
            base=_content_digest(entries)[:32] if remote else ".",
            inputs={name: _reference(value) for name, value in self.inputs.items()},
            config=resolved(self.config),
            counts=dict(counts or {}),
            files=files,
            logs={name: entry for name, entry in entries.items() if name not in files},
            software=_software(),
        )
        text = manifest.model_dump_json(indent=1).encode()
        if remote:
            self._commit_remote(entries, manifest, text)
        else:
            self._commit_local(text)
        self.committed = _recorded(open_artifact(self.uri))
        shutil.rmtree(self.scratch, ignore_errors=True)
        return self.committed

    def _commit_local(self, manifest: bytes) -> None:
        (self.out / MANIFEST).write_bytes(manifest)
        for path in self.out.rglob("*"):
            if path.is_file():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
        target = storage.local_path(self.uri)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with gc_lock(self.uri.rsplit("/", 2)[0]):
                self.out.rename(target)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
            if not (target / MANIFEST).is_file():
                raise ArtifactError(f"{target} is in the way and no artifact: move it elsewhere") from None

    def _commit_remote(self, names: Mapping[str, FileEntry], manifest: Manifest, text: bytes) -> None:
        base = storage.join(self.uri, manifest.base)
        with ThreadPoolExecutor(UPLOADS) as pool:
            list(pool.map(lambda name: storage.upload(self.out / name, storage.join(base, name)), names))
        storage.put_new(storage.join(self.uri, MANIFEST), text)


def _content_digest(entries: Mapping[str, FileEntry]) -> str:
    return storage.sha256(canonical_json({name: entry.sha256 for name, entry in entries.items()}))


def _reference(value: Artifact | str) -> InputRef:
    return InputRef(digest=_digest(value), uri=value.uri if isinstance(value, Artifact) else None)


def _software() -> dict[str, str]:
    versions = {"python": sys.version.split()[0]}
    for name in SOFTWARE:
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


@contextmanager
def draft(
    store: str, stage: str, version: int, config: Config, inputs: Mapping[str, Artifact | str]
) -> Iterator[Draft]:
    """Open the work on one artifact, alone: a second process with the same key on this machine waits.

    `draft.committed` is the finished artifact where the key is already in the store.

    Raises:
        StorageError: the store cannot be read or written.
    """
    store = storage.absolute(store)
    key = action_key(stage, version, config, inputs)
    uri = place(store, stage, key)
    work = work_root(store) / f"{stage}-{key[:16]}"
    found = done(uri)
    if found:
        _clear(work)
        yield Draft(uri, stage, version, key, config, inputs, work, found)
        return
    with storage.explained(str(work)):
        try:
            work.parent.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise UserError(
                f"{work.parent} cannot be made: there is a file where a folder should be"
            ) from None
    with _locked(work.with_suffix(".lock"), uri):
        new = Draft(uri, stage, version, key, config, inputs, work, done(uri))
        if new.committed is None:
            shutil.rmtree(new.out, ignore_errors=True)
            new.out.mkdir(parents=True)
            new.scratch.mkdir(exist_ok=True)
        yield new
        if new.committed:
            shutil.rmtree(work, ignore_errors=True)


def _clear(work: Path) -> None:
    """Remove what a process killed after its commit left; one that is still there does so itself.

    An institution's paths and reports may lie in its scratch.
    """
    if work.exists():
        with suppress(OSError), work.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(work, ignore_errors=True)


@contextmanager
def gc_lock(store: str, exclusive: bool = False) -> Iterator[None]:
    """Shared: `unirg gc`, which takes it alone for each removal, waits. Of no effect on object storage.

    Who finds a shard there and renews it, or commits what lists it, holds it meanwhile: else gc could look
    before, and remove after.
    """
    if not storage.is_local(store):
        yield
        return
    root = work_root(store)
    root.mkdir(parents=True, exist_ok=True)
    with (root / "gc.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)
        yield


def work_root(store: str) -> Path:
    """Work in progress lies inside a local store (a rename away from its place), else in the cache."""
    if storage.is_local(store):
        return storage.local_path(store) / ".work"
    return cache_root() / "work" / storage.sha256(store.encode())[:16]


@contextmanager
def _locked(file: Path, uri: str) -> Iterator[None]:
    # flock dies with its holder, so a killed run leaves nothing locked. The empty file stays: a lock file
    # that its holder removes can be held by two.
    with file.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"another process is building {uri}: waiting for it", file=sys.stderr, flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def open_all(uris: Mapping[str, str]) -> dict[str, Artifact]:
    """Open artifacts by name, such as the predictions of several systems."""
    return {name: open_artifact(uri) for name, uri in uris.items()}
