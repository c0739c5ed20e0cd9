"""Read a staged cohort: its studies, their images on demand, the previous study, the ground truth."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, ValidationError

from unirg import storage
from unirg.artifact import Artifact, ArtifactError, FileEntry, cache_root, open_artifact, verified
from unirg.errors import UserError
from unirg.study import SCHEMA, Study

SHARDS = "shards"
"""Folder of a store with every cohort's shards."""
INDEX = "cohort.json"
TRUTH = "truth.parquet"
DROPPED = "dropped.parquet"
"""(study_id, reason) of every record that did not become a study."""
DUPLICATES = "duplicates.parquet"
"""`unirg.cohort.duplicates.Duplicate` as rows."""
METADATA = [name for name in SCHEMA.names if name != "images"]
FOOTERS = 128
"""Of shards, kept by a reader: 40 MB. Parsing one takes as long as reading an image."""
DATA = "images.list.element.data"
VIEWS = ["images.list.element.view", "images.list.element.projection", "images.list.element.uri"]


class Shard(BaseModel):
    """One content-addressed Parquet file of studies, shared by every cohort that lists it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sha256: str
    bytes: int
    split: str
    studies: int

    @property
    def file(self) -> str:
        return f"{self.sha256}.parquet"

    @property
    def name(self) -> str:
        return f"{SHARDS}/{self.file}"


class Index(BaseModel):
    """What a cohort consists of."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    corpus: str
    """Its name; of a combined cohort the names of all, joined by `+`, which no name holds."""
    hold_out: tuple[str, ...]
    shards: tuple[Shard, ...]
    dropped: dict[str, int]
    """Records that did not become studies, by reason."""
    account: dict[str, int]
    """What reading the corpus met beside studies: identifiers removed, files passed over."""
    duplicates: dict[str, int]
    """Studies outside the training split that another split holds a near-duplicate of, by kind and split."""

    def counts(self) -> dict[str, int]:
        """The same as the counts of an artifact."""
        counts = Counter({f"dropped.{reason}": number for reason, number in self.dropped.items()})
        for shard in self.shards:
            counts[f"studies.{shard.split}"] += shard.studies
        counts.update({f"met.{what}": number for what, number in self.account.items()})
        counts.update({f"duplicates.{kind}": number for kind, number in self.duplicates.items()})
        return counts


