"""Archives of any size in no time: a few drawn radiographs under many study ids."""

from __future__ import annotations

import pyarrow.parquet as pq

from tests import toy
from unirg import artifact, storage
from unirg.artifact import Artifact
from unirg.cohort.reader import INDEX, Index, Shard
from unirg.cohort.shards import ROW_GROUP
from unirg.config import Config
from unirg.study import Image, Study, to_table

SHARD = 32
"""Studies of a shard: few, as a range ends with one."""


class _Made(Config):
    studies: int
    size: int
    pictures: int


def study(number: int, data: bytes) -> Study:
    """No two are asked about in the same words, so no two questions are alike."""
    return Study(
        corpus="drawn",
        study_id=f"s{number:07d}",
        patient_id=f"p{number // 2:07d}",
        institution=f"hospital-{number % 3}",
        split="test",
        images=(Image(view="frontal", projection="PA", data=data),),
        indication=f"Case {number}.",
        findings="Lungs are clear.",
        impression="Normal.",
    )


def make(store: str, studies: int, size: int = 64, pictures: int = 16, shard: int = SHARD) -> Artifact:
    """A cohort of `studies`, all in the split `test`, that share `pictures` images of `size` pixels."""
    with artifact.draft(
        store, "cohort", 1, _Made(studies=studies, size=size, pictures=pictures), {}
    ) as draft:
        if draft.committed:
            return draft.committed
        drawn = [toy.picture(number, size) for number in range(min(pictures, studies))]
        shards = []
        for first in range(0, studies, shard):
            numbers = range(first, min(first + shard, studies))
            path = draft.scratch / "shard.parquet"
            table = to_table(study(number, drawn[number % len(drawn)]) for number in numbers)
            # Without a dictionary: shared images would be stored once, and an archive has no shared images.
            pq.write_table(table, path, row_group_size=ROW_GROUP, compression="none", use_dictionary=False)
            data = path.read_bytes()
            one = Shard(sha256=storage.sha256(data), bytes=len(data), split="test", studies=len(numbers))
            storage.put_new(storage.join(store, one.name), data)
            shards.append(one)
        index = Index(
            corpus="drawn", hold_out=(), shards=tuple(shards), dropped={}, account={}, duplicates={}
        )
        (draft.out / INDEX).write_text(index.model_dump_json())
        return draft.commit()
