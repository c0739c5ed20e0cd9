"""The weights of the model-based metrics: where they come from, where they lie, whether they fit.

Each scorer reads one directory, `<weights>/<scorer>/`, written by `unirg weights fetch` from the original
public checkpoints (`weights_fetch.py`) or by the training of the toy scorers; `source.json` in it says which.
Only safetensors are read here: nothing that a hub or a mirror serves runs as code.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unirg import artifact, storage
from unirg.config import canonical_json
from unirg.errors import UserError
from unirg.metrics.weights_sources import SOURCES

if TYPE_CHECKING:
    import torch

RECORD = "source.json"
"""Where a scorer's files came from; no part of its identity."""
_FETCH = "unirg weights fetch"
STAGE = "weights"
"""The stage whose artifact holds the weights of the toy scorers."""


def default_root() -> Path:
    """Where weights lie if nothing is named, and where `unirg weights fetch` puts them."""
    named = os.environ.get("UNIRG_WEIGHTS", "")
    return storage.local_path(named) if named and storage.is_local(named) else _cache() / "weights"


def _cache() -> Path:
    return artifact.cache_root().absolute()


def local(source: str = "") -> Path:
    """The local directory that holds `<scorer>/...`, downloaded where it is remote.

    Args:
        source: a directory, a prefix of object storage, or the URI of an artifact of stage `weights`;
            empty: `$UNIRG_WEIGHTS`, else a folder of the cache.

    Raises:
        UserError: nothing is there, it cannot be reached, or what came is not what its record says.
    """
    source = source or os.environ.get("UNIRG_WEIGHTS") or str(default_root())
    if storage.is_local(source):
        path = storage.local_path(source)
        manifest = (path / artifact.MANIFEST).is_file()
        return artifact.open_artifact(source, STAGE).directory if manifest else path
    with storage.explained(source):
        fs, prefix = storage.open_fs(source)
        # s3fs raises for no missing prefix, it lists nothing.
        found = fs.find(prefix, detail=True) if fs.exists(prefix) else {}
    files = {name[len(prefix.rstrip("/")) :].strip("/"): info for name, info in found.items()}
    if artifact.MANIFEST in files:
        return artifact.open_artifact(source, STAGE).directory
    if not any(name.split("/")[0] in SOURCES for name in files):
        raise UserError(f"no weights at {source}: expected are folders such as chexbert/, filled by {_FETCH}")
    return _downloaded(source, files)


def _downloaded(source: str, files: Mapping[str, Mapping[str, object]]) -> Path:
    # Another content gives another listing, and so another copy: an old one is never served for a new one.
    listing = {name: [info.get("size"), str(info.get("ETag", ""))] for name, info in files.items()}
    key = storage.sha256(canonical_json({"source": source.rstrip("/"), "files": listing}))[:16]
    target = _cache() / "weights-from" / key
    with alone(target):
        if not target.is_dir():
            with whole(target) as work:
                _download(source, files, work)
    return target


def _download(source: str, names: Iterable[str], work: Path) -> None:
    for name in names:
        if ".." in name.split("/"):
            raise UserError(f"{source} holds an object named {name}: no file of a scorer is called so")
        storage.download(storage.join(source, name), work / name)
    for scorer in sorted({name.split("/")[0] for name in names}):
        record = read_record(work / scorer)
        if record.get("identity", "") not in ("", identity(work / scorer)):
            raise UserError(
                f"{storage.join(source, scorer)} is altered: its files are not those that its {RECORD} "
                f"records; put them there anew, from {_FETCH} {scorer}"
            )


