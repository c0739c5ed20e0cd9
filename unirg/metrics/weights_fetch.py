"""`unirg weights fetch`: original checkpoints from the hub or a mirror -> a scorer's directory.

A mirror is for sites that reach no hub: a folder, a prefix of object storage, or one tar archive, with the
original files in folders named as the hub's repositories (`hf download ID --local-dir MIRROR/ID` makes one).
Files are checked against the digest that their page states, else against that of the first fetch, which is
recorded in `source.json`; so is everything else that says where the weights are from.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Protocol

from unirg import storage
from unirg.errors import UserError
from unirg.metrics import weights
from unirg.metrics.weights_convert import NOT_ORIGINAL, copy, to_safetensors, unpack
from unirg.metrics.weights_sources import SOURCES, Source

TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "spm.model",
)
_VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json")
"""One of them makes a tokenizer."""
BERTSCORE = {"layer": 5, "baseline_f1": 0.8473319}
"""bert-score's layer and English baseline for distilroberta-base, which ReXrank uses (METRICS.md)."""


def known(names: Sequence[str]) -> list[str]:
    """The scorers of these names; of none, all.

    Raises:
        UserError: there is no such scorer; it names the nearest.
    """
    for name in names:
        if name not in SOURCES:
            near = difflib.get_close_matches(name, SOURCES, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(SOURCES)}"
            raise UserError(f"no weights are named {name}: {hint}")
    return list(dict.fromkeys(names)) or list(SOURCES)


def pages(name: str) -> list[str]:
    return [source.page for source in SOURCES[name]]


def fetch(name: str, destination: Path, source: str | None = None, accept: bool = False) -> Path:
    """Make `<destination>/<name>/` of the original public files, whole or not at all.

    Args:
        name: of the scorer.
        source: a mirror: folder, prefix of object storage, or tar archive; None: the hub.
        accept: take files whose digest is not the stated or recorded one.

    Raises:
        UserError: a file cannot be had, is not the one that is stated or was fetched first, is damaged, or
            cannot be written.
    """
    known([name])
    target = destination / name
    with weights.alone(target):
        record = weights.read_record(target)
        if target.exists() and not isinstance(record.get("files"), dict):
            raise UserError(f"{target} is in the way: it was not fetched; move it, or name another --to")
        with weights.scratch(target, "originals") as aside, weights.whole(target) as work:
            place = _Mirror(source, aside) if source else _Hub(name)
            originals = _Originals(place, {} if accept else record.get("files", {}), accept)
            for part in SOURCES[name]:
                _build(originals, part, work / part.folder, aside)
            if name == "bertscore":
                (work / "bertscore.json").write_text(json.dumps(BERTSCORE))
            made = {
                "scorer": name,
                "source": place.name,
                "files": originals.digests,
                "licences": originals.licences,
                "converted_by": f"unirg {metadata.version('unirg')}",
                "identity": weights.identity(work),
                "fetched_at": datetime.now(UTC).isoformat(timespec="seconds"),
            }
            (work / weights.RECORD).write_text(json.dumps(made, indent=1))
    return target


def _build(originals: _Originals, part: Source, folder: Path, aside: Path) -> None:
    for name, path in originals.take(part).items():
        if name.endswith(".pth"):
            to_safetensors(path, folder / "model.safetensors")
        elif name.endswith(".tar.gz"):
            encoder = _radgraph(path, folder, aside)
            _build(originals, Source(encoder, ("config.json",), "its page's"), folder / "encoder", aside)
        else:
            copy(path, folder / name)


def _radgraph(archive: Path, folder: Path, aside: Path) -> str:
    """Unpack and convert an AllenNLP archive; the hub id of the encoder that it names."""
    wanted = re.compile(r"config\.json|weights\.th|vocabulary/[^/]+\.txt")
    found = aside / "archive"
    unpack(archive, found, lambda name: bool(wanted.fullmatch(name)))
    files = {path.relative_to(found).as_posix() for path in found.rglob("*") if path.is_file()}
    if not {"config.json", "weights.th"} < files:
        raise UserError(f"{archive} lacks config.json, weights.th or vocabulary/*.txt: {NOT_ORIGINAL}")
    try:
        config = json.loads((found / "config.json").read_bytes())
        encoder = config["model"]["embedder"]["token_embedders"]["bert"]["model_name"]
    except (ValueError, KeyError, TypeError):
        encoder = None
    if not isinstance(encoder, str) or not _ID.fullmatch(encoder) or ".." in encoder:
        raise UserError(
            f"config.json in {archive} names no encoder (model.embedder.token_embedders.bert.model_name, "
            f"an id of the hub): {NOT_ORIGINAL}"
        )
    for name in sorted(files - {"weights.th"}):
        copy(found / name, folder / name)
    to_safetensors(found / "weights.th", folder / "model.safetensors")
    return encoder


_ID = re.compile(r"\w[\w.-]{0,95}(/\w[\w.-]{0,95})?")


class _Place(Protocol):
    """Where original files are had."""

    name: str

    def files(self, source: Source, wanted: Sequence[str]) -> dict[str, Path]:
        """Local copies of those of the wanted files that are there, by name."""

    def stated(self, path: Path) -> str | None:
        """The SHA-256 that the place itself gives a file, if it does."""


