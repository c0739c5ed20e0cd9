"""IU X-ray (Open-i): 3,955 reports of Indiana University, with their radiographs in three public layouts.

Reports come from the Open-i XML archive (`NLMCXR_reports.tgz` or its unpacked `ecgen-radiology/`) or, where
that is absent, from Kaggle's `indiana_reports.csv`. Images are found anywhere below the root:

    Kaggle           1000_IM-0003-1001.dcm.png      full resolution
    Open-i           CXR1000_IM-0003-1001.png       512 pixels wide
    R2Gen, ReXrank   CXR1000_IM-0003/0.png          512 pixels wide, the id replaced by an index

A view comes from `indiana_projections.csv` (the DICOM headers call 1,368 laterals PA). An R2Gen index counts
the study's sorted image ids where the study has two (right for all 1,624 such images in ReXrank's files); of
studies with more, R2Gen kept two that cannot be told. An id without projection gets the view that the
numbers at its end usually mean (`USUAL_VIEW`).

The corpus has no splits of its own. With ReXrank's files of it (R2Gen's split) below the root, their studies
test and validate and all others train: a policy that trains on it has not seen what ReXrank tests.
"""

from __future__ import annotations

import gzip
import re
import tarfile
import xml.etree.ElementTree as ET
import zlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import pyarrow as pa

from unirg.cohort.corpora import Dropped, jsonstream, source
from unirg.cohort.corpora.source import SourceFile
from unirg.cohort.views import view_of
from unirg.errors import UserError
from unirg.study import Image, Split, Study, View

ARCHIVE = "NLMCXR_reports.tgz"
REPORTS = "indiana_reports.csv"
PROJECTIONS = "indiana_projections.csv"
SPLITS: dict[str, Split] = {"ReXRank_IUXray_test.json": "test", "ReXRank_IUXray_valid.json": "validate"}
MAX_XML_BYTES = 2**20
"""The largest real report has 15 kB."""
TEXTS = ("comparison", "indication", "findings", "impression")

USUAL_VIEW: dict[str, View] = {
    "1001": "frontal",
    "2001": "lateral",
    "1002": "lateral",
    "3003": "lateral",
    "4004": "frontal",
}
"""View by the end of an image id: right for 5,922 of the 6,333 ids (93.5%) that end so in Kaggle's file."""

_REXRANK = re.compile("CXR([0-9]{1,6})_.+")
_XML = re.compile(r"(?:.*/)?([0-9]{1,6})\.xml")
_KAGGLE = re.compile(r"(?:.*/)?([0-9]{1,6})(_IM-[0-9]+(?:-[0-9]+)*)\.dcm\.png")
# Only study 1 has the extra `_1` in its image ids.
_OPENI = re.compile(r"(?:.*/)?CXR([0-9]{1,6})(?:_1)?(_IM-[0-9]+(?:-[0-9]+)*)\.png")
_R2GEN = re.compile(r"(?:.*/)?CXR([0-9]{1,6})(?:_1)?_IM-[0-9]+(?:-[0-9]+)*/([0-9]{1,2})\.png")
_LAYOUTS = (_KAGGLE, _OPENI, _R2GEN)


class _Report(NamedTuple):
    uid: int
    sections: dict[str, str | None]
    image_ids: tuple[str, ...]
    """As the XML names them; empty from Kaggle's file."""


@dataclass(frozen=True)
class _Film:
    """An image file: `image_id` where its name gives one, else `index` among the study's (R2Gen)."""

    path: str
    image_id: str | None
    index: int | None


