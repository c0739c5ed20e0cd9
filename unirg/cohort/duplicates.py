"""Near-duplicate reports and images across splits: what a test set may have shown to training already.

Both are found by 64-bit fingerprints that differ in few bits where the contents are alike: SimHash over a
report's three-word sequences (Charikar, STOC 2002), and the signs of differences between neighbouring areas
of the image (dHash). Pairs within `DISTANCE` bits share at least one of `DISTANCE` + 1 bands of the bits, so
only studies with an equal band are compared. Sixteen bytes a study are held in memory.

A report that says "no acute disease" equals thousands of others without any leak; an equal image is another
matter. So the two are counted apart, and nothing is dropped.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image as PIL

from unirg.study import Study

DISTANCE = 3
"""Bits of 64 in which two that count as alike differ at most."""
BANDS = DISTANCE + 1
BLANK = 0
"""Fingerprint of what has too little content to be compared."""


@dataclass(frozen=True)
class Duplicate:
    """A study outside the training split, and one of another split that is like it."""

    study_id: str
    split: str
    other_id: str
    other_split: str
    kind: str
    """`image` or `report`."""
    distance: int
    """Bits in which the fingerprints differ, 0 to `DISTANCE`."""


def report_fingerprint(study: Study) -> int:
    """SimHash of findings and impression, by their words alone; BLANK where there are fewer than three."""
    words = re.findall(r"[^\W\d_]+", f"{study.findings or ''} {study.impression or ''}".casefold())
    shingles = {" ".join(words[start : start + 3]) for start in range(len(words) - 2)}
    if not shingles:
        return BLANK
    digests = b"".join(hashlib.blake2b(each.encode(), digest_size=8).digest() for each in shingles)
    bits = np.unpackbits(np.frombuffer(digests, np.uint8).reshape(len(shingles), 8), axis=1)
    return _packed(2 * bits.sum(0, dtype=np.int64) > len(shingles))


def image_fingerprint(pixels: np.ndarray) -> int:
    """dHash of (height, width) uint8: which of 8 x 9 areas is brighter than its left neighbour."""
    small = np.asarray(PIL.fromarray(pixels).resize((9, 8), PIL.Resampling.BOX), np.int16)
    if int(small.max()) - int(small.min()) < 8:  # an empty film: any noise would decide
        return BLANK
    return _packed((small[:, 1:] > small[:, :-1]).ravel())


def _packed(bits: np.ndarray) -> int:
    return int.from_bytes(np.packbits(bits).tobytes())


def across_splits(
    kind: str, study_ids: Sequence[str], split_names: Sequence[str], fingerprints: np.ndarray
) -> Iterator[Duplicate]:
    """For each study outside `train`, the nearest one like it in each other split that has one.

    Args:
        fingerprints: (studies,) uint64. Of equal ones in a split the first study stands for all, so many
            equal reports cost no more than one.
    """
    names = sorted(set(split_names))
    code = np.asarray([names.index(name) for name in split_names])
    firsts: dict[tuple[int, int], int] = {}
    for row in np.flatnonzero(fingerprints != BLANK).tolist():
        firsts.setdefault((int(fingerprints[row]), int(code[row])), row)
    nearest = _nearest(firsts)
    for row in np.flatnonzero(fingerprints != BLANK).tolist():
        if split_names[row] == "train":
            continue
        found = nearest.get((int(fingerprints[row]), int(code[row])), {})
        for other_code, (distance, other) in sorted(found.items()):
            yield Duplicate(
                study_ids[row], split_names[row], study_ids[other], names[other_code], kind, distance
            )


def _nearest(firsts: dict[tuple[int, int], int]) -> dict[tuple[int, int], dict[int, tuple[int, int]]]:
    """(fingerprint, split) -> other split -> (distance, row) of the nearest within `DISTANCE`."""
    width = 64 // BANDS
    nearest: dict[tuple[int, int], dict[int, tuple[int, int]]] = {}
    for band in range(BANDS):
        buckets: dict[int, list[tuple[int, int]]] = {}
        for key in firsts:
            buckets.setdefault(key[0] >> (band * width) & ((1 << width) - 1), []).append(key)
        for bucket in buckets.values():
            values = np.asarray([value for value, _ in bucket], np.uint64)
            codes = np.asarray([split for _, split in bucket])
            for place, (value, split) in enumerate(bucket):
                distances = np.bitwise_count(values ^ values[place])
                for other in np.flatnonzero((distances <= DISTANCE) & (codes != split)):
                    candidate = int(distances[other]), firsts[bucket[other]]
                    known = nearest.setdefault((value, split), {})
                    other_split = int(codes[other])
                    known[other_split] = min(known.get(other_split, candidate), candidate)
    return nearest
