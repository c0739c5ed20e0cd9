"""The shards of a cohort in the making, each written in a worker process and noted when it is there."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from unirg import artifact, storage
from unirg.cohort import duplicates, imaging
from unirg.cohort.corpora import Corpus, UnreadableImage
from unirg.cohort.imaging import ResizeMode
from unirg.cohort.reader import SHARDS, Shard
from unirg.cohort.workers import CRASHED, NO_ITEM, TOO_SLOW
from unirg.study import Study, to_table

ROW_GROUP = 8
"""Studies. Fewer make reading one image cheaper and the footer, which is read first, longer."""
UNREADABLE = "unreadable image"
DOUBTFUL = (f"{UNREADABLE}: {CRASHED}", f"{UNREADABLE}: {TOO_SLOW}")
"""Reasons that a busy machine may give; the next run tries again."""


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
        """Numbers of the shards that need no writing; the notes of others are removed.

        Those are notes with a doubtful reason, and of a shard that someone has cleared from the store.
        """
        there = _names(storage.join(store, SHARDS))
        found = set()
        for name in sorted(_names(self._uri)):
            number, _, kind = name.rpartition("-")[2].partition(".")
            if kind != "json":
                continue
            written = self.get(int(number))
            doubtful = any(reason in DOUBTFUL for _, reason in written.unreadable)
            if doubtful or (written.shard.studies and written.shard.file not in there):
                fs, path = storage.open_fs(self._name(int(number)))
                with storage.explained(self._uri):
                    fs.rm_file(path)
            else:
                found.add(int(number))
        return found

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


def put_shard(store: str, table: pa.Table, split: str) -> Shard:
    """Write studies of one split as a shard, unless it is there; of none the store gets no file.

    Args:
        table: with `unirg.study.SCHEMA`.
    """
    buffer = io.BytesIO()
    # Images are compressed already, and no two are equal: a reader maps plain pages.
    pq.write_table(
        table,
        buffer,
        row_group_size=ROW_GROUP,
        compression="none",
        use_dictionary=False,
        write_statistics=False,
    )
    data = buffer.getvalue()
    shard = Shard(sha256=storage.sha256(data), bytes=len(data), split=split, studies=len(table))
    # One that an earlier cohort left gets a new age: `unirg gc` frees what is old and in no cohort.
    uri = storage.join(store, shard.name)
    with artifact.gc_lock(store):
        if len(table) and not storage.put_new(uri, data):
            storage.renew(uri)
    return shard


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
            try:
                row, pixels = self._decoded(study, partial(begin, place))
            except UnreadableImage as error:
                unreadable.append((study.study_id, f"{UNREADABLE}: {error}"))
            else:
                rows.append(row)
                prints.append(
                    (study.study_id, duplicates.report_fingerprint(row), duplicates.image_fingerprint(pixels))
                )
            begin(NO_ITEM)
        return Written(put_shard(self.store, to_table(rows), studies[0].split or ""), unreadable, prints)

    def _decoded(self, study: Study, fetched: Callable[[], None]) -> tuple[Study, np.ndarray]:
        """The study with its key image decoded, and its pixels; other images keep their view alone."""
        key = study.key_image
        images = []
        for image in study.images:
            update: dict[str, object] = {} if self.corpus.public else {"uri": None}
            if image is key:
                pixels = imaging.resize(self.corpus.read(image, self.size, fetched), self.size, self.mode)
                update["data"] = imaging.encode_png(pixels)
            images.append(image.model_copy(update=update))
        return study.model_copy(update={"images": tuple(images)}), pixels
