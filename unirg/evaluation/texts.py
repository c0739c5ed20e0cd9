"""What a set of reports looks like as texts: repeated, alike, long, cut, in sections. No judgement here.

Two reports are the same where their words are, whatever case and white space. How alike they are is the
Jaccard index of their sets of words, which is quick and blind to order: of two normal reports about a half.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

import numpy as np

from unirg.evaluation.groups import Record, number

PROBES = 32
"""Texts around which near copies are counted: a form that 10% share escapes them once in thirty times."""
SAMPLED = 2000
"""Texts that are searched for near copies, evenly over the list."""
NEAR = 0.8
"""Jaccard index from which a report is a near copy: a side, a degree or a device is all that differs in
twenty words. References of two patients reach it where both are normal, so it is read beside theirs."""
ENDS = (".", "!", "?", ":", ")", "]", '"')
"""How a finished text ends."""


def plain(text: str) -> str:
    """The text by which two are the same."""
    return " ".join(text.casefold().split())


def words(text: str) -> frozenset[str]:
    """Its distinct words, without punctuation at their ends."""
    return frozenset(filter(None, (word.strip(".,;:()[]\"'!?") for word in text.casefold().split())))


def jaccard(a: Collection[str], b: Collection[str]) -> float:
    """Common words over all words; 1 of two texts without any."""
    a, b = frozenset(a), frozenset(b)
    return len(a & b) / len(a | b) if a or b else 1.0


def repeated(texts: Sequence[str]) -> float:
    """Share of the texts that repeat one before them: 0 where all differ, nearly 1 where all are the same."""
    return 1 - len({plain(text) for text in texts}) / len(texts) if texts else 0.0


def commonest(texts: Sequence[str], most: int) -> list[tuple[str, int]]:
    """The most frequent texts as they are written first, with how often each comes."""
    counts = Counter(map(plain, texts))
    written = {plain(text): text for text in reversed(texts)}
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return [(written[text], times) for text, times in ordered[:most]]


def near(texts: Sequence[str]) -> float:
    """Largest share of the texts that are near copies of one of them, the copies of itself included.

    Looked for around `PROBES` of the texts and the commonest one.
    """
    if not texts:
        return 0.0
    step = max(1, -(-len(texts) // SAMPLED))
    sample = Counter(map(words, texts[::step]))
    total = sample.total()
    every = [words(text) for text in texts[::step]]
    probes = {*every[:: max(1, len(every) // PROBES)], words(commonest(texts, 1)[0][0])}
    return max(
        sum(times for other, times in sample.items() if jaccard(probe, other) >= NEAR) / total
        for probe in probes
    )


def statistics(texts: Sequence[str]) -> Record:
    """Shares and quartiles of a set of reports; None where there is none."""
    if not texts:
        return dict.fromkeys(("repeated", "top", "near", "empty", "unfinished", "findings", "impression")) | {
            "length": None
        }
    lengths = [len(text.split()) for text in texts]
    written = [text for text in texts if text.strip()]
    shares = {
        "repeated": repeated(texts),
        "top": commonest(texts, 1)[0][1] / len(texts),
        "near": near(texts),
        "empty": 1 - len(written) / len(texts),
        "unfinished": sum(not text.rstrip().endswith(ENDS) for text in written) / len(texts),
        "findings": sum("Findings:" in text for text in texts) / len(texts),
        "impression": sum("Impression:" in text for text in texts) / len(texts),
    }
    quartiles = np.quantile(lengths, [0.25, 0.5, 0.75]).tolist()
    length = dict(zip(("q1", "median", "q3"), quartiles, strict=True)) | {"longest": max(lengths)}
    return {name: number(share) for name, share in shares.items()} | {"length": length}