class IUXray(source.ImageFiles):
    """The corpus below `root`, a directory or a URI that fsspec opens."""

    name = "iu_xray"
    public = True

    def __init__(self, root: str) -> None:
        self.root = root

    def fingerprint(self) -> str:
        return source.fingerprint(self.root, self._listing())

    def records(self) -> Iterator[Study | Dropped]:
        """Every study by number; one without an image has none, and one with an unreadable report is dropped.

        Raises:
            UserError: no such directory, no reports in it, or an archive or table that cannot be read.
        """
        files = self._listing()
        films = _films(files)
        projections = self._projections(files)
        ids_by_uid: dict[int, set[str]] = defaultdict(set)
        for image_id in projections:
            ids_by_uid[_uid(image_id)].add(image_id)
        splits = self._splits(files)
        seen: set[int] = set()
        for report in self._reports(files):
            if isinstance(report, Dropped):
                yield report
            elif report.uid in seen:
                yield Dropped(f"CXR{report.uid}", "duplicate study id")
            else:
                seen.add(report.uid)
                image_ids = sorted({*report.image_ids, *ids_by_uid[report.uid]})
                yield Study.checked(
                    corpus=self.name,
                    study_id=f"CXR{report.uid}",
                    patient_id=f"CXR{report.uid}",  # the corpus names no patient beyond the study
                    institution="indiana",
                    split=splits.get(report.uid, "train") if splits else None,
                    images=_images(films[report.uid], image_ids, projections),
                    **report.sections,
                )

    def fetch(self, image: Image) -> bytes:
        return source.read_image(self.root, image.uri)

    def account(self) -> dict[str, int]:
        return {}

    def truth(self) -> pa.Table | None:
        return None

    def _listing(self) -> list[SourceFile]:
        return source.listing(self.root, _is_wanted)

    def _reports(self, files: Sequence[SourceFile]) -> Iterator[_Report | Dropped]:
        """Reports by number, from the first of: the XML archive, unpacked XML files, Kaggle's table."""
        unpacked = [file for file in files if _XML.fullmatch(file.path)]
        if archive := _first(files, ARCHIVE):
            yield from self._archived(archive)
        elif unpacked:
            unpacked.sort(key=lambda file: (int(file.name[:-4]), file.path))
            # Too large is read as empty, hence unreadable.
            bounded = [f if f.size <= MAX_XML_BYTES else SourceFile(f.path, 0, "") for f in unpacked]
            for file, data in zip(bounded, source.read_all(self.root, bounded), strict=True):
                yield _parse(file.name, data)
        elif table := _first(files, REPORTS):
            yield from self._tabled(table)
        else:
            raise UserError(
                f"{self.root}: no reports found; looked for {ARCHIVE}, ecgen-radiology/<number>.xml "
                f"and {REPORTS}"
            )

    def _archived(self, archive: SourceFile) -> Iterator[_Report | Dropped]:
        """Reports out of the archive, whose members are read in memory (25 MB) and never extracted."""
        members: list[tuple[int, str, bytes]] = []
        try:
            with (
                source.opened(self.root, archive.path, self.root) as file,
                gzip.open(file) as unzipped,
                tarfile.open(fileobj=unzipped, mode="r|") as tar,
            ):
                for member in tar:
                    name = _XML.fullmatch(member.name)
                    if name and member.isfile():
                        stream = tar.extractfile(member) if member.size <= MAX_XML_BYTES else None
                        members.append((int(name[1]), f"{name[1]}.xml", stream.read() if stream else b""))
                while unzipped.read(MAX_XML_BYTES):
                    pass  # the checksum stands at the end, behind tar's padding
        except (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error):
            members = []
        if not members:
            raise UserError(f"{self.root}: {ARCHIVE} is damaged or holds no report; fetch it again")
        for _, member_name, data in sorted(members, key=lambda member: member[0]):
            yield _parse(member_name, data)

    def _tabled(self, table: SourceFile) -> Iterator[_Report | Dropped]:
        for number, row in self._rows(table, ("uid", *TEXTS)):
            if row is None or not re.fullmatch("[0-9]{1,6}", row["uid"]):
                yield Dropped(f"row-{number}", "unreadable report")
            else:
                yield _Report(int(row["uid"]), {name: row[name] for name in TEXTS}, ())

    def _projections(self, files: Sequence[SourceFile]) -> dict[str, View]:
        """View by image id, as Kaggle's readers labelled it."""
        table = _first(files, PROJECTIONS)
        rows = self._rows(table, ("filename", "projection")) if table else ()
        views: dict[str, View] = {}
        for _, row in rows:
            if row and (name := _KAGGLE.fullmatch(row["filename"])):
                views[_image_id(name)] = view_of(row["projection"])[0]
        return views

    def _splits(self, files: Sequence[SourceFile]) -> dict[int, Split]:
        """Split by study, of those that ReXrank's files name."""
        splits: dict[int, Split] = {}
        for name, split in SPLITS.items():
            if file := _first(files, name):
                label = f"{self.root}: {name}"
                for key, _ in jsonstream.records(self.root, file.path, label):
                    study = _REXRANK.fullmatch(key)
                    if study is None:
                        raise UserError(f"{label}: a key is no study of IU's; fetch the original file again")
                    splits[int(study[1])] = split
        return splits

    def _rows(
        self, table: SourceFile, columns: tuple[str, ...]
    ) -> Iterator[tuple[int, dict[str, str] | None]]:
        label = f"{self.root}: {table.name}"
        for number, row in source.csv_rows(self.root, table.path, label):
            if row is not None and (absent := [column for column in columns if column not in row]):
                raise UserError(f"{label}: no column {', '.join(absent)}; fetch the original file again")
            yield number, row


