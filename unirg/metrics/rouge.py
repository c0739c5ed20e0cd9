"""ROUGE-L (Lin, ACL 2004 workshop): F1 of the longest common subsequence of words.

Range 0 to 1, higher is better, symmetric in its two texts. It equals the package rouge_score's `rougeL`
(sentence level, no stemming, its default tokens). ReXrank does not report it.
"""

from __future__ import annotations

import re
from functools import lru_cache

_WORD = re.compile(r"[a-z0-9]+")


def rouge_l(candidate: str, reference: str) -> float:
    """F1 in [0, 1] of the longest common subsequence; 0 where either text has no word."""
    words = _WORD.findall(candidate.lower())
    positions, length = _reference_positions(reference)
    if not words or not length:
        return 0.0
    # The bit-parallel recurrence of Hyyro (2004): bit i of `row` is 0 where the longest common subsequence
    # of the words read so far grows at the reference's word i. A Python integer holds a row of any length.
    every = (1 << length) - 1
    row = every
    for word in words:
        matches = row & positions.get(word, 0)
        row = ((row + matches) | (row - matches)) & every
    common = length - row.bit_count()
    return 2 * common / (len(words) + length)


@lru_cache(maxsize=1024)
def _reference_positions(reference: str) -> tuple[dict[str, int], int]:
    """For each word a bit mask of where it stands in the reference, and the reference's length in words."""
    words = _WORD.findall(reference.lower())
    positions: dict[str, int] = {}
    for index, word in enumerate(words):
        positions[word] = positions.get(word, 0) | 1 << index
    return positions, len(words)
