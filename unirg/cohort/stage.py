"""Stage a corpus: adapter -> filter -> split -> decode once to 8 bits -> content-addressed shards.

A cohort is an index of Parquet shards that lie in the store under their SHA-256, so cohorts share them and
a crash repeats at most the shards that were being written: each finished shard leaves a note in the store.
So several machines may each write a part of the shards (`stage_part`) before one makes the cohort of them.
"""

from __future__ import annotations

import io
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from unirg import artifact, storage, telemetry
from unirg.artifact import Artifact, Draft
from unirg.cohort import card, duplicates, imaging, splits
from unirg.cohort.corpora import Corpus, UnreadableImage
from unirg.cohort.corpora.institution import InstitutionConfig
from unirg.cohort.imaging import ResizeMode
from unirg.cohort.intake import Intake
from unirg.cohort.reader import DROPPED, DUPLICATES, INDEX, SHARDS, TRUTH, Index, Shard
from unirg.cohort.withdrawal import Withdrawn
from unirg.cohort.workers import NO_ITEM, Pool
from unirg.config import Config, operational
from unirg.errors import UserError
from unirg.study import Study, to_table

VERSION = 3
ROW_GROUP = 8
"""Studies. Fewer make reading one image cheaper and the footer, which is read first, longer."""
UNREADABLE = "unreadable image"


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
    seconds: float = operational(60.0, gt=0)
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


@telemetry.verb("stage")
def stage(config: StageConfig, store: str) -> Artifact:
    """Stage a corpus into a cohort artifact.

    Raises:
        UserError: the corpus is missing or unreadable, no study is left, or `hold_out` names nobody.
    """
    corpus = open_corpus(config)
    with _draft(corpus, config, store) as (draft, intake, notes):
        if draft.committed:
            return draft.committed
        _decode(corpus, config, intake, notes, store, lambda number: True)
        counts = _assemble(corpus, config, intake, notes, draft)
        cards = draft.out / "logs"  # not content: how a card looks is no part of the cohort's identity
        cards.mkdir()
        card.write(Index.model_validate_json((draft.out / INDEX).read_bytes()), store, cards)
        made = draft.commit(counts)
        notes.remove()
        return made


@telemetry.verb("stage.part")
def stage_part(config: StageConfig, store: str, part: int, parts: int) -> int:
    """Write the shards whose number is `part` modulo `parts`, for a `stage` that follows; returns how many.

    Raises:
        UserError: as `stage`, or there is no such part.
    """
    if not 0 <= part < parts:
        raise UserError(f"part {part} of {parts}: parts are counted from 0 to {parts - 1}")
    corpus = open_corpus(config)
    with _draft(corpus, config, store) as (draft, intake, notes):
        if draft.committed:
            return 0
        return _decode(corpus, config, intake, notes, store, lambda number: number % parts == part)


@contextmanager
def _draft(corpus: Corpus, config: StageConfig, store: str) -> Iterator[tuple[Draft, Intake, Notes]]:
    """The cohort in the making, with the corpus taken in."""
    inputs = {"corpus": corpus.fingerprint()}
    withdrawn = Withdrawn.load(store).of_corpus(corpus.name)
    if withdrawn:
        inputs["withdrawn"] = withdrawn.digest
    with artifact.draft(store, "cohort", VERSION, config, inputs) as draft:
        intake = Intake(draft.scratch / "intake.sqlite")
        try:
            if not draft.committed:
                intake.take(corpus, config.split, config.hold_out, withdrawn.covers)
            yield draft, intake, Notes(storage.join(store, ".work", f"cohort-{draft.key[:16]}", "notes"))
        except BaseException:
            if not corpus.public:  # it holds paths, and an institution's paths may name a patient
                intake.discard()
            raise


