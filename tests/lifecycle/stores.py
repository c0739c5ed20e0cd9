"""Small stores for the tests of lineage and retention: cohorts of chosen studies, and their artifacts."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow.parquet as pq

from unirg import artifact, storage
from unirg.artifact import Artifact
from unirg.cohort.reader import INDEX, Index, Shard
from unirg.config import Config
from unirg.study import Image, Study, to_table

Name = tuple[str, str]
"""(study_id, split)"""


class Made(Config):
    name: str = ""
    """Whatever tells two artifacts apart."""
    source: str = "toy"
    """As `BaseConfig` has it."""


def study(study_id: str, split: str, corpus: str = "phantom") -> Study:
    """Study `s12` is of patient `p1`: ten studies each."""
    return Study(
        corpus=corpus,
        study_id=study_id,
        patient_id=f"p{study_id[1:-1]}",
        institution="north",
        split=split,  # type: ignore[arg-type]
        images=(Image(view="frontal", data=b"pixels"),),
        findings=f"Findings of {study_id}.",
    )


def put_shard(store: str, names: Sequence[Name], corpus: str = "phantom") -> Shard:
    buffer = io.BytesIO()
    pq.write_table(to_table(study(*name, corpus) for name in names), buffer, row_group_size=2)
    data = buffer.getvalue()
    shard = Shard(sha256=storage.sha256(data), bytes=len(data), split=names[0][1], studies=len(names))
    storage.put_new(storage.join(store, shard.name), data)
    return shard


def cohort(store: str, *groups: Sequence[Name]) -> Artifact:
    """A cohort with a shard for each group."""
    with artifact.draft(store, "cohort", 1, Made(name=repr(groups)), {"corpus": "d1"}) as draft:
        if draft.committed:
            return draft.committed
        shards = tuple(put_shard(store, group) for group in groups)
        index = Index(corpus="phantom", hold_out=(), shards=shards, dropped={}, account={}, duplicates={})
        (draft.out / INDEX).write_text(index.model_dump_json())
        (draft.out / "logs").mkdir()
        (draft.out / "logs" / "log").write_text("x")
        return draft.commit({"studies": sum(map(len, groups))})


def made(
    store: str, stage: str, inputs: Mapping[str, Artifact | str], name: str = "", source: str = "toy"
) -> Artifact:
    """An artifact of another stage, with content of its own."""
    with artifact.draft(store, stage, 1, Made(name=name, source=source), inputs) as draft:
        if not draft.committed:
            (draft.out / "content").write_text(f"{stage} {name} {draft.key}")
        return draft.committed or draft.commit()


def shards(store: str) -> set[str]:
    """SHA-256 of the shards that lie in the store."""
    fs, path = storage.open_fs(storage.join(store, "shards"))
    listed = fs.ls(path, detail=False) if fs.exists(path) else []
    return {str(name).rpartition("/")[2].removesuffix(".parquet") for name in listed}


def age(store: str, hours: float = 25) -> None:
    """Make everything in a local store look as old."""
    then = time.time() - hours * 3600
    for path in storage.local_path(store).rglob("*"):
        os.utime(path, (then, then))


def snapshot(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}
