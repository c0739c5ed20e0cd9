"""Stage a corpus: adapter -> filter -> split -> decode once to 8 bits -> content-addressed shards.

A cohort is an index of Parquet shards that lie in the store under their SHA-256, so cohorts share them and
a crash repeats at most the shards that were being written.
"""

from __future__ import annotations

import io
import json
import multiprocessing
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Literal

import pyarrow.parquet as pq
from pydantic import Field

from unirg import artifact, storage, telemetry
from unirg.artifact import Artifact
from unirg.cohort import imaging, priors, splits
from unirg.cohort.corpora import Corpus, Dropped, UnreadableImage
from unirg.cohort.imaging import ResizeMode
from unirg.cohort.reader import INDEX, TRUTH, Index, Shard
from unirg.config import Config, operational
from unirg.errors import UserError
from unirg.processes import interrupts_kept_from_children, start_worker
from unirg.study import Study, to_table

VERSION = 1
ROW_GROUP = 16  # studies; what reading one image costs in bytes
NO_SECTIONS, NO_FRONTAL, UNREADABLE = (
    "neither findings nor impression",
    "no frontal image",
    "unreadable image",
)


class StageConfig(Config):
    """How a corpus becomes a cohort."""

    corpus: Literal["phantom", "iu_xray", "institution"] = "phantom"
    """Which adapter reads it."""
    data: str = operational("")
    """Where the corpus lies (URI); phantoms need none. Identity rests on the content found there."""
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
    from unirg.cohort.corpora.institution import Institution

    return Institution.from_environment(config.data)


@telemetry.verb("stage")
def stage(config: StageConfig, store: str) -> Artifact:
    """Stage a corpus into a cohort artifact.

    Raises:
        UserError: the corpus is missing or unreadable, no study is left, or `hold_out` names nobody.
    """
    corpus = open_corpus(config)
    with artifact.draft(store, "cohort", VERSION, config, {"corpus": corpus.fingerprint()}) as draft:
        if draft.committed:
            return draft.committed
        studies, dropped = select(corpus, config)
        groups = list(group(studies, config.shard_studies))
        shards = []
        for shard, unreadable in _decode(corpus, config, groups, store, draft.scratch):
            shards.append(shard)
            dropped[UNREADABLE] += unreadable
        shards = [shard for shard in shards if shard.studies]
        if not shards:
            reasons = ", ".join(f"{n} {reason}" for reason, n in sorted((+dropped).items()))
            raise UserError(f"{corpus.name}: no study is left to stage ({reasons})")
        index = Index(
            corpus=corpus.name,
            hold_out=config.hold_out,
            shards=tuple(shards),
            dropped=dict(sorted((+dropped).items())),
        )
        (draft.out / INDEX).write_text(index.model_dump_json(indent=1))
        truth = corpus.truth()
        if truth is not None:
            pq.write_table(truth, draft.out / TRUTH)
        counts = Counter({f"dropped.{reason}": number for reason, number in index.dropped.items()})
        for shard in shards:
            counts[f"studies.{shard.split}"] += shard.studies
        telemetry.count("unirg.studies", sum(shard.studies for shard in shards), stage="cohort")
        return draft.commit(counts)


def select(corpus: Corpus, config: StageConfig) -> tuple[list[Study], Counter[str]]:
    """Read, filter, link and split the corpus; count what was dropped, by reason."""
    dropped: Counter[str] = Counter()
    kept, seen = [], set()
    for record in corpus.records():
        reason = record.reason if isinstance(record, Dropped) else unusable(record)
        if reason is None and record.study_id in seen:
            reason = "duplicate study id"
        if reason is not None or isinstance(record, Dropped):
            dropped[str(reason)] += 1
            continue
        seen.add(record.study_id)
        kept.append(record)
    linked = priors.link(kept)
    split, straddling = splits.assign(linked, config.split, config.hold_out)
    dropped.update(straddling)
    return split, dropped


def unusable(study: Study) -> str | None:
    """Why a study cannot be trained on or scored: the paper's filter, and the policy's need of an image."""
    if not (study.findings or study.impression):
        return NO_SECTIONS
    return None if study.key_image else NO_FRONTAL


def group(studies: Iterable[Study], size: int) -> Iterator[list[Study]]:
    """Studies of a split, in order of id, cut into shards: a cohort that only grows keeps its full ones."""
    ordered = sorted(studies, key=lambda study: (study.split or "", study.corpus, study.study_id))
    pending: list[Study] = []
    for study in ordered:
        if pending and (len(pending) == size or pending[0].split != study.split):
            yield pending
            pending = []
        pending.append(study)
    if pending:
        yield pending


def _decode(
    corpus: Corpus, config: StageConfig, groups: list[list[Study]], store: str, scratch: Path
) -> Iterator[tuple[Shard, int]]:
    """Write every group's shard in worker processes; yield (shard, unreadable images) in order.

    A finished shard leaves a note in `scratch`, so that a rerun does not repeat it.
    """
    notes = [scratch / f"shard-{number:06d}.json" for number in range(len(groups))]
    todo = [number for number, note in enumerate(notes) if not note.exists()]
    done = sum(len(groups[number]) for number in range(len(groups)) if number not in set(todo))
    told = telemetry.Progress("stage", sum(map(len, groups)), "studies", done)
    if todo:
        workers = min(config.workers or os.cpu_count() or 1, len(todo))
        # spawn: a forked child of a process with S3 or OpenTelemetry threads may deadlock
        pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), start_worker)
        try:
            with interrupts_kept_from_children():
                jobs = {
                    pool.submit(
                        write_shard, corpus, groups[number], config.size, config.resize, store
                    ): number
                    for number in todo
                }
            for job in as_completed(jobs):
                shard, unreadable = job.result()
                note = notes[jobs[job]]
                aside = note.with_suffix(".part")
                aside.write_text(json.dumps({"shard": shard.model_dump(), "unreadable": unreadable}))
                aside.replace(note)
                told.advance(len(groups[jobs[job]]))
        finally:
            pool.shutdown(cancel_futures=True)
    told.finish()
    for note in notes:
        entry = json.loads(note.read_text())
        yield Shard(**entry["shard"]), entry["unreadable"]


def write_shard(
    corpus: Corpus, studies: list[Study], size: int, mode: ResizeMode, store: str
) -> tuple[Shard, int]:
    """Decode one group and put its shard into the store; runs in a worker process.

    Returns:
        The shard, and how many of its studies had an image that could not be read.
    """
    rows, unreadable = [], 0
    for study in studies:
        try:
            rows.append(_decoded(corpus, study, size, mode))
        except UnreadableImage:
            unreadable += 1
    buffer = io.BytesIO()
    # Images are compressed already; uncompressed pages let a reader map them.
    pq.write_table(to_table(rows), buffer, row_group_size=ROW_GROUP, compression="none")
    data = buffer.getvalue()
    shard = Shard(
        sha256=storage.sha256(data), bytes=len(data), split=studies[0].split or "", studies=len(rows)
    )
    if rows:
        storage.put_new(storage.join(store, shard.name), data)
    return shard, unreadable


def _decoded(corpus: Corpus, study: Study, size: int, mode: ResizeMode) -> Study:
    """The study with its key image decoded; other images keep their view alone."""
    key = study.key_image
    images = []
    for image in study.images:
        update: dict[str, object] = {} if corpus.public else {"uri": None}
        if image is key:
            update["data"] = imaging.encode_png(imaging.resize(corpus.read(image), size, mode))
        images.append(image.model_copy(update=update))
    return study.model_copy(update={"images": tuple(images)})
