"""ReXGradient-160K: 160,000 studies with 16-bit PNGs, as its owners ship them (gated).

    metadata/{train,valid,test}_metadata_view_position.json    reports, a dict by study (`jsonstream`)
    deid_png/<patient>/.../<instance>.png                      images, unpacked, or
    deid_png.part00 ...                                        the archive in parts (`parts`)

Where `deid_png/` is there, parts beside it are not looked at. A study's id is its key, which
(`p<PatientID>_a<AccessionNumber>_s<StudyInstanceUid>`) holds its patient's where the record has no PatientID.
The owners' split is kept. What the formats of dates and ages are is not documented, so they are read
leniently (`lenient`), and so is a list of views that is not parallel to the images (`views.views_of`).
"""

from __future__ import annotations

import posixpath
import re
from collections import Counter
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import pyarrow as pa

from unirg import storage
from unirg.cohort.corpora import Dropped, UnreadableImage, jsonstream, lenient, source
from unirg.cohort.corpora.parts import Parts
from unirg.cohort.views import views_of
from unirg.errors import UserError
from unirg.study import SAFE_ID, Image, Split, Study, StudyError

METADATA: dict[Split, str] = {
    "train": "metadata/train_metadata_view_position.json",
    "validate": "metadata/valid_metadata_view_position.json",
    "test": "metadata/test_metadata_view_position.json",
}
IMAGES = "deid_png"
LONGEST_PATH = 1024
TEXTS = ("indication", "comparison", "findings", "impression")

_KEY = re.compile(r"p(.+?)_a.*_s.*")
_RANK = {("frontal", "PA"): 0, ("frontal", "AP"): 1, ("frontal", None): 2}


class ReXGradient(source.ImageFiles):
    """The corpus below `root`, a directory or a URI that fsspec opens; one of its splits is enough."""

    name = "rexgradient"
    public = True

    def __init__(self, root: str, cache: str = "") -> None:
        """`cache` is the local folder for what is made of an archive in parts; empty: `$UNIRG_CACHE`."""
        self.root = root
        self.cache = cache
        self.unread: Counter[str] = Counter()
        """By reason, values that the latest pass of `records` could not read in studies that it kept (a date,
        an age, a sex, a list of views), and members that the archive's reader refused."""

    def fingerprint(self) -> str:
        return source.fingerprint(self.root, source.listing(self.root, _is_wanted))

    def records(self) -> Iterator[Study | Dropped]:
        """Every study in the files' order, train before validate before test.

        An archive in parts is made readable first (`Parts.prepare`).

        Raises:
            UserError: no metadata, a file that is no JSON or is cut off, or a damaged archive.
        """
        self.unread = Counter()
        if self._archive:
            self.unread.update(
                {f"archive: {reason}": count for reason, count in self._archive.prepare().items()}
            )
        seen: set[str] = set()
        found = False
        for split, path in METADATA.items():
            try:
                for number, (key, record) in enumerate(
                    jsonstream.records(self.root, path, self._label(path)), 1
                ):
                    found = True
                    if not re.fullmatch(SAFE_ID, key):
                        yield Dropped(f"{split}-{number}", "unsafe study id")
                    elif key in seen:
                        yield Dropped(key, "duplicate study id")
                    else:
                        seen.add(key)
                        yield self._study(key, record, split)
            except FileNotFoundError:
                continue
        if not found:
            raise UserError(f"{self.root}: no study found; looked for {', '.join(METADATA.values())}")

    def fetch(self, image: Image) -> bytes:
        if self._archive is None:
            return source.read_image(self.root, image.uri)
        if image.uri is None or not source.is_safe(image.uri):
            raise UnreadableImage("not a path below the corpus")
        return self._archive.read(image.uri)

    def account(self) -> dict[str, int]:
        return {f"not read: {what}": number for what, number in self.unread.items()}

    def truth(self) -> pa.Table | None:
        return None

    def _label(self, path: str) -> str:
        return f"{self.root}: {path}"

    @cached_property
    def _archive(self) -> Parts | None:
        """The archive in parts, unless it was unpacked."""
        with storage.explained(self.root):
            fs, base = storage.open_fs(self.root)
            if fs.isdir(f"{base}/{IMAGES}"):
                return None
        return Parts.found(self.root, IMAGES, self.cache)

    def _study(self, key: str, record: Any, split: Split) -> Study | Dropped:
        if isinstance(record, jsonstream.Unreadable):
            return Dropped(key, record.reason)
        if not isinstance(record, dict):
            return Dropped(key, "unreadable record")
        paths, names = _listed(record.get("ImagePath")), _listed(record.get("ImageViewPosition"))
        uris = [_uri(path) for path in paths if path is not None]
        if None in uris:
            return Dropped(key, "unsafe image path")
        unread: Counter[str] = Counter()
        when = lenient.tried(lenient.acquired, record.get("StudyDate"), unread)
        named = _KEY.fullmatch(key)
        if paths and len(names) != len(paths):
            unread["views not parallel to images"] += 1
        try:
            study = Study.checked(
                corpus=self.name,
                study_id=key,
                patient_id=record.get("PatientID") or (named[1] if named else key),
                institution=self.name,
                split=split,
                acquired_at=when and when[0],
                acquired_basis=when and when[1],
                age=lenient.tried(lenient.age, record.get("PatientAge"), unread),
                sex=lenient.tried(lenient.sex, record.get("PatientSex"), unread),
                images=_images(paths, names),
                **{field: lenient.text(record.get(field.capitalize())) for field in TEXTS},
            )
        except StudyError as error:
            return Dropped(key, f"invalid {error.field.partition('.')[0]}")
        self.unread.update(unread)
        return study


def _is_wanted(path: str) -> bool:
    return path in METADATA.values() or path.startswith((f"{IMAGES}/", f"{IMAGES}.part"))


def _listed(value: Any) -> list[Any]:
    """A list as it is; a single value, as a table of one image writes it, as one of one."""
    return value if isinstance(value, list) else [] if value is None else [value]


def _uri(path: Any) -> str | None:
    """A path relative to `metadata/` (`../deid_png/x.png`) as one below the root; None if it leaves it."""
    if not isinstance(path, str) or len(path) > LONGEST_PATH or path.startswith("/"):
        return None
    relative = posixpath.normpath(posixpath.join("metadata", path))
    return relative if source.is_safe(relative) and relative.isprintable() else None


def _images(paths: list[Any], names: list[Any]) -> tuple[Image, ...]:
    """Each image once, the key image first: PA, AP, other frontals, the rest, each by path."""
    views: dict[str, Image] = {}
    for path, (view, projection) in zip(paths, views_of(names, len(paths)), strict=True):
        if path is not None and (uri := _uri(path)):
            views.setdefault(uri, Image(view=view, projection=projection, uri=uri))
    ordered = sorted(
        views.values(), key=lambda image: (_RANK.get((image.view, image.projection), 3), image.uri)
    )
    return tuple(ordered)
