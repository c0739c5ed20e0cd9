"""Stage a corpus: adapter -> filter -> split -> decode once to 8 bits -> content-addressed shards.

A cohort is an index of Parquet shards that lie in the store under their SHA-256, so cohorts share them and
a crash repeats at most the shards that were being written: each finished shard leaves a note in the store.
So several machines may each write a part of the shards (`stage_part`) before one makes the cohort of them.
"""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import Field

from unirg import artifact, storage, telemetry
from unirg.artifact import Artifact, Draft
from unirg.cohort import card, duplicates, splits
from unirg.cohort.corpora import Corpus
from unirg.cohort.corpora.institution import InstitutionConfig
from unirg.cohort.imaging import ResizeMode
from unirg.cohort.intake import Intake
from unirg.cohort.reader import DROPPED, DUPLICATES, INDEX, TRUTH, Index, Shard
from unirg.cohort.shards import UNREADABLE, Notes, ShardWriter, Written
from unirg.cohort.withdrawal import Withdrawn
from unirg.cohort.workers import Pool
from unirg.config import Config, operational
from unirg.errors import UserError

VERSION = 3
BATCH = 10_000
"""Rows of a table that are written at once."""


class NothingLeft(UserError):
    """Every study of a corpus was dropped."""


class StageConfig(Config):
    """How a corpus becomes a cohort."""

    corpus: Literal[
        "phantom", "iu_xray", "mimic_cxr", "chexpert_plus", "rexgradient", "rexrank", "institution"
    ] = "phantom"
    """Which adapter reads it."""
    data: str = operational("")
    """Where the corpus lies (URI); phantoms need none. Identity rests on the content found there."""
    demographics: str = operational("")
    """MIMIC-CXR: where MIMIC-IV's `patients` and `admissions` lie (URI); empty: no age, sex and race."""
    images: str = operational("")
    """ReXrank: where the images lie (URI); empty = beside the test file."""
    institution: InstitutionConfig = InstitutionConfig()
    """How an institution's own data is read."""
    studies: int = Field(default=2000, ge=1)
    """How many phantom studies to draw."""
    seed: int = 0
    """Of the phantoms."""
    reports: Literal["required", "optional"] = "required"
    """Whether a study without findings and impression is dropped, as the paper does; `optional` keeps it, for
    an archive that is only to be scored."""
    hold_out: tuple[str, ...] = ()
    """Institutions or corpora never trained on: their studies form the zero-shot set."""
    split: splits.SplitConfig = splits.SplitConfig()
    """How the other patients are divided."""
    size: int = Field(default=512, ge=64, le=4096)
    """Side of the staged square image in pixels (the paper: 512)."""
    resize: ResizeMode = "stretch"
    """`stretch` as the paper resizes; `pad` or `crop` keep the aspect ratio."""
    shard_studies: int = Field(default=128, ge=1)
    """Studies in a shard; 128 at 512 x 512 make about 20 MB."""
    workers: int = operational(0, ge=0)
    """Processes that decode; 0 = one per core."""
    seconds: float = Field(default=60.0, gt=0)
    """What decoding one image may take before its process is killed and the study listed."""


def open_corpus(config: StageConfig) -> Corpus:
    """The adapter that the configuration names."""
    if config.corpus == "phantom":
        from unirg.cohort.corpora.phantom import Phantom

        return Phantom(config.studies, config.seed)
    if not config.data:
        raise UserError(f"corpus {config.corpus} needs data=URI: where does it lie?")
    if config.corpus == "iu_xray":
        from unirg.cohort.corpora.iu_xray import IUXray

        return IUXray(config.data)
    if config.corpus == "mimic_cxr":
        from unirg.cohort.corpora.mimic_cxr import MimicCXR

        return MimicCXR(config.data, config.demographics or None)
    if config.corpus == "chexpert_plus":
        from unirg.cohort.corpora.chexpert_plus import CheXpertPlus

        return CheXpertPlus(config.data)
    if config.corpus == "rexgradient":
        from unirg.cohort.corpora.rexgradient import ReXGradient

        return ReXGradient(config.data)
    if config.corpus == "rexrank":
        from unirg.cohort.corpora.rexrank import ReXrank

        return ReXrank(config.data, config.images)
    from unirg.cohort.corpora.institution import Institution

    site = config.institution
    return Institution.from_environment(
        config.data, site.name, unknown_view=site.unknown_view, gate=site.gate
    )


@dataclass(frozen=True)
class _Work:
    """A cohort in the making, with the corpus taken in."""

    corpus: Corpus
    config: StageConfig
    store: str
    withdrawn: Withdrawn
    draft: Draft
    intake: Intake
    notes: Notes


@telemetry.verb("stage")
def stage(config: StageConfig, store: str, corpus: Corpus | None = None) -> Artifact:
    """Stage a corpus into a cohort artifact.

    Args:
        corpus: read in place of the one that the configuration names: some studies of it alone.

    Raises:
        NothingLeft: every study was dropped.
        UserError: the corpus is missing or unreadable, `hold_out` names nobody, or studies were withdrawn
            meanwhile.
    """
    with _begun(config, store, corpus or open_corpus(config)) as work:
        if work.draft.committed:
            return work.draft.committed
        _decode(work, lambda number: True)
        counts = _assemble(work)
        cards = work.draft.out / "logs"  # not content: how a card looks is no part of the cohort's identity
        cards.mkdir()
        card.write(Index.model_validate_json((work.draft.out / INDEX).read_bytes()), store, cards)
        if Withdrawn.load(store).of_corpus(work.corpus.name) != work.withdrawn:
            raise UserError("studies were withdrawn while these were staged: run the same command again")
        made = work.draft.commit(counts)
        work.notes.remove()
        return made


