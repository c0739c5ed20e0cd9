"""The ledger of a watch: what became of every study that an institution has delivered, by content.

Content is what a cohort keeps of a study: its texts, demographics, time and views, and the pixels of its key
image as staged. So a file that was exported again, renamed or copied is the same; names and identities are
no part of it. A ledger carries on what the one behind its cohort knew: of studies that are delivered no more,
and of staged contents, which then need not be decoded again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from datetime import datetime
from typing import Literal, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict

from unirg import artifact, storage
from unirg.artifact import Artifact
from unirg.cohort import columns, imaging
from unirg.cohort.reader import Cohort
from unirg.config import canonical_json
from unirg.study import AcquiredBasis, Study

LEDGER = "ledger.parquet"
WATCH = "watch.json"

Kind = Literal["new", "corrected", "duplicate", "copy", "tied", "withdrawn", "unusable", "gone"]
TAKEN = ("new", "corrected")
"""Kinds that the next cohort takes from the increment."""
HELD = (*TAKEN, "duplicate", "gone", "unusable")
"""Kinds whose row tells the content that the next cohort has, where it has the study at all."""
STAGED = (*TAKEN, "duplicate", "copy", "tied")
"""Kinds whose row tells the content of the version that was looked at."""
REPLACED = ("corrected", "tied")
"""Kinds whose earlier version the next cohort leaves out."""


class Row(BaseModel):
    """What became of one study."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    study_id: str
    patient_id: str
    kind: Kind
    """`new`; `corrected`: the cohort has another content under its id; `duplicate`: the same content; `copy`:
    the content of a study with another id; `tied`: it would show one split what another one has; `withdrawn`;
    `unusable`: as `reason` tells; `gone`: known from before, and delivered no more."""
    reason: str = ""
    late: bool = False
    """Taken before the patient's newest study in the cohort."""
    source: str = ""
    """Of the version that was looked at: `incoming.Found.source`."""
    content: str = ""
    """Digest of what is staged of it, of an unusable one what the cohort has; empty where nobody knows."""
    film: str = ""
    """Digest of its key image's pixels as staged."""
    acquired_at: datetime | None = None
    acquired_basis: AcquiredBasis | None = None


_TABLE = pa.schema(
    [(name, pa.string()) for name in ("study_id", "patient_id", "kind", "reason")]
    + [("late", pa.bool_())]
    + [(name, pa.string()) for name in ("source", "content", "film")]
    + [("acquired_at", pa.timestamp("us")), ("acquired_basis", pa.string())]
)


class Told(BaseModel):
    """What a watch says beside its ledger."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    institution: str
    watermark: str
    """When the youngest object that was looked at was modified; empty where there was none."""
    increment: str
    """Folder of the increment's cohort in the store; empty where nothing was staged."""
    increment_digest: str


class Held(NamedTuple):
    """What is compared of a study that a cohort has."""

    patient_id: str
    split: str
    acquired_at: datetime | None
    content: str
    film: str


def write(draft: artifact.Draft, rows: Iterable[Row], told: Told) -> None:
    ordered = sorted(rows, key=lambda row: row.study_id)
    pq.write_table(pa.Table.from_pylist([row.model_dump() for row in ordered], _TABLE), draft.out / LEDGER)
    (draft.out / WATCH).write_text(told.model_dump_json(indent=1))


def read(watch: Artifact) -> dict[str, Row]:
    """The rows by study id.

    Raises:
        ArtifactError: a file is missing or damaged.
    """
    return {row["study_id"]: Row(**row) for row in pq.read_table(watch.path(LEDGER)).to_pylist()}


def told(watch: Artifact) -> Told:
    return Told.model_validate_json(watch.path(WATCH).read_bytes())


def behind(cohort: Artifact, institution: str) -> dict[str, Row]:
    """The ledger of the latest watch of the institution that a cohort, or a part of it, grew from."""
    named = cohort.manifest.inputs
    watches = [ref.uri for name, ref in named.items() if name == "watch" and ref.uri]
    for uri in watches:
        watch = artifact.open_artifact(uri, "watch")
        if told(watch).institution == institution:
            return read(watch)
    # A grown cohort's base, or the parts of a combined one. One that gc has dropped tells nothing more.
    rows: dict[str, Row] = {}
    for name, ref in named.items():
        if ref.uri and name.partition(":")[0] == "cohort" and (found := artifact.find(ref.uri)):
            rows |= behind(found, institution)
    return rows


def digests(study: Study) -> tuple[str, str]:
    """(content, film) of a staged study with its image."""
    key = study.key_image
    pixels = imaging.decode(key.data) if key and key.data else None
    film = storage.sha256(f"{pixels.shape}".encode() + pixels.tobytes()) if pixels is not None else ""
    names = {"corpus", "study_id", "patient_id", "split", "encounter", "prior_study_id", "images"}
    views = [(image.view, image.projection) for image in study.images]
    return storage.sha256(canonical_json([study.model_dump(mode="json", exclude=names), views, film])), film


def held(cohort: Artifact, corpus: str, known: dict[str, Row]) -> dict[str, Held]:
    """The cohort's studies of one corpus by id; images are read of those whose content nobody knows yet.

    Args:
        known: the ledger `behind` the cohort.
    """
    opened = Cohort.open(cohort)
    found: dict[str, Held] = {}
    names = ["corpus", "study_id", "patient_id", "acquired_at"]
    for shard in opened.index.shards:
        wanted = []
        for batch in columns.batches(cohort.store, shard, names):
            for its_corpus, name, patient, at in zip(
                *(batch.column(column).to_pylist() for column in names), strict=True
            ):
                row = known.get(name)
                wanted.append(its_corpus == corpus and not (row and row.content and row.kind in HELD))
                if its_corpus == corpus:
                    content, film = (row.content, row.film) if row else ("", "")
                    found[name] = Held(patient, shard.split, at, content, film)
        for _, study in opened.rows(shard, wanted):
            content, film = digests(study)
            found[study.study_id] = found[study.study_id]._replace(content=content, film=film)
    return found


def staged(cohort: Artifact) -> Iterator[tuple[Study, str, str]]:
    """(study without its image, content, film) of everything in a cohort."""
    opened = Cohort.open(cohort)
    for shard in opened.index.shards:
        for _, study in opened.rows(shard, [True] * shard.studies):
            yield (study.model_copy(update={"images": ()}), *digests(study))


def timeline(rows: Iterable[Row], corpus: str, kept: Collection[str]) -> Iterator[Study]:
    """Studies that were taken though no cohort has them, as encounters of their patients.

    Withdrawn ones leave none, and a copy is the encounter of the study that it copies.
    """
    for row in rows:
        if row.study_id not in kept and row.kind in ("unusable", "gone", "tied"):
            yield Study(
                corpus=corpus,
                study_id=row.study_id,
                patient_id=row.patient_id,
                institution=corpus,
                acquired_at=row.acquired_at,
                acquired_basis=row.acquired_basis,
            )