def _decode(
    corpus: Corpus,
    config: StageConfig,
    intake: Intake,
    notes: Notes,
    store: str,
    mine: Callable[[int], bool],
) -> int:
    """Write every shard of mine that has no note yet, in worker processes; returns how many have one then."""
    sizes = intake.sizes(config.shard_studies)
    asked = [number for number in range(len(sizes)) if mine(number)]
    there = notes.finished(store)
    todo = set(asked) - there
    done = sum(sizes[number] for number in asked if number in there)
    told = telemetry.Progress("stage", sum(sizes[number] for number in asked), "studies", done)
    if todo:
        jobs = (job for job in enumerate(intake.groups(config.shard_studies)) if job[0] in todo)
        writer = ShardWriter(corpus, config.size, config.resize, store)
        workers = min(config.workers or os.cpu_count() or 1, len(todo))
        with closing(Pool(workers, writer, seconds=config.seconds).run(jobs)) as finished:
            for (number, studies), written in finished:
                notes.put(number, written)
                told.advance(len(studies))
    told.finish()
    return len(asked)


def _assemble(
    corpus: Corpus, config: StageConfig, intake: Intake, notes: Notes, draft: Draft
) -> dict[str, int]:
    """Make the cohort's files of the notes; returns its counts."""
    shards: list[Shard] = []
    unreadable: list[tuple[str, str]] = []
    prints: list[tuple[str, str, int, int]] = []
    for number in range(len(intake.sizes(config.shard_studies))):
        written = notes.get(number)
        unreadable += written.unreadable
        if written.shard.studies:
            shards.append(written.shard)
            prints += [
                (one, written.shard.split, report, image) for one, report, image in written.fingerprints
            ]
    dropped = intake.dropped()
    dropped[UNREADABLE] += len(unreadable)
    dropped = +dropped
    if not shards:
        reasons = ", ".join(f"{n} {reason}" for reason, n in sorted(dropped.items()))
        raise UserError(f"{corpus.name}: no study is left to stage ({reasons})")
    alike = _alike(prints)
    index = Index(
        corpus=corpus.name,
        hold_out=config.hold_out,
        shards=tuple(shards),
        dropped=dict(sorted(dropped.items())),
        account=intake.account(),
        duplicates=dict(sorted(Counter(f"{pair.kind} {pair.split}" for pair in alike).items())),
    )
    (draft.out / INDEX).write_text(index.model_dump_json(indent=1))
    lost = [{"study_id": one, "reason": reason} for one, reason in (*intake.drops(), *unreadable)]
    pq.write_table(pa.Table.from_pylist(lost, _LOST), draft.out / DROPPED)
    pq.write_table(pa.Table.from_pylist([vars(pair) for pair in alike], _ALIKE), draft.out / DUPLICATES)
    truth = corpus.truth()
    if truth is not None:
        pq.write_table(truth, draft.out / TRUTH)
    counts = Counter({f"dropped.{reason}": number for reason, number in index.dropped.items()})
    for shard in shards:
        counts[f"studies.{shard.split}"] += shard.studies
    counts.update({f"met.{what}": number for what, number in index.account.items()})
    counts.update({f"duplicates.{kind}": number for kind, number in index.duplicates.items()})
    telemetry.count("unirg.studies", sum(shard.studies for shard in shards), stage="cohort")
    return counts


_LOST = pa.schema([("study_id", pa.string()), ("reason", pa.string())])
_ALIKE = pa.schema(
    [(name, pa.string()) for name in ("study_id", "split", "other_id", "other_split", "kind")]
    + [("distance", pa.int8())]
)


def _alike(prints: list[tuple[str, str, int, int]]) -> list[duplicates.Duplicate]:
    """Near-duplicates across splits, of reports and of images."""
    ids, names = [entry[0] for entry in prints], [entry[1] for entry in prints]
    found: list[duplicates.Duplicate] = []
    for kind, column in (("report", 2), ("image", 3)):
        values = np.asarray([entry[column] for entry in prints], np.uint64)
        found += duplicates.across_splits(kind, ids, names, values)
    return found


@dataclass(frozen=True)
class Written:
    """What became of one group of studies."""

    shard: Shard
    unreadable: list[tuple[str, str]]
    """(study id, reason) of those whose image could not be read."""
    fingerprints: list[tuple[str, int, int]]
    """(study id, of the report, of the image) of the others."""