@dataclass
class _Originals:
    """Files as their authors published them, checked one by one."""

    place: _Place
    recorded: Mapping[str, str]
    accept: bool
    digests: dict[str, str] = field(default_factory=dict)
    licences: dict[str, str] = field(default_factory=dict)

    def take(self, source: Source) -> dict[str, Path]:
        """Local paths of a source's files, by name."""
        found = self.place.files(source, (*source.files, *(TOKENIZER if source.tokenizer else ())))
        missing = [name for name in source.files if name not in found]
        if source.tokenizer and not any(name in found for name in _VOCABULARIES):
            missing.append(_VOCABULARIES[0])
        if missing:
            raise UserError(
                f"{self.place.name} has no {missing[0]} of {source.repository}: put it into a folder named "
                f"{source.repository} there; its page is {source.page}"
            )
        for name, path in found.items():
            self.digests[f"{source.repository}/{name}"] = self._checked(source, name, path)
        self.licences[source.repository] = source.licence
        return found

    def _checked(self, source: Source, name: str, path: Path) -> str:
        digest = storage.sha256_file(path)
        if self.place.stated(path) not in (None, digest):
            raise UserError(f"{path} is damaged (its SHA-256 is not the hub's): delete it and fetch again")
        first = self.recorded.get(f"{source.repository}/{name}")
        wanted = first or source.digests.get(name)
        if wanted and digest != wanted and not self.accept:
            by = "the first fetch recorded" if first else f"{source.page} states"
            raise UserError(
                f"{name} of {source.repository} from {self.place.name} is not the file that is known: its "
                f"SHA-256 is {digest}, {by} {wanted}; if you know why, take it with --accept"
            )
        return digest


class _Hub:
    """The Hugging Face hub, through its own client: HF_TOKEN, HF_ENDPOINT, HF_HOME and proxies as there."""

    def __init__(self, scorer: str) -> None:
        self.name = "the hub"
        self._scorer = scorer

    def files(self, source: Source, wanted: Sequence[str]) -> dict[str, Path]:
        from huggingface_hub import constants, snapshot_download

        with storage.explained(f"the hub's cache, {constants.HF_HUB_CACHE}"), self._explained(source):
            folder = Path(snapshot_download(source.repository, allow_patterns=list(wanted)))
        return {name: folder / name for name in wanted if (folder / name).is_file()}

    def stated(self, path: Path) -> str | None:
        # The client keeps a large file under the SHA-256 that the hub gave for it.
        kept = path.resolve().name
        return kept if re.fullmatch("[0-9a-f]{64}", kept) else None

    @contextmanager
    def _explained(self, source: Source) -> Iterator[None]:
        import httpx
        from huggingface_hub import errors

        mirror = (
            f"or bring its files into a folder DIR/{source.repository} and run: "
            f"unirg weights fetch {self._scorer} --from DIR"
        )
        try:
            yield
        except errors.GatedRepoError as error:
            raise UserError(
                f"access to {source.repository} is granted on {source.page}: ask for it there and set "
                f"HF_TOKEN, {mirror}"
            ) from error
        except errors.RepositoryNotFoundError as error:
            raise UserError(
                f"the hub shows no {source.repository} to this user: set HF_TOKEN if {source.page} is private"
                f", {mirror}"
            ) from error
        except (
            errors.HfHubHTTPError,
            errors.LocalEntryNotFoundError,
            errors.XetDownloadError,
            errors.HFValidationError,
            httpx.HTTPError,
            ConnectionError,
        ) as error:
            first = error.__cause__ or error  # the client looks into its cache before it gives up
            status = getattr(getattr(first, "response", None), "status_code", None)
            why = f"HTTP {status}" if status else type(first).__name__
            raise UserError(
                f"cannot get {source.repository} from the hub ({why}): check the network, HTTPS_PROXY and "
                f"HF_ENDPOINT, {mirror}"
            ) from error


class _Mirror:
    """A folder, prefix or archive with the original files in folders named as the hub's repositories."""

    def __init__(self, source: str, aside: Path) -> None:
        self.name = source
        self._aside = aside
        self._root = source
        with storage.explained(source):
            fs, path = storage.open_fs(source)
            if fs.isfile(path):
                self._root = str(self._unpacked(source))
                fs, path = storage.open_fs(self._root)
            found = fs.find(path) if fs.isdir(path) else []
        self._names = {name[len(path.rstrip("/")) :].strip("/") for name in found}
        if not self._names:
            raise UserError(f"no files at {source}: name a folder, a prefix or a tar archive with {_LAYOUT}")

    def _unpacked(self, source: str) -> Path:
        archive = storage.local_path(source) if storage.is_local(source) else self._aside / "mirror.tar"
        if not storage.is_local(source):
            storage.download(source, archive)
        unpack(archive, self._aside / "mirror", lambda name: True)
        return self._aside / "mirror"

    def files(self, source: Source, wanted: Sequence[str]) -> dict[str, Path]:
        # The checkpoints' names are theirs alone, so they may lie at the top.
        folders = [source.repository, source.repository.split("/")[-1], *([] if source.tokenizer else [""])]
        for folder in folders:
            there = {name: f"{folder}/{name}".strip("/") for name in wanted}
            if there[source.files[0]] in self._names:
                return {name: self._local(at) for name, at in there.items() if at in self._names}
        return {}

    def _local(self, name: str) -> Path:
        if storage.is_local(self._root):
            return storage.local_path(self._root) / name
        copied = self._aside / "downloaded" / name
        storage.download(storage.join(self._root, name), copied)
        return copied

    def stated(self, path: Path) -> str | None:
        return None


_LAYOUT = "the original files in folders named as their repositories, such as distilbert/distilroberta-base/"
