"""The next cohort: an earlier one and what a watch found, as if all had been staged together.

Shards in which nothing changes are listed as they are. Others are written anew without those of their
studies that were corrected, tied or withdrawn, and with the places in time that a patient's studies have now:
a late one gives those behind it another encounter number, and perhaps another prior. No image is decoded, and
no split changes.

Encounters are counted over what the ledger knows, so that a study without a report is one, too. Of an earlier
cohort that grew from no watch that is what still lies in the bucket. Near-duplicates between the cohort and
the increment are not looked for; equal films are, by the watch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from unirg import artifact, storage, telemetry
from unirg.artifact import Artifact, ArtifactError
from unirg.cohort import card, columns, ledger, priors
from unirg.cohort.combine import JOINED, withdrawn_of
from unirg.cohort.imaging import ResizeMode
from unirg.cohort.intake import WITHDRAWN
from unirg.cohort.ledger import Row
from unirg.cohort.reader import DROPPED, DUPLICATES, INDEX, TRUTH, VIEWS, Cohort, Index, Shard
from unirg.cohort.shards import UNREADABLE, put_shard
from unirg.cohort.withdrawal import Withdrawn
from unirg.config import Config
from unirg.errors import UserError
from unirg.study import SCHEMA, Study

VERSION = 1
CORRECTED = "replaced by a correction"
_LIGHT = [
    *("corpus", "study_id", "patient_id", "institution", "split", "acquired_at", "acquired_basis"),
    *("encounter", "prior_study_id"),
]
Place = tuple[int | None, str | None]
"""(encounter, prior_study_id)"""


class GrowConfig(Config):
    """What both are, beside their digests."""

    size: int
    """Side of the staged images in pixels, the same in both."""
    resize: ResizeMode
    """How they became square, the same in both."""


@telemetry.verb("grow")
def grow(watch: Artifact, store: str) -> Artifact:
    """Make the next cohort of the cohort that a watch compared with, and of what it found new or corrected.

    Where nothing is new, corrected or withdrawn, that is the cohort itself.

    Raises:
        UserError: there is neither a cohort nor anything new, nothing is left, an id is another corpus's
            study, or studies were withdrawn meanwhile.
        ArtifactError: a cohort is missing or damaged.
    """
    told, rows = ledger.told(watch), ledger.read(watch)
    taken = {name for name, row in rows.items() if row.kind in ledger.TAKEN}
    base = _input(watch, "cohort")
    increment = _increment(watch, told) if taken else None
    parts = [_Part(one, one is increment) for one in (base, increment) if one]
    if not parts:
        raise UserError(
            f"{watch.uri} found nothing new, and there is no cohort: watch when studies have come"
        )
    corpora = _corpora(parts)
    withdrawn = withdrawn_of(store, corpora)
    inputs: dict[str, Artifact | str] = {"watch": watch}
    inputs |= {name: one for name, one in (("cohort", base), ("increment", increment)) if one}
    if withdrawn:
        inputs["withdrawn"] = withdrawn.digest
    staging: dict[str, Any] = watch.manifest.config["stage"]  # type: ignore[assignment]
    config = GrowConfig(size=staging["size"], resize=staging["resize"])
    with artifact.draft(store, "cohort", VERSION, config, inputs) as draft:
        if draft.committed:
            return draft.committed
        growth = _Growth(told.institution, rows, withdrawn)
        for one in parts:
            growth.enter(one)
        if base and not growth.changes:
            return base
        if not growth.kept:
            raise UserError(f"every study of {watch.uri} and its cohort is withdrawn: nothing is left")
        shards, lost = growth.write(store, parts), growth.lost(parts)
        ids = pa.array(sorted(growth.kept), pa.string())
        alike = pa.concat_tables([one.alike(ids) for one in parts])
        index = _index(parts, shards, lost, alike)
        (draft.out / INDEX).write_text(index.model_dump_json(indent=1))
        pq.write_table(pa.Table.from_pylist(lost, _LOST), draft.out / DROPPED)
        pq.write_table(alike, draft.out / DUPLICATES)
        truths = [truth for one in parts if (truth := one.opened.truth()) is not None]
        if truths:
            own = [truth.filter(pc.is_in(truth["study_id"], ids)) for truth in truths]
            pq.write_table(pa.concat_tables(own, promote_options="default"), draft.out / TRUTH)
        cards = draft.out / "logs"
        cards.mkdir()
        card.write(index, store, cards)
        if withdrawn_of(store, corpora) != withdrawn:
            raise UserError("studies were withdrawn while the cohort grew: run the same command again")
        return draft.commit(index.counts())


def relinked(studies: Collection[Study], others: Collection[Study] = ()) -> dict[str, Place]:
    """Where studies of a cohort are in time now, by id, of those whose place has changed.

    Args:
        others: encounters of the same patients that no cohort has.
    """
    kept = {study.study_id for study in studies}
    before = {study.study_id: (study.encounter, study.prior_study_id) for study in studies}
    now = {
        study.study_id: (study.encounter, study.prior_study_id)
        for study in priors.link([*studies, *others], kept)
        if study.study_id in kept
    }
    return {name: place for name, place in now.items() if place != before[name]}


_LOST = pa.schema([("study_id", pa.string()), ("reason", pa.string())])


def _input(watch: Artifact, name: str) -> Artifact | None:
    """An artifact that a watch was made of."""
    ref = watch.manifest.inputs.get(name)
    if ref is None or ref.uri is None:
        return None
    found = artifact.open_artifact(ref.uri, "cohort")
    if found.digest != ref.digest:
        raise ArtifactError(f"{ref.uri} is another cohort than {watch.uri} compared with: watch again")
    return found


def _increment(watch: Artifact, told: ledger.Told) -> Artifact:
    found = artifact.open_artifact(storage.join(watch.store, "cohort", told.increment), "cohort")
    if found.digest != told.increment_digest:
        raise ArtifactError(f"{found.uri} is another increment than {watch.uri} compared: watch again")
    return found


class _Part:
    """The cohort, or the increment."""

    def __init__(self, cohort: Artifact, arriving: bool) -> None:
        self.cohort, self.arriving, self.opened = cohort, arriving, Cohort.open(cohort)
        self.index = self.opened.index

    def light(self) -> Iterator[Study]:
        """Its studies, without texts and pixels."""
        for shard in self.index.shards:
            for batch in columns.batches(self.cohort.store, shard, [*_LIGHT, *VIEWS]):
                for record in batch.to_pylist():
                    yield Study.checked(**record)

    def dropped(self) -> list[dict[str, str]]:
        found: list[dict[str, str]] = pq.read_table(self.cohort.path(DROPPED)).to_pylist()
        return found

    def alike(self, ids: pa.Array) -> pa.Table:
        """Near-duplicates of which both are kept."""
        table = pq.read_table(self.cohort.path(DUPLICATES))
        return table.filter(pc.and_(pc.is_in(table["study_id"], ids), pc.is_in(table["other_id"], ids)))


@dataclass
class _Growth:
    """Which studies the next cohort has, and what changes of them."""

    _institution: str
    _rows: Mapping[str, Row]
    _withdrawn: Withdrawn
    kept: set[str] = field(default_factory=set)
    changes: int = 0
    """Studies that enter or leave the cohort."""
    _lost: dict[str, str] = field(default_factory=dict)
    """Id -> why a study of a part is in no cohort now."""
    _out: set[tuple[bool, str]] = field(default_factory=set)
    """(of the increment, id) of studies that are left out."""
    _touched: set[tuple[str, str]] = field(default_factory=set)
    """Patients (corpus, patient_id) who gain or lose a study."""

    def enter(self, part: _Part) -> None:
        """Take note of a part's studies; the cohort's come first."""
        names = ("corpus", "study_id", "patient_id")
        for shard in part.index.shards:
            for batch in columns.batches(part.cohort.store, shard, names):
                for one in zip(*(batch.column(name).to_pylist() for name in names), strict=True):
                    self._enter(part.arriving, *one)

    def _enter(self, arriving: bool, corpus: str, name: str, patient: str) -> None:
        row = self._rows.get(name) if corpus == self._institution else None
        reason = ""
        if self._withdrawn.holds(corpus, name, patient):
            reason = WITHDRAWN
        elif arriving and row and row.kind not in ledger.TAKEN:
            reason = row.reason or row.kind
        elif not arriving and row and row.kind in ledger.REPLACED:
            reason = row.reason or CORRECTED
        if reason:
            self._out.add((arriving, name))
            self._lost[name] = reason
        elif name in self.kept:
            raise UserError(f"{corpus}/{name} has the id of a study of another corpus: leave that cohort out")
        else:
            self.kept.add(name)
        if arriving != bool(reason):  # it enters, or it leaves
            self.changes += 1
            self._touched.add((corpus, patient))

    def write(self, store: str, parts: Sequence[_Part]) -> list[Shard]:
        """Put the shards that change; all shards of the next cohort."""
        moved = relinked(*self._patients(parts))
        return [
            shard
            for part in parts
            for old in part.index.shards
            if (shard := self._shard(store, part, old, moved)).studies
        ]

    def _shard(self, store: str, part: _Part, shard: Shard, moved: Mapping[str, Place]) -> Shard:
        batches = columns.batches(part.cohort.store, shard, ["study_id"])
        names = [name for batch in batches for name in batch["study_id"].to_pylist()]
        stays = [(part.arriving, name) not in self._out for name in names]
        if all(stays) and not moved.keys() & set(names):
            return shard
        table = pq.read_table(part.opened.shard_path(shard)).cast(SCHEMA)
        for number, column in enumerate(("encounter", "prior_study_id")):
            values = [
                moved[name][number] if name in moved else old
                for name, old in zip(names, table[column].to_pylist(), strict=True)
            ]
            at = SCHEMA.get_field_index(column)
            table = table.set_column(at, SCHEMA.field(column), pa.array(values, SCHEMA.field(column).type))
        return put_shard(store, table.filter(pa.array(stays)), shard.split)

    def _patients(self, parts: Sequence[_Part]) -> tuple[list[Study], list[Study]]:
        """All studies of the touched patients that the next cohort has, and those that no cohort has."""
        found = [
            study
            for part in parts
            for study in part.light()
            if (study.corpus, study.patient_id) in self._touched
            and (part.arriving, study.study_id) not in self._out
        ]
        others = ledger.timeline(self._rows.values(), self._institution, self.kept)
        return found, [one for one in others if (one.corpus, one.patient_id) in self._touched]

    def lost(self, parts: Sequence[_Part]) -> list[dict[str, str]]:
        """(study_id, reason) of what is in no cohort now; a record that was dropped twice is told once."""
        told = {row["study_id"]: row["reason"] for part in parts for row in part.dropped()} | self._lost
        return [{"study_id": name, "reason": told[name]} for name in sorted(told.keys() - self.kept)]


def _index(
    parts: Sequence[_Part], shards: Sequence[Shard], lost: Sequence[Mapping[str, str]], alike: pa.Table
) -> Index:
    reasons = [UNREADABLE if row["reason"].startswith(UNREADABLE) else row["reason"] for row in lost]
    pairs = zip(alike["kind"].to_pylist(), alike["split"].to_pylist(), strict=True)
    account: Counter[str] = Counter()
    for part in parts:
        account.update(part.index.account)
    return Index(
        corpus=JOINED.join(_corpora(parts)),
        hold_out=tuple(sorted({name for part in parts for name in part.index.hold_out})),
        shards=tuple(shards),
        dropped=dict(sorted(Counter(reasons).items())),
        account=dict(sorted(account.items())),
        duplicates=dict(sorted(Counter(f"{kind} {split}" for kind, split in pairs).items())),
    )


def _corpora(parts: Sequence[_Part]) -> list[str]:
    return sorted({name for part in parts for name in part.index.corpus.split(JOINED)})