class Notes:
    """What is finished of a cohort in the making, one small object for each shard, in the store."""

    def __init__(self, uri: str) -> None:
        self._uri = uri

    def finished(self, store: str) -> set[int]:
        """Numbers of the notes whose shard lies in the store; someone may have cleared it by hand."""
        names = (name.rpartition("-")[2].partition(".") for name in _names(self._uri))
        numbers = {int(number) for number, _, kind in names if kind == "json"}
        there = _names(storage.join(store, SHARDS))
        notes = ((number, self.get(number).shard) for number in sorted(numbers))
        return {number for number, shard in notes if not shard.studies or shard.file in there}

    def put(self, number: int, written: Written) -> None:
        note = {
            "shard": written.shard.model_dump(),
            "unreadable": written.unreadable,
            "fingerprints": written.fingerprints,
        }
        storage.put_new(self._name(number), json.dumps(note).encode())

    def get(self, number: int) -> Written:
        note: dict[str, Any] = json.loads(storage.read_bytes(self._name(number)))
        unreadable = [(study_id, reason) for study_id, reason in note["unreadable"]]
        fingerprints = [(study_id, report, image) for study_id, report, image in note["fingerprints"]]
        return Written(Shard(**note["shard"]), unreadable, fingerprints)

    def remove(self) -> None:
        """After the cohort is committed, nobody asks for them again."""
        fs, path = storage.open_fs(self._uri)
        with storage.explained(self._uri):
            if fs.isdir(path):
                fs.rm(path, recursive=True)

    def _name(self, number: int) -> str:
        return storage.join(self._uri, f"shard-{number:06d}.json")


def _names(folder: str) -> set[str]:
    """What lies in a folder of the store; nothing where there is none."""
    fs, path = storage.open_fs(folder)
    with storage.explained(folder):
        return {
            str(name).rpartition("/")[2] for name in (fs.ls(path, detail=False) if fs.isdir(path) else [])
        }


@dataclass(frozen=True)
class ShardWriter:
    """Decodes groups of studies and puts their shards into the store; called in worker processes."""

    corpus: Corpus
    size: int
    mode: ResizeMode
    store: str

    def __call__(
        self, job: tuple[int, list[Study]], condemned: Mapping[int, str], begin: Callable[[int], None]
    ) -> Written:
        """`condemned` are the studies, by their place, whose image has killed a decoder, with the reason."""
        _, studies = job
        rows, prints = [], []
        unreadable = []
        for place, study in enumerate(studies):
            if place in condemned:
                unreadable.append((study.study_id, f"{UNREADABLE}: {condemned[place]}"))
                continue
            begin(place)
            try:
                row, pixels = self._decoded(study)
            except UnreadableImage as error:
                unreadable.append((study.study_id, f"{UNREADABLE}: {error}"))
            else:
                rows.append(row)
                prints.append(
                    (study.study_id, duplicates.report_fingerprint(row), duplicates.image_fingerprint(pixels))
                )
        begin(NO_ITEM)
        buffer = io.BytesIO()
        # Images are compressed already, and no two are equal: a reader maps plain pages.
        pq.write_table(
            to_table(rows),
            buffer,
            row_group_size=ROW_GROUP,
            compression="none",
            use_dictionary=False,
            write_statistics=False,
        )
        data = buffer.getvalue()
        shard = Shard(
            sha256=storage.sha256(data), bytes=len(data), split=studies[0].split or "", studies=len(rows)
        )
        # One that an earlier cohort left gets a new age: `unirg gc` frees what is old and in no cohort.
        uri = storage.join(self.store, shard.name)
        if rows and not storage.put_new(uri, data):
            storage.renew(uri)
        return Written(shard, unreadable, prints)

    def _decoded(self, study: Study) -> tuple[Study, np.ndarray]:
        """The study with its key image decoded, and its pixels; other images keep their view alone."""
        key = study.key_image
        images = []
        for image in study.images:
            update: dict[str, object] = {} if self.corpus.public else {"uri": None}
            if image is key:
                pixels = imaging.resize(self.corpus.read(image, self.size), self.size, self.mode)
                update["data"] = imaging.encode_png(pixels)
            images.append(image.model_copy(update=update))
        return study.model_copy(update={"images": tuple(images)}), pixels