@contextmanager
def alone(target: Path) -> Iterator[None]:
    """Work on `target` while no other process does; a second one waits."""
    with storage.explained(str(target.parent)):
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise UserError(f"{target.parent} cannot be made: there is a file in its way") from None
        # flock dies with its holder; the empty file stays (a lock file that is removed can be held by two).
        with target.with_name(f".{target.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


@contextmanager
def scratch(target: Path, name: str) -> Iterator[Path]:
    """An empty directory beside `target`, gone afterwards; what a killed process left goes first."""
    path = target.with_name(f".{target.name}.{name}")
    shutil.rmtree(path, ignore_errors=True)
    try:
        path.mkdir()
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@contextmanager
def whole(target: Path) -> Iterator[Path]:
    """A directory to fill, which becomes `target` at the end, or nothing does; only within `alone`.

    Where the same files are there already, only the record of their source is replaced.
    """
    with scratch(target, "work") as work, scratch(target, "old") as old:
        yield work
        for path in work.rglob("*"):
            if path.is_file():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
        if target.is_dir() and identity(target) == identity(work):
            if (work / RECORD).is_file():
                (work / RECORD).replace(target / RECORD)
            return
        if target.is_dir():
            target.rename(old / target.name)
        work.rename(target)


def read_record(directory: Path) -> dict[str, Any]:
    """What `source.json` says of a scorer's directory; empty where there is none to read."""
    try:
        found = json.loads((directory / RECORD).read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def listing(root: Path) -> Iterator[str]:
    """A line on each scorer: its identity, source and licences, or the command that gets it."""
    for scorer, sources in SOURCES.items():
        directory = root / scorer
        record = read_record(directory)
        licences = record.get("licences") or {}
        if not directory.is_dir():
            licences = {source.repository: source.licence for source in sources}
            state = f"missing; get it with: {_command(directory)}"
        elif record.get("identity", "") not in ("", found := identity(directory)):
            state = f"altered since it was fetched; get it anew with: {_command(directory)}"
        else:
            state = f"{found[:16]}, from {record.get('source', 'an unknown source')}"
        under = "; ".join(f"{repository}: {licence}" for repository, licence in licences.items())
        yield f"{scorer}: {state}" + (f" ({under})" if under else "")


def require(directory: Path, scorer: str, files: Sequence[str]) -> None:
    """Refuse a scorer's directory that lacks one of its files.

    Raises:
        UserError: a file is missing or empty; it names the file, its source, licence, and the command.
    """
    for name in files:
        path = directory / name
        if path.is_file() and path.stat().st_size:
            continue
        state = "is empty" if path.is_file() else "is missing"
        raise UserError(f"{path} {state}: {_origin(scorer, name)}get it with: {_command(directory)}")


def _command(directory: Path) -> str:
    elsewhere = "" if directory.parent == default_root() else f" --to {directory.parent}"
    return f"{_FETCH} {directory.name}{elsewhere}"


def _origin(scorer: str, name: str) -> str:
    sources = SOURCES.get(scorer, ())
    inside = [source for source in sources if source.folder and name.startswith(f"{source.folder}/")]
    return "".join(
        f"it is made of {', '.join(source.files)} of {source.page} (licence: {source.licence}); "
        for source in (inside or sources)[:1]
    )


def identity(directory: Path) -> str:
    """SHA-256 over names and digests of a scorer's files, wherever they came from.

    Raises:
        UserError: there is no such directory.
    """
    if not directory.is_dir():
        raise UserError(f"{directory} is no directory with weights: get it with {_FETCH} {directory.name}")
    files = {
        path.relative_to(directory).as_posix(): storage.sha256_file(path)
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.name != RECORD
    }
    return storage.sha256(canonical_json(files))


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file, by name, on the CPU.

    Raises:
        UserError: the file is missing, truncated or no safetensors file.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        with storage.explained(str(path)):
            return load_file(path)
    except (SafetensorError, FileNotFoundError) as error:
        raise UserError(
            f"cannot read the weights in {path} ({error}): get them anew with {_FETCH} {path.parent.name}"
        ) from error


def fit(
    module: torch.nn.Module,
    tensors: Mapping[str, torch.Tensor],
    origin: Path | str,
    ignore: Sequence[str] = (),
) -> None:
    """Put the tensors into the module, each and every one; a module's own dtype stays.

    Args:
        origin: where the tensors were read, for the error.
        ignore: prefixes of names that the file may have and the module needs not.

    Raises:
        UserError: a tensor is missing, left over, of another shape, or holds NaN or infinities.
    """
    wanted = module.state_dict()
    given = {
        name: tensor
        for name, tensor in tensors.items()
        if name in wanted or not name.startswith(tuple(ignore))
    }
    wrong = [f"{name} is missing" for name in wanted if name not in given]
    wrong += [f"{name} is left over" for name in given if name not in wanted]
    wrong += [
        f"{name} is {tuple(given[name].shape)}, not {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in given and given[name].shape != tensor.shape
    ]
    wrong += [f"{name} is not finite" for name, tensor in given.items() if not bool(tensor.isfinite().all())]
    if wrong:
        raise UserError(
            f"the weights in {origin} are not of this architecture: {len(wrong)} tensors do not fit "
            f"({wrong[0]}); fetch them again with {_FETCH}, or name a complete directory"
        )
    module.load_state_dict(given)
