"""Sentence BLEU (Papineni et al., ACL 2002), exactly as ReXrank computes its BLEU-2.

Range 0 to 1, higher is better. ReXrank's setting (rajpurkarlab/CXR-Report-Metric, `CXRMetric/run_eval.py`,
over the package fast-bleu): one reference; weights (1/2, 1/2); precisions without a match smoothed as by
NLTK's `method1`; a score a study, then the mean over studies. Its tokens have three consequences, all kept:
a full stop is a token of its own, any other punctuation sticks to its word, and a newline does not separate,
so that a reference with line breaks never scores 1 against the same words on one line.
"""

from __future__ import annotations

import math
from collections import Counter
from functools import lru_cache
from typing import Any

_EPSILON = 0.1
"""The count that `method1` puts where an order of n-grams has no match."""


def tokens(text: str) -> list[str]:
    """ReXrank's tokens: lower case, "." set off by a space, split on single spaces, no empty ones."""
    return [token for token in text.lower().replace(".", " .").split(" ") if token]


def bleu(candidate: str, reference: str, n: int = 2) -> float:
    """BLEU-n of one candidate against one reference, with equal weights over the orders 1 to n.

    Args:
        n: 2 is ReXrank's; 4 is the usual BLEU-4 with the same tokens and smoothing.

    Returns:
        A score in [0, 1]; 0 for an empty candidate and for one that shares no word with the reference.
    """
    words = tokens(candidate)
    expected, expected_length = _reference_counts(reference, n)
    log_precision = 0.0
    for order in range(1, n + 1):
        counts = _ngram_counts(words, order)
        matches = sum((counts & expected[order - 1]).values())
        if order == 1 and not matches:
            return 0.0
        log_precision += math.log((matches or _EPSILON) / max(1, len(words) - order + 1)) / n
    shortfall = min(0.0, 1 - expected_length / len(words))
    return math.exp(shortfall + log_precision)


@lru_cache(maxsize=1024)
def _reference_counts(reference: str, n: int) -> tuple[tuple[Counter[Any], ...], int]:
    """The reference's n-grams of each order and its length; kept, since a GRPO group shares its reference."""
    words = tokens(reference)
    return tuple(_ngram_counts(words, order) for order in range(1, n + 1)), len(words)


def _ngram_counts(words: list[str], order: int) -> Counter[Any]:
    return Counter(zip(*(words[start:] for start in range(order)), strict=False))
