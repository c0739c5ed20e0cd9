"""Combine cohorts of one store: the paper trains on four corpora, and on three to test on the fourth.

A cohort is an index of content-addressed shards, so a combined one lists the shards of its parts and copies
none. Of each part it may take some splits alone. What a cohort promises holds for all of them together: no
study twice, no patient in two splits, nobody held out in training. ReXrank's test sets are known for the
studies of the corpora that they were taken from.

Near-duplicates between parts are not looked for: a cohort does not keep its fingerprints.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import NamedTuple, get_args

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from unirg import artifact, storage, telemetry
from unirg.artifact import Artifact
from unirg.cohort import card, columns
from unirg.cohort.imaging import ResizeMode
from unirg.cohort.reader import DROPPED, DUPLICATES, INDEX, TRUTH, Cohort, Index, Shard
from unirg.cohort.withdrawal import REXRANK, Withdrawn, original
from unirg.config import Config
from unirg.errors import UserError
from unirg.study import Split

VERSION = 1
JOINED = "+"
SPLITS: tuple[Split, ...] = get_args(Split)
IDS = ("corpus", "study_id", "patient_id", "institution")
_NAMED = re.compile(r"([a-z_,]+)=(.+)")


class CombineConfig(Config):
    """What the parts are, beside their digests."""

    size: int
    """Side of the staged images in pixels, the same in all."""
    resize: ResizeMode
    """How they became square, the same in all."""
    splits: dict[str, tuple[Split, ...]]
    """Name of a part among the inputs -> the splits taken of it; of one that is not here, all are."""


class Part(NamedTuple):
    """A cohort, and which splits of it are taken; none named = all."""

    cohort: Artifact
    splits: tuple[Split, ...] = ()

    @property
    def name(self) -> str:
        """Among the inputs; of the content alone, so that the order of the parts does not matter."""
        return f"cohort:{self.cohort.digest[:12]}"


def parts(named: Sequence[str]) -> list[Part]:
    """Open `URI` (all splits) or `SPLITS=URI`, such as `test,zero_shot=runs/store/cohort/0123456789abcdef`.

    Raises:
        UserError: a split is none.
        ArtifactError: there is no cohort.
    """
    found = []
    for text in named:
        given = _NAMED.fullmatch(text)
        names, uri = (given[1].split(","), given[2]) if given else ([], text)
        if unknown := sorted(set(names) - set(SPLITS)):
            raise UserError(
                f"{text}: {', '.join(unknown)} is no split ({', '.join(SPLITS)}): write SPLITS=URI, or ./ "
                "before a folder"
            )
        taken = tuple(split for split in SPLITS if split in names)
        found.append(Part(artifact.open_artifact(uri, "cohort"), taken))
    return found


@telemetry.verb("combine")
def combine(given: Sequence[Part], store: str) -> Artifact:
    """Make one cohort of several.

    What a part dropped is counted whole, whichever splits are taken: such a record has none.

    Raises:
        UserError: cohorts of another store, of different image sizes or given twice; a split that a cohort
            does not have; a study in two of them, a patient in two splits, studies of somebody held out to
            train or validate with, or studies withdrawn since.
        ArtifactError: a file of a cohort is missing or damaged.
    """
    taken = sorted((_Taken(part) for part in given), key=lambda one: (one.index.corpus, one.cohort.digest))
    config = _agreed(taken, store)
    corpora = sorted({name for one in taken for name in one.index.corpus.split(JOINED)})
    withdrawn = withdrawn_of(store, corpora)
    inputs: dict[str, Artifact | str] = {one.part.name: one.cohort for one in taken}
    if withdrawn:
        inputs["withdrawn"] = withdrawn.digest
    with artifact.draft(store, "cohort", VERSION, config, inputs) as draft:
        if draft.committed:
            return draft.committed
        register = _Register(withdrawn, {name: one for one in taken for name in one.index.hold_out})
        for one in taken:
            register.add(one)
        register.check()
        index = Index(
            corpus=JOINED.join(corpora),
            hold_out=tuple(sorted({name for one in taken for name in one.index.hold_out})),
            shards=tuple(shard for one in taken for shard in one.shards),
            dropped=_summed(one.index.dropped for one in taken),
            account=_summed(one.index.account for one in taken),
            duplicates=_summed(one.duplicate_counts for one in taken),
        )
        (draft.out / INDEX).write_text(index.model_dump_json(indent=1))
        _write(draft.out / DROPPED, [pq.read_table(one.cohort.path(DROPPED)) for one in taken])
        _write(draft.out / DUPLICATES, [one.duplicates for one in taken])
        truths = [truth for one in taken if (truth := Cohort.open(one.cohort).truth()) is not None]
        if truths:
            ids = pa.array(list(register.studies), pa.string())
            _write(draft.out / TRUTH, [truth.filter(pc.is_in(truth["study_id"], ids)) for truth in truths])
        cards = draft.out / "logs"
        cards.mkdir()
        card.write(index, store, cards)
        if withdrawn_of(store, corpora) != withdrawn:
            raise UserError("studies were withdrawn while cohorts were combined: stage theirs again")
        return draft.commit(index.counts())


class _Taken:
    """What is taken of one part."""

    def __init__(self, part: Part) -> None:
        self.part, self.cohort = part, part.cohort
        self.index = Cohort.open(part.cohort).index
        there = {shard.split for shard in self.index.shards}
        if absent := sorted(set(part.splits) - there):
            raise UserError(
                f"cohort {self.cohort.uri} has no study in split {', '.join(absent)}; it has "
                f"{', '.join(sorted(there))}: name one of them, or stage it otherwise"
            )
        self.splits = frozenset(part.splits) or there

    @property
    def shards(self) -> list[Shard]:
        return [shard for shard in self.index.shards if shard.split in self.splits]

    @cached_property
    def duplicates(self) -> pa.Table:
        """Those of the splits that are taken: with no other one they share nothing here."""
        table, splits = pq.read_table(self.cohort.path(DUPLICATES)), pa.array(sorted(self.splits))
        near = pc.and_(pc.is_in(table["split"], splits), pc.is_in(table["other_split"], splits))
        return table.filter(near)

    @property
    def duplicate_counts(self) -> Counter[str]:
        pairs = zip(*(self.duplicates[name].to_pylist() for name in ("kind", "split")), strict=True)
        return Counter(f"{kind} {split}" for kind, split in pairs)


def _agreed(taken: Sequence[_Taken], store: str) -> CombineConfig:
    """Raises: UserError where the parts cannot be one cohort by what their manifests say."""
    store = str(storage.local_path(store)) if storage.is_local(store) else store.rstrip("/")
    images = set()
    for number, one in enumerate(taken):
        uri = one.cohort.uri
        if one.cohort.store != store:
            raise UserError(
                f"cohort {uri} lies in another store than {store}: stage it there, or name its own store"
            )
        if one.cohort.digest in {other.cohort.digest for other in taken[:number]}:
            raise UserError(f"cohort {uri} is given twice: name it once, with all splits (A,B=URI)")
        config = one.cohort.manifest.config
        images.add((config.get("size"), config.get("resize")))
        if len(images) > 1:
            told = " and ".join(f"{size} ({resize})" for size, resize in sorted(images, key=str))
            raise UserError(f"the cohorts' images have sizes {told}: stage {uri} with size and resize alike")
    if not taken:
        raise UserError("no cohort is given: name two or more")
    size, resize = images.pop()
    splits = {one.part.name: one.part.splits for one in taken if one.part.splits}
    return CombineConfig.model_validate({"size": size, "resize": resize, "splits": splits})


class _Register:
    """Who is in the parts so far. What must not be is counted, and its first study told by its id."""

    def __init__(self, withdrawn: Withdrawn, held: dict[str, _Taken]) -> None:
        """
        Args:
            held: institution or corpus -> the part that holds it out; with a corpus, ReXrank's set of it.
        """
        self.studies: dict[str, int] = {}
        """Id -> number of the part: readers tell a cohort's studies apart by it, whatever their corpus."""
        self._withdrawn = withdrawn
        self._held = {name.removeprefix(REXRANK): part for name, part in held.items()}
        self._originals: dict[str, int] = {}
        self._patients: dict[str, tuple[int, str]] = {}
        """-> (number of the part, split)."""
        self._faults: Counter[str] = Counter()
        self._first: dict[str, str] = {}
        self._parts = 0

    def add(self, one: _Taken) -> None:
        """Take note of a part's studies, read from its shards."""
        part = self._parts
        self._parts += 1
        for shard in one.shards:
            for batch in columns.batches(one.cohort.store, shard, IDS):
                for row in zip(*(batch.column(name).to_pylist() for name in IDS), strict=True):
                    self._add(part, one, shard.split, *row)

    def _add(
        self,
        part: int,
        one: _Taken,
        split: str,
        corpus: str,
        study_id: str,
        patient_id: str,
        institution: str,
    ) -> None:
        if self._withdrawn.holds(corpus, study_id, patient_id):
            self._fault(_WITHDRAWN, f"in {one.cohort.uri}")
        study, patient = original(corpus, study_id, patient_id)
        twice = self.studies.setdefault(study_id, part), self._originals.setdefault(study, part)
        if twice != (part, part):
            self._fault(_TWICE, f"{corpus}/{study_id}")
        known, other = self._patients.setdefault(patient, (part, split))
        if known != part and other != split:
            self._fault(_STRADDLES, f"{corpus}/{study_id} ({split}, elsewhere {other})")
        held = self._held.get(corpus.removeprefix(REXRANK)) or self._held.get(institution)
        if held and split in ("train", "validate"):
            self._fault(_HELD, f"{corpus}/{study_id} ({split}), which {held.cohort.uri} holds out")

    def _fault(self, kind: str, first: str) -> None:
        self._faults[kind] += 1
        self._first.setdefault(kind, first)

    def check(self) -> None:
        """Raises: UserError for the first kind of fault, with how many studies and the first one."""
        for kind in (_WITHDRAWN, _TWICE, _STRADDLES, _HELD):
            if number := self._faults[kind]:
                raise UserError(kind.format(number=number, first=self._first[kind]))


