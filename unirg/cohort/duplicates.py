"""Near-duplicate reports and images across splits: what a test set may have shown to training already.

Both are found by 64-bit fingerprints that differ in few bits where the contents are alike: SimHash over a
report's three-word sequences (Charikar, STOC 2002), and the signs of differences between neighbouring areas
of the image (dHash). Of fingerprints that differ in n bits one of n + 1 bands is equal, so only studies with
an equal band are compared, for n = 0 first: who has found one as near is not asked about farther ones.

A report that says "no acute disease" equals thousands of others without any leak; an equal image is another
matter. So the two are counted apart, and nothing is dropped.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from PIL import Image as PIL

from unirg.study import Study

DISTANCE = 3
"""Bits of 64 in which two that count as alike differ at most."""
PAIRS = 2**18
"""Compared at once, in 11 MB; beside it a study takes 80 bytes (measured on 200,000)."""
BLANK = 0
"""Fingerprint of what has too little content to be compared."""
_NONE = np.iinfo(np.int64).max


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
    code = np.fromiter(map(names.index, split_names), np.int8, len(split_names))
    rows = [np.flatnonzero((code == one) & (fingerprints != BLANK)) for one in range(len(names))]
    distinct = [np.unique(fingerprints[own], return_index=True) for own in rows]
    found = []
    for asked, name in enumerate(names):
        values = distinct[asked][0]
        place = np.searchsorted(values, fingerprints[rows[asked]])
        for other, (others, first) in enumerate(distinct):
            if name == "train" or other == asked:
                continue
            distance, nearest = (each[place] for each in _nearest(values, others, rows[other][first]))
            near = distance <= DISTANCE
            hits = (rows[asked][near], nearest[near], distance[near])
            found.append(np.stack([hits[0], np.full(len(hits[0]), other), *hits[1:]], axis=1))
    told = np.concatenate(found) if found else np.empty((0, 4), np.int64)
    for row, split, other, bits in told[np.lexsort((told[:, 1], told[:, 0]))].tolist():
        yield Duplicate(study_ids[row], names[code[row]], study_ids[other], names[split], kind, bits)


def _nearest(asked: np.ndarray, others: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(distance, row) of the nearest of `others`, of several the first; where none is near, the distance is
    over `DISTANCE`."""
    distance = np.full(len(asked), DISTANCE + 1, np.int64)
    nearest = np.full(len(asked), _NONE)
    order = _by_information(others)
    for bits in range(DISTANCE + 1):
        todo = np.flatnonzero(distance > DISTANCE)
        for band in range(bits + 1):
            mask = np.bitwise_or.reduce(np.uint64(1) << order[band :: bits + 1])
            for one, other in _equal_pairs(asked[todo] & mask, others & mask):
                # None is nearer: it would have been found with fewer bits.
                near = np.bitwise_count(asked[todo[one]] ^ others[other]) == bits
                np.minimum.at(nearest, todo[one[near]], rows[other[near]])
        distance[todo[nearest[todo] != _NONE]] = bits
    return distance, nearest


def _by_information(values: np.ndarray) -> np.ndarray:
    """The 64 bits, those that are set in about half of the values first: dealt out, bands tell alike much."""
    places = np.arange(64, dtype=np.uint64)
    ones = np.asarray([np.count_nonzero(values & (np.uint64(1) << place)) for place in places])
    return places[np.argsort(np.abs(2 * ones - len(values)), kind="stable")]


def _equal_pairs(keys: np.ndarray, others: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Places (in `keys`, in `others`) of all equal pairs, about `PAIRS` at a time."""
    order = np.argsort(others)
    ordered = others[order]
    low = np.searchsorted(ordered, keys, "left")
    counts = np.searchsorted(ordered, keys, "right") - low
    ends = np.cumsum(counts)
    cuts = np.searchsorted(ends, np.arange(0, ends[-1] if len(ends) else 0, PAIRS), "right").tolist()
    for start, stop in pairwise([*cuts, len(keys)]):
        many = counts[start:stop]
        place = np.repeat(low[start:stop] - (np.cumsum(many) - many), many) + np.arange(many.sum())
        yield np.repeat(np.arange(start, stop), many), order[place]
