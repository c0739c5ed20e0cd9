"""Read a predictions artifact batch by batch, however its rows are laid out.

One `predictions.parquet`, or shards `predictions/000000.parquet`, ... in the order of their numbers: rows are
in the archive's order, by corpus and study id. Each file is checked against the manifest when first read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from unirg.artifact import Artifact, ArtifactError

WHOLE = "predictions.parquet"
SHARD = re.compile(r"predictions/[0-9]+\.parquet")
FAILURES = "failures.parquet"
BATCH = 1024
"""Rows that are held at once; a report has about 1 kB."""


def files(artifact: Artifact) -> list[str]:
    """Names of the files that hold its predictions.

    Raises:
        ArtifactError: it has none, so it is no predictions artifact.
    """
    names = artifact.manifest.files
    found = [WHOLE] if WHOLE in names else sorted(filter(SHARD.fullmatch, names))
    if not found:
        raise ArtifactError(
            f"{artifact.uri} was made by stage {artifact.manifest.stage} and has no predictions"
        )
    return found


def batches(artifact: Artifact, columns: Sequence[str] | None = None) -> Iterator[list[dict[str, Any]]]:
    """Its rows as dicts, in the archive's order; only some columns where they are named."""
    for name in files(artifact):
        yield from _rows(artifact, name, columns)


def failures(artifact: Artifact) -> Iterator[list[dict[str, Any]]]:
    """The rows of the studies that have no prediction, with their reasons."""
    yield from _rows(artifact, FAILURES, None)


def column(artifact: Artifact, name: str) -> list[Any]:
    """One column of all predictions, for what needs it whole."""
    return [row[name] for batch in batches(artifact, [name]) for row in batch]


def _rows(artifact: Artifact, name: str, columns: Sequence[str] | None) -> Iterator[list[dict[str, Any]]]:
    try:
        with pq.ParquetFile(artifact.path(name), memory_map=True) as file:
            for batch in file.iter_batches(
                BATCH, columns=list(columns) if columns else None, use_threads=False
            ):
                yield batch.to_pylist()
    except pa.ArrowException:
        raise ArtifactError(
            f"{artifact.uri_of(name)} is no Parquet file with the columns asked for"
        ) from None