@telemetry.verb("stage.part")
def stage_part(config: StageConfig, store: str, part: int, parts: int) -> int:
    """Write the shards whose number is `part` modulo `parts`, for a `stage` that follows; returns how many.

    Raises:
        UserError: as `stage`, or there is no such part.
    """
    if not 0 <= part < parts:
        raise UserError(f"part {part} of {parts}: parts are counted from 0 to {parts - 1}")
    with _begun(config, store, open_corpus(config)) as work:
        if work.draft.committed:
            return 0
        done = _decode(work, lambda number: number % parts == part)
        if not work.corpus.public:  # another machine may make the cohort, and this would stay here
            work.intake.discard()
        return done


@contextmanager
def _begun(config: StageConfig, store: str, corpus: Corpus) -> Iterator[_Work]:
    inputs = {"corpus": corpus.fingerprint()}
    withdrawn = Withdrawn.load(store).of_corpus(corpus.name)
    if withdrawn:
        inputs["withdrawn"] = withdrawn.digest
    with artifact.draft(store, "cohort", VERSION, config, inputs) as draft:
        intake = Intake(draft.scratch / "intake.sqlite")
        notes = Notes(storage.join(store, ".work", f"cohort-{draft.key[:16]}", "notes"))
        try:
            if not draft.committed:
                with_reports = config.reports == "required"
                intake.take(corpus, config.split, config.hold_out, withdrawn.covers, with_reports)
            yield _Work(corpus, config, store, withdrawn, draft, intake, notes)
        except BaseException:
            if not corpus.public:  # it holds paths, and an institution's paths may name a patient
                intake.discard()
            raise


def _decode(work: _Work, mine: Callable[[int], bool]) -> int:
    """Write every shard of mine that has no note yet, in worker processes; returns how many have one then."""
    config = work.config
    sizes = work.intake.sizes(config.shard_studies)
    asked = [number for number in range(len(sizes)) if mine(number)]
    there = work.notes.finished(work.store)
    todo = set(asked) - there
    done = sum(sizes[number] for number in asked if number in there)
    told = telemetry.Progress("stage", sum(sizes[number] for number in asked), "studies", done)
    if todo:
        jobs = (job for job in enumerate(work.intake.groups(config.shard_studies)) if job[0] in todo)
        writer = ShardWriter(work.corpus, config.size, config.resize, work.store)
        workers = min(config.workers or os.cpu_count() or 1, len(todo))
        with closing(Pool(workers, writer, seconds=config.seconds).run(jobs)) as finished:
            for (number, studies), written in finished:
                work.notes.put(number, written)
                told.advance(len(studies))
    told.finish()
    return len(asked)


def _assemble(work: _Work) -> dict[str, int]:
    """Make the cohort's files of the notes; returns its counts."""
    corpus, intake, out = work.corpus, work.intake, work.draft.out
    shards: list[Shard] = []
    unreadable: list[tuple[str, str]] = []
    prints = _Prints()
    for number in range(len(intake.sizes(work.config.shard_studies))):
        written = work.notes.get(number)
        unreadable += written.unreadable
        if written.shard.studies:
            shards.append(written.shard)
            prints.add(written)
    dropped = intake.dropped()
    dropped[UNREADABLE] += len(unreadable)
    dropped = +dropped
    if not shards:
        reasons = ", ".join(f"{n} {reason}" for reason, n in sorted(dropped.items()))
        raise NothingLeft(f"{corpus.name}: no study is left to stage ({reasons})")
    alike = prints.alike()
    index = Index(
        corpus=corpus.name,
        hold_out=work.config.hold_out,
        shards=tuple(shards),
        dropped=dict(sorted(dropped.items())),
        account=intake.account(),
        duplicates=dict(sorted(Counter(f"{pair.kind} {pair.split}" for pair in alike).items())),
    )
    (out / INDEX).write_text(index.model_dump_json(indent=1))
    with pq.ParquetWriter(out / DROPPED, _LOST) as table:
        lost = itertools.chain(intake.drops(), unreadable)
        while batch := list(itertools.islice(lost, BATCH)):
            rows = [{"study_id": study_id, "reason": reason} for study_id, reason in batch]
            table.write_table(pa.Table.from_pylist(rows, _LOST))
    pq.write_table(pa.Table.from_pylist([vars(pair) for pair in alike], _ALIKE), out / DUPLICATES)
    truth = corpus.truth()
    if truth is not None:
        pq.write_table(truth.filter(pc.is_in(truth["study_id"], pa.array(prints.ids))), out / TRUTH)
    telemetry.count("unirg.studies", sum(shard.studies for shard in shards), stage="cohort")
    return index.counts()


_LOST = pa.schema([("study_id", pa.string()), ("reason", pa.string())])
_ALIKE = pa.schema(
    [(name, pa.string()) for name in ("study_id", "split", "other_id", "other_split", "kind")]
    + [("distance", pa.int8())]
)


class _Prints:
    """Fingerprints of every study."""

    def __init__(self) -> None:
        self.ids: list[str] = []
        self._splits: list[str] = []
        self._values: list[np.ndarray] = []

    def add(self, written: Written) -> None:
        self.ids += [study_id for study_id, _, _ in written.fingerprints]
        self._splits += [written.shard.split] * len(written.fingerprints)
        self._values.append(np.asarray([values for _, *values in written.fingerprints], np.uint64))

    def alike(self) -> list[duplicates.Duplicate]:
        """Near-duplicates across splits, of reports and of images."""
        values = np.concatenate(self._values)
        return [
            pair
            for column, kind in enumerate(("report", "image"))
            for pair in duplicates.across_splits(kind, self.ids, self._splits, values[:, column])
        ]
