"""Some columns of a cohort's shards, a batch at a time, from wherever they lie.

For accounts over whole cohorts: no image is read, nothing is kept, and of an object store only the ranges
of these columns are fetched. So the SHA-256 of a shard is not checked here; `Cohort` does that.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.parquet as pq

from unirg import storage
from unirg.artifact import ArtifactError
from unirg.cohort.reader import Shard

BATCH = 128  # studies; a hostile report may have 10 MB


@contextmanager
def opened(store: str, shard: Shard) -> Iterator[pq.ParquetFile]:
    """A shard as a Parquet file.

    Raises:
        ArtifactError: it is missing or damaged, also where that shows while it is read.
    """
    uri = storage.join(store, shard.name)
    try:
        with storage.explained(uri):
            if storage.is_local(uri):
                yield pq.ParquetFile(storage.local_path(uri), memory_map=True)
                return
            fs, path = storage.open_fs(uri)
            # Arrow knows which ranges it needs: a read-ahead would fetch the images between them.
            with fs.open(path, "rb", cache_type="none") as file:
                yield pq.ParquetFile(file, pre_buffer=True)
    except FileNotFoundError:
        raise ArtifactError(f"{uri} is missing: restore it, or delete the cohorts that list it") from None
    except (pa.ArrowException, OSError):
        raise ArtifactError(f"{uri} is damaged: restore it, or delete the cohorts that list it") from None


def batches(store: str, shard: Shard, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """The shard's rows in order, some columns of them."""
    with opened(store, shard) as file:
        yield from file.iter_batches(batch_size=BATCH, columns=list(columns), use_threads=False)
