"""ReXrank's test files: one JSON of studies to report, with the image that every model is shown.

    ReXRank_{IUXray,MIMICCXR,CheXpertPlus,gradient}_{test,valid}.json

The file's name gives corpus and split. Ids, `key_image_path` and the other paths are kept verbatim, since a
submission is the same dict; only MIMIC-CXR's leading slash, which means the images' folder, is taken off.

`key_image_path` is the benchmark's choice, so it is the study's key image whatever its label: it stands first
and counts as frontal (by label IU X-ray's is a lateral in 3 studies of 886 and unknown in 68, MIMIC-CXR's in
17 and 123 of 2,347; `relabelled` counts them). The study's other images keep their view, and lose a
projection only where it would put them before the key image.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import pyarrow as pa

from unirg.cohort.corpora import Dropped, jsonstream, lenient, source
from unirg.cohort.views import view_of, views_of
from unirg.errors import UserError
from unirg.study import SAFE_ID, Image, Projection, Split, Study, StudyError, View

LONGEST_PATH = 1024
LONGEST_CONTEXT = 2**20


class _Set(NamedTuple):
    corpus: str
    institution: str
    patient: str
    """A pattern whose group is the patient, found in a study's key or in its key image's path."""


SETS = {
    "iuxray": _Set("rexrank_iu_xray", "indiana", r"(CXR[0-9]+)_.*"),  # no patient is known beyond the study
    "mimiccxr": _Set("rexrank_mimic_cxr", "bidmc", r"(?:.*?[/_])?(p[0-9]{8})(?:[/_].*)?"),
    "chexpertplus": _Set("rexrank_chexpert_plus", "stanford", r"(?:.*/)?(patient[0-9]+)[/_].*"),
    "gradient": _Set("rexrank_rexgradient", "rexgradient", r"p(.+?)_a.*_s.*"),
}
SPLITS: dict[str, Split] = {"test": "test", "valid": "validate"}

_FILE = re.compile(r"rexrank_([a-z]+)_(test|valid)\.json", re.IGNORECASE)
_RANK: dict[Projection | None, int] = {"PA": 0, "AP": 1, None: 2}
_AGE = re.compile(r"[\s.]*Age:([^.\n]{0,16})")
_GENDER = re.compile(r"[\s.]*(?:Gender|Sex):([^.\n]{0,16})")
_INDICATION = re.compile(r"[\s.]*Indication:")
_COMPARISON = re.compile(r"(?<!\w)Comparison:")


class Context(NamedTuple):
    """What ReXrank's `context` gives to a model; every part may be missing."""

    age: str | None = None
    sex: str | None = None
    indication: str | None = None
    comparison: str | None = None


