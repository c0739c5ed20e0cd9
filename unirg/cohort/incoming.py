"""What lies in an institution's incoming folder or bucket: which studies have settled, in which version.

A delivery is a table as `corpora.institution` reads it, with its images below its own folder. The incoming
place is one table, or a folder with any number of deliveries at any depth; of a study that several of them
hold, the one whose table is youngest stands. A table that is replaced in place is a new delivery.

A study is left for next time while its table or one of its images is younger than `settle_seconds`, has
changed between two listings, or is not there yet. Object names may identify a patient: they are compared,
counted, and neither printed nor kept.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime

import pyarrow as pa

from unirg import storage
from unirg.cohort import stage
from unirg.cohort.corpora import Dropped, institution_dicom, source
from unirg.cohort.corpora.institution import Institution
from unirg.cohort.corpora.source import SourceFile
from unirg.cohort.intake import unusable
from unirg.cohort.stage import StageConfig
from unirg.config import canonical_json
from unirg.errors import UserError
from unirg.storage import StorageError
from unirg.study import Image, Study

TABLES = (".csv", ".parquet")


@dataclass(frozen=True, slots=True)
class Found:
    """One settled study, as its youngest delivery has it."""

    study: Study
    """Without texts and images."""
    unusable: str | None
    """Why it can be in no cohort, as its table already tells."""
    source: str
    """Keyed digest of its row, its images' names, sizes and versions, and how they would be staged."""
    table: int
    """Which of `Look.tables`."""
    files: tuple[str, ...] = field(repr=False)


@dataclass
class Look:
    """What had settled when somebody looked."""

    config: StageConfig = field(repr=False)
    files: dict[str, SourceFile] = field(repr=False)
    tables: tuple[str, ...] = field(default=(), repr=False)
    """Paths of the settled ones, the oldest first."""
    found: dict[str, Found] = field(default_factory=dict, repr=False)
    """By study id."""
    dropped: list[tuple[str, str]] = field(default_factory=list)
    """(study id or row, reason) of rows that are no study."""
    waiting: int = 0
    """Studies left for next time."""
    tables_waiting: int = 0

    @property
    def digest(self) -> str:
        """Identity of all that had settled: the same event twice has the same."""
        sources = sorted((name, found.source) for name, found in self.found.items())
        return storage.sha256(canonical_json([sources, sorted(self.dropped)]))

    @property
    def used(self) -> set[str]:
        return {*self.tables, *(path for found in self.found.values() for path in found.files)}

    @property
    def watermark(self) -> str:
        """When the youngest object that had settled was modified (ISO 8601, UTC); empty where none had."""
        times = [self.files[path].modified for path in self.used]
        return datetime.fromtimestamp(max(times), UTC).isoformat() if times else ""

    def moved(self) -> set[str]:
        """Objects that were used and are now gone or another version."""
        now = _listing(self.config)
        return {path for path in self.used if now.get(path) != self.files[path]}


def look(
    config: StageConfig,
    settle_seconds: float,
    moving: Collection[str] = (),
    clock: Callable[[], float] = time.time,
) -> Look:
    """List the incoming place, and read the tables that have settled.

    Args:
        moving: objects that are being written, whatever their age says.
        clock: seconds since 1970.

    Raises:
        UserError: there is no such place, no site key, or a settled table cannot be read.
    """
    if config.corpus != "institution" or not config.data:
        raise UserError("what arrives is an institution's: set stage.corpus=institution and stage.data=URI")
    settled_by = clock() - settle_seconds
    seen = Look(config, _listing(config))

    def has_settled(path: str) -> bool:
        file = seen.files.get(path)
        return file is not None and file.modified <= settled_by and path not in moving

    only = _place(config)[1]
    if only and only not in seen.files:
        raise UserError(f"{_label(config)}: its table does not exist: check stage.data, or name its folder")
    tables = [path for path in seen.files if _is_table(path) and only in ("", path)]
    settled = [path for path in tables if has_settled(path)]
    seen.tables = tuple(sorted(settled, key=lambda path: (seen.files[path].modified, path)))
    seen.tables_waiting = len(tables) - len(settled)
    waiting: set[str] = set()
    for number, table in enumerate(seen.tables):
        institution = _institution(config, table)
        for record in _records(institution, number, len(seen.tables)):
            if isinstance(record, Dropped):
                if record.reason == institution_dicom.NOT_FOUND:
                    waiting.add(record.study_id)
                else:
                    seen.dropped.append((record.study_id, record.reason))
                continue
            files = tuple(_beside(table, image.uri or "") for image in record.images)
            if not all(map(has_settled, files)):
                waiting.add(record.study_id)
                continue
            waiting.discard(record.study_id)
            found = _found(config, institution, record, number, files, seen.files)
            older = seen.found.setdefault(record.study_id, found)
            if older.unusable or not found.unusable:  # a version that cannot be used replaces nothing
                seen.found[record.study_id] = found
    seen.waiting = len(waiting)
    return seen