def _is_wanted(path: str) -> bool:
    name = path.rpartition("/")[2]
    return name in (ARCHIVE, REPORTS, PROJECTIONS, *SPLITS) or any(
        pattern.fullmatch(path) for pattern in (_XML, *_LAYOUTS)
    )


def _first(files: Sequence[SourceFile], name: str) -> SourceFile | None:
    """The file of this name nearest to the root."""
    named = [file for file in files if file.name == name]
    return min(named, key=lambda file: (file.path.count("/"), file.path), default=None)


def _image_id(name: re.Match[str]) -> str:
    return f"CXR{int(name[1])}{name[2]}"


def _uid(image_id: str) -> int:
    return int(image_id[3 : image_id.index("_")])


class _NoDoctype(ET.TreeBuilder):
    """Refuses a document type: no report has one, and entities are declared nowhere else."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise ValueError("document type")


def _parse(name: str, data: bytes) -> _Report | Dropped:
    """One XML report, or its number from the file name and the reason."""
    try:
        root = ET.fromstring(data, ET.XMLParser(target=_NoDoctype()))
    except (ET.ParseError, ValueError, LookupError):
        root = None
    uid = root.find("uId") if root is not None else None
    number = re.fullmatch("CXR([0-9]{1,6})", uid.get("id", "")) if uid is not None else None
    if root is None or number is None:
        return Dropped(f"CXR{int(name.removesuffix('.xml'))}", "unreadable report")
    sections: dict[str, str | None] = dict.fromkeys(TEXTS)
    for element in root.iter("AbstractText"):
        label = element.get("Label", "").lower()
        if label in sections:
            sections[label] = "".join(element.itertext())
    ids = (_OPENI.fullmatch(f"{element.get('id', '')}.png") for element in root.iter("parentImage"))
    return _Report(int(number[1]), sections, tuple(_image_id(match) for match in ids if match))


def _films(files: Sequence[SourceFile]) -> dict[int, list[_Film]]:
    """Image files by study, the best layout first, then by path."""
    films: dict[int, list[_Film]] = defaultdict(list)
    for layout in _LAYOUTS:
        for file in files:
            if match := layout.fullmatch(file.path):
                known = layout is not _R2GEN
                film = _Film(file.path, _image_id(match) if known else None, None if known else int(match[2]))
                films[int(match[1])].append(film)
    return films


def _images(films: Sequence[_Film], image_ids: Sequence[str], views: dict[str, View]) -> tuple[Image, ...]:
    """A study's images by id, each radiograph once, from the best layout that holds it.

    An R2Gen file whose radiograph cannot be told might repeat one, so it counts only where the study has
    no other image; its view is known only if all the study's radiographs share one.
    """
    identified: dict[str, _Film] = {}
    nameless: dict[int, _Film] = {}
    for film in films:
        image_id = film.image_id
        if film.index is not None and len(image_ids) == 2 and film.index < 2:
            image_id = image_ids[film.index]
        if image_id is not None:
            identified.setdefault(image_id, film)
        elif film.index is not None:
            nameless.setdefault(film.index, film)
    if identified:
        return tuple(
            Image(view=_view(image_id, views), uri=film.path) for image_id, film in sorted(identified.items())
        )
    shared = {_view(image_id, views) for image_id in image_ids}
    view: View = shared.pop() if len(shared) == 1 else "unknown"
    return tuple(Image(view=view, uri=film.path) for _, film in sorted(nameless.items()))


def _view(image_id: str, views: dict[str, View]) -> View:
    return views.get(image_id) or USUAL_VIEW.get(image_id.partition("_IM-")[2].partition("-")[2], "unknown")