_WITHDRAWN = "{number} studies were withdrawn since they were staged, the first {first}: stage it again"
_TWICE = (
    "{number} studies are in two of the cohorts, or have the id of another one there, such as {first}: take "
    "splits that share none (SPLITS=URI), or leave one of the cohorts out"
)
_STRADDLES = (
    "{number} studies are of a patient whom another cohort has in another split, such as {first}: stage them "
    "with the same split settings, or take splits that share no patient (SPLITS=URI)"
)
_HELD = (
    "{number} studies are to train or validate with though their institution or corpus is held out, such as "
    "{first}: stage them with that hold_out too, or do not take these splits (SPLITS=URI)"
)


def withdrawn_of(store: str, corpora: Iterable[str]) -> Withdrawn:
    """What is withdrawn of any of the corpora."""
    every = Withdrawn.load(store)
    found = [every.of_corpus(corpus) for corpus in corpora]
    studies, patients = ([getattr(one, kind) for one in found] for kind in ("studies", "patients"))
    return Withdrawn(frozenset().union(*studies), frozenset().union(*patients))


def _summed(counts: Iterable[dict[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for one in counts:
        total.update(one)
    return dict(sorted(total.items()))


def _write(target: object, tables: Sequence[pa.Table]) -> None:
    pq.write_table(pa.concat_tables(tables, promote_options="default"), target)