class Incoming(source.ImageFiles):
    """Some of the studies that were found, as a corpus to stage."""

    public = False

    def __init__(self, seen: Look, wanted: Collection[str]) -> None:
        self._config, self._tables = seen.config, seen.tables
        self._wanted = {name: seen.found[name].table for name in wanted}
        sources = sorted((name, seen.found[name].source) for name in wanted)
        self._fingerprint = storage.sha256(canonical_json(sources))
        self._removed: Counter[str] = Counter()
        self.name = seen.config.institution.name

    def __repr__(self) -> str:
        return f"Incoming({self.name}, {len(self._wanted)} studies)"

    def fingerprint(self) -> str:
        return self._fingerprint

    def records(self) -> Iterator[Study | Dropped]:
        self._removed = Counter()
        for number in sorted(set(self._wanted.values())):
            table = self._tables[number]
            institution = _institution(self._config, table)
            before: Counter[str] = Counter()
            for record in institution.records():
                # The first row with an id is the study; a later one was dropped by the institution.
                if isinstance(record, Study) and self._wanted.get(record.study_id) == number:
                    self._removed += institution.removed - before
                    yield _rooted(record, table)
                before = institution.removed.copy()

    def fetch(self, image: Image) -> bytes:
        return source.read_image(_place(self._config)[0], image.uri, _label(self._config))

    def account(self) -> dict[str, int]:
        return {f"removed: {kind}": number for kind, number in self._removed.items()}

    def truth(self) -> pa.Table | None:
        return None


def _records(institution: Institution, number: int, tables: int) -> Iterator[Study | Dropped]:
    """Its records; an error tells which table it is, as its name must not be shown."""
    try:
        yield from institution.records()
    except StorageError:
        raise
    except UserError as error:
        if tables == 1:
            raise
        raise UserError(f"{error} (table {number + 1} of {tables} that have settled, by age)") from None


def _found(
    config: StageConfig,
    institution: Institution,
    record: Study,
    table: int,
    paths: tuple[str, ...],
    files: dict[str, SourceFile],
) -> Found:
    versions = [(path, files[path].size, files[path].version) for path in paths]
    parts = [record.model_dump(mode="json"), versions, config.size, config.resize, stage.VERSION]
    light = Study(
        corpus=record.corpus,
        study_id=record.study_id,
        patient_id=record.patient_id,
        institution=record.institution,
        acquired_at=record.acquired_at,
        acquired_basis=record.acquired_basis,
    )
    reason = unusable(record, config.reports == "required")
    return Found(light, reason, institution.keyed(canonical_json(parts).decode()), table, paths)


def _listing(config: StageConfig) -> dict[str, SourceFile]:
    root, _ = _place(config)
    # A bucket from which everything was taken is an empty one; a folder is there or its name is wrong.
    files = source.listing(root, lambda path: True, _label(config), required=storage.is_local(root))
    return {file.path: file for file in files}


def _place(config: StageConfig) -> tuple[str, str]:
    """(the folder to list, the only table to read of it; '' = all)."""
    if not _is_table(config.data):
        return config.data, ""
    folder, slash, name = config.data.rpartition("/")
    return folder or slash or ".", name


def _is_table(path: str) -> bool:
    name = path.rpartition("/")[2].lower()
    return name.endswith(TABLES) and not name.startswith(".")


def _institution(config: StageConfig, table: str) -> Institution:
    site = config.institution
    uri = storage.join(_place(config)[0], table)
    return Institution.from_environment(uri, site.name, unknown_view=site.unknown_view, gate=site.gate)


def _label(config: StageConfig) -> str:
    return f"institution {config.institution.name}"


def _beside(table: str, path: str) -> str:
    """A path that is relative to a table's folder, relative to the incoming place."""
    folder = table.rpartition("/")[0]
    return f"{folder}/{path}" if folder else path


def _rooted(study: Study, table: str) -> Study:
    images = [image.model_copy(update={"uri": _beside(table, image.uri or "")}) for image in study.images]
    return study.model_copy(update={"images": tuple(images)})