class Cohort:
    """A cohort artifact, opened. Texts and metadata are read at once, images study by study."""

    def __init__(self, artifact: Artifact) -> None:
        self.artifact = artifact
        self._local: dict[str, Path] = {}
        try:
            self.index = Index.model_validate_json(artifact.path(INDEX).read_bytes())
        except ValidationError:
            raise ArtifactError(
                f"{artifact.uri} is a cohort of another version: delete it and stage it again"
            ) from None

    @classmethod
    def open(cls, source: str | Artifact) -> Cohort:
        """Raises: ArtifactError where there is no cohort, or one of another version."""
        return cls(open_artifact(source, "cohort") if isinstance(source, str) else source)

    def shard_path(self, shard: Shard) -> Path:
        """A local copy of a shard, checked against its digest the first time this object reads it."""
        if shard.sha256 not in self._local:
            uri = storage.join(self.artifact.store, shard.name)
            local = storage.local_path(uri) if storage.is_local(uri) else cache_root() / shard.name
            entry = FileEntry(sha256=shard.sha256, bytes=shard.bytes)
            self._local[shard.sha256] = verified(uri, entry, local)
        return self._local[shard.sha256]

    @cached_property
    def _rows(self) -> dict[str, tuple[Study, Shard, int]]:
        """study_id -> (study without image data, its shard, its row there)."""
        rows = {}
        for shard in self.index.shards:
            table = self._file(shard).read(columns=METADATA + VIEWS)
            for row, record in enumerate(table.to_pylist()):
                study = Study.checked(**record)
                rows[study.study_id] = (study, shard, row)
        return rows

    def studies(self, split: str | None = None) -> list[Study]:
        """Studies of a split (all for None) without image data, sorted by (corpus, study_id)."""
        kept = [study for study, _, _ in self._rows.values() if split in (None, study.split)]
        return sorted(kept, key=lambda study: (study.corpus, study.study_id))

    def __getitem__(self, study_id: str) -> Study:
        """The study without image data.

        Raises:
            UserError: the cohort has no such study.
        """
        try:
            return self._rows[study_id][0]
        except KeyError:
            raise UserError(f"cohort {self.artifact.uri} has no study {study_id}") from None

    def with_images(self, study_id: str) -> Study:
        """The study with its images' PNG bytes; reads one row group."""
        study = self[study_id]
        _, shard, row = self._rows[study_id]
        with self._file(shard) as file:
            found = stored_row(file, row, [DATA])["images"]
        images = zip(study.images, found, strict=True)
        return study.model_copy(
            update={"images": tuple(image.model_copy(update={"data": own["data"]}) for image, own in images)}
        )

    def rows(self, shard: Shard, wanted: Sequence[bool]) -> Iterator[tuple[int, Study]]:
        """(row, study with its images) of a shard's wanted rows, in order; rows beyond `wanted` are not.

        One row group is in memory at a time.
        """
        with self._file(shard) as file:
            first = 0
            for group in range(file.metadata.num_row_groups):
                size = file.metadata.row_group(group).num_rows
                if any(wanted[first : first + size]):
                    found = file.read_row_group(group, use_threads=False).to_pylist()
                    for row, record in enumerate(found, first):
                        if row < len(wanted) and wanted[row]:
                            yield row, Study.checked(**record)
                first += size

    def earlier(self, study: Study) -> Study | None:
        """The patient's previous study with its images, where the cohort has it.

        Unlike `prior` it keeps no study in memory, but each one's place.
        """
        place = self._places.get(study.prior_study_id or "")
        if place is None:
            return None
        shard, row = place
        with self._file(shard) as file:
            return Study.checked(**stored_row(file, row, SCHEMA.names))

    @cached_property
    def _places(self) -> dict[str, tuple[Shard, int]]:
        found: dict[str, tuple[Shard, int]] = {}
        for shard in self.index.shards:
            names = self._file(shard).read(columns=["study_id"])["study_id"].to_pylist()
            found.update((name, (shard, row)) for row, name in enumerate(names))
        return found

    def forget(self, shard: Shard) -> None:
        """Remove the local copy of a remote store's shard; it is copied again when it is read again."""
        if not storage.is_local(self.artifact.store):
            self._local.pop(shard.sha256, None)
            (cache_root() / shard.name).unlink(missing_ok=True)

    def _file(self, shard: Shard) -> pq.ParquetFile:
        """The shard, opened anew, with the footer at hand: one reader must not serve two threads."""
        return pq.ParquetFile(self.shard_path(shard), memory_map=True, metadata=self._footer(shard))

    @lru_cache(FOOTERS)  # noqa: B019 - as above; a footer is never written, so threads may share it
    def _footer(self, shard: Shard) -> pq.FileMetaData:
        return pq.read_metadata(self.shard_path(shard), memory_map=True)

    def prior(self, study: Study, images: bool = True) -> Study | None:
        """The patient's previous study, where the cohort has it; with its images unless told otherwise."""
        if study.prior_study_id is None or study.prior_study_id not in self._rows:
            return None
        return self.with_images(study.prior_study_id) if images else self[study.prior_study_id]

    def truth(self) -> pa.Table | None:
        """Ground truth by study_id, for corpora that have it (phantoms)."""
        if TRUTH not in self.artifact.manifest.files:
            return None
        return pq.read_table(self.artifact.path(TRUTH))


def stored_row(file: pq.ParquetFile, number: int, names: Sequence[str]) -> dict[str, Any]:
    """One row of a shard; its row group is read."""
    for group in range(file.metadata.num_row_groups):
        size = file.metadata.row_group(group).num_rows
        if number < size:
            found = file.read_row_group(group, columns=list(names), use_threads=False)
            return found.slice(number, 1).to_pylist()[0]
        number -= size
    raise IndexError("the shard has fewer rows than its index says")