class ReXrank(source.ImageFiles):
    """One test file and the images that it names."""

    public = True

    def __init__(self, path: str, images: str = "") -> None:
        """`path` is the JSON, by path or URI; its images lie below `images`, by default its own folder.

        Raises:
            UserError: the file's name is none of ReXrank's.
        """
        folder, slash, self._file = path.rpartition("/")
        self._folder = folder or slash or "."
        self._images = images or self._folder
        name = _FILE.fullmatch(self._file)
        if name is None or name[1].lower() not in SETS:
            raise UserError(
                f"{path}: not named as ReXrank names its test files; rename it to one of "
                "ReXRank_{IUXray,MIMICCXR,CheXpertPlus,gradient}_{test,valid}.json"
            )
        self._set = SETS[name[1].lower()]
        self._split: Split = SPLITS[name[2].lower()]
        self._label = path
        self.name = self._set.corpus
        self.unread: Counter[str] = Counter()
        """By reason, values that the latest pass of `records` could not read in studies that it kept."""
        self.relabelled: Counter[View] = Counter()
        """Key images that the latest pass took for frontal, by the view that the file gives them."""

    def fingerprint(self) -> str:
        named: set[str] = set()
        for _, record in self._records():
            if isinstance(record, dict):
                named.update(uri for path in _paths(record) if (uri := self._uri(path)))
        table = source.listing(self._folder, self._file.__eq__, maxdepth=1)
        images = source.listing(self._images, named.__contains__, required=False)
        both = [source.fingerprint(self._folder, table), source.fingerprint(self._images, images)]
        return hashlib.sha256("\0".join([self.name, str(self._split), *both]).encode()).hexdigest()

    def records(self) -> Iterator[Study | Dropped]:
        """Every study in the file's order.

        Raises:
            UserError: the file is missing, no JSON, or cut off.
        """
        self.unread, self.relabelled = Counter(), Counter()
        seen: set[str] = set()
        for number, (key, record) in enumerate(self._records(), 1):
            if not re.fullmatch(SAFE_ID, key):
                yield Dropped(f"study-{number}", "unsafe study id")
            elif key in seen:
                yield Dropped(key, "duplicate study id")
            else:
                seen.add(key)
                yield self._study(key, record)

    def fetch(self, image: Image) -> bytes:
        return source.read_image(self._images, image.uri)

    def account(self) -> dict[str, int]:
        unread = {f"not read: {what}": number for what, number in self.unread.items()}
        return unread | {f"key image labelled {view}": number for view, number in self.relabelled.items()}

    def truth(self) -> pa.Table | None:
        return None

    def _records(self) -> Iterator[tuple[str, Any]]:
        try:
            yield from jsonstream.records(self._folder, self._file, self._label)
        except FileNotFoundError:
            raise UserError(f"{self._label}: no such file; check its path or fetch it") from None

    def _study(self, key: str, record: Any) -> Study | Dropped:
        if isinstance(record, jsonstream.Unreadable):
            return Dropped(key, record.reason)
        if not isinstance(record, dict):
            return Dropped(key, "unreadable record")
        if not record.get("key_image_path"):
            return Dropped(key, "no key image")
        if not all(self._uri(path) for path in _paths(record)):
            return Dropped(key, "unsafe image path")
        context = parse_context(record.get("context"))
        if context is None:
            return Dropped(key, "invalid context")
        images, labelled = self._key_first(record)
        unread: Counter[str] = Counter()
        try:
            study = Study.checked(
                corpus=self.name,
                study_id=key,
                patient_id=self._patient(key, str(images[0].uri)),
                institution=self._set.institution,
                split=self._split,
                age=lenient.tried(lenient.age, record.get("age") or context.age, unread),
                sex=lenient.tried(lenient.sex, record.get("sex") or context.sex, unread),
                race=lenient.text(record.get("race")),
                images=images,
                indication=context.indication,
                comparison=context.comparison,
                findings=lenient.text(record.get("section_findings")),
                impression=lenient.text(record.get("section_impression")),
            )
        except StudyError as error:
            return Dropped(key, f"invalid {error.field.partition('.')[0]}")
        if labelled != "frontal":
            self.relabelled[labelled] += 1
        self.unread.update(unread)
        return study

    def _key_first(self, record: dict[str, Any]) -> tuple[tuple[Image, ...], View]:
        """The study's images, each once, the key image first, and the view that the file gives it."""
        key, *paths = _paths(record)
        names = _listed(record.get("frontal_lateral"))
        views = dict(zip(reversed(paths), reversed(views_of(names, len(paths))), strict=True))
        sides = _listed(record.get("ap_pa"))
        # CheXpert Plus has the projection apart: of each image, or of the key image alone.
        sided = paths if len(sides) == len(paths) else [key] if len(sides) == 1 else []
        for path, side in zip(sided, sides, strict=False):
            told = view_of(side if isinstance(side, str) else None)
            if views.get(path) == ("frontal", None) and told[0] == "frontal":
                views[path] = told
        labelled, projection = views.pop(key, ("unknown", None))
        images = [Image(view="frontal", projection=projection, uri=self._uri(key))]
        for path in dict.fromkeys(paths):
            if path in views:
                view, side = views[path]
                side = side if _RANK[side] >= _RANK[projection] else None
                images.append(Image(view=view, projection=side, uri=self._uri(path)))
        return tuple(images), labelled

    def _patient(self, key: str, path: str) -> str:
        found = re.fullmatch(self._set.patient, key) or re.fullmatch(self._set.patient, path)
        return found[1] if found else key

    def _uri(self, path: Any) -> str | None:
        """A path of the file as one below the images' folder; None if it leaves it."""
        if not isinstance(path, str) or len(path) > LONGEST_PATH or not path.isprintable():
            return None
        relative = path.removeprefix("/") if self._set == SETS["mimiccxr"] else path
        return relative if source.is_safe(relative) else None


def parse_context(context: Any) -> Context | None:
    """`<context>Age:50-60.Gender:M.Indication: ... .Comparison: ...</context>`; None for what is no text.

    IU X-ray's file has neither the tags nor age and sex. Its `Comparison: None` where a report has none is
    kept, as models are given it. A context without any label is an indication.
    """
    if context is None:
        return Context()
    if not isinstance(context, str) or len(context) > LONGEST_CONTEXT:
        return None
    text = context.strip().removeprefix("<context>").removesuffix("</context>").strip()
    position, head = 0, []
    for label in (_AGE, _GENDER):
        match = label.match(text, position)
        head.append(match[1].strip() if match else None)
        position = match.end() if match else position
    match = _INDICATION.match(text, position)
    start = match.end() if match else position
    second = _COMPARISON.search(text, start)
    indication = text[start : second.start() if second else None].strip()
    if match is None:
        indication = indication.lstrip(". ")
    # Inside the tags a full stop parts the fields; elsewhere it ends the sentence.
    if second and context.lstrip().startswith("<context>"):
        indication = indication.removesuffix(".").rstrip()
    comparison = text[second.end() :].strip() if second else ""
    return Context(
        head[0], head[1], *(part if re.search(r"\w", part) else None for part in (indication, comparison))
    )


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _paths(record: dict[str, Any]) -> list[Any]:
    """The key image's path, then the study's."""
    return [record.get("key_image_path"), *_listed(record.get("image_path"))]
