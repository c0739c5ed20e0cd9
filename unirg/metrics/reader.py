"""One scorer over a stream of pairs: no text is read twice where what was read of it is still at hand.

What a scorer reads of a text (its features) is looked for among those read lately, then on disk, and only
then is the model run. Features that are large (BERTScore's, of every token) are not worth keeping for a
candidate, which hardly comes again, so of those only the references' stay in memory and the disk gets the
scores of the pair instead.
"""

from __future__ import annotations

import math
import struct
from collections import OrderedDict
from collections.abc import Sequence

from unirg.metrics.cache import Cache, pair_digest, text_digest
from unirg.metrics.scorer import Feature, Pair, Row, TextScorer

ENTRY = 512
"""Bytes that keeping a feature takes besides it, about."""


class Recent:
    """Features used last, up to a number of bytes."""

    def __init__(self, bound: int) -> None:
        self.bound, self.held = bound, 0
        """Bytes, by the scorer's own count and `ENTRY`."""
        self._features: OrderedDict[bytes, tuple[Feature, int]] = OrderedDict()

    def get(self, digest: bytes) -> tuple[Feature] | None:
        """The feature in a tuple (it may be anything, None too), or None where it is not held."""
        if digest not in self._features:
            return None
        self._features.move_to_end(digest)
        return self._features[digest][:1]

    def put(self, digest: bytes, feature: Feature, size: int) -> None:
        size += ENTRY
        self._features[digest] = feature, size
        self.held += size
        while self.held > self.bound:
            _, (_, given_up) = self._features.popitem(last=False)
            self.held -= given_up


class Reader:
    """A scorer, what it read lately, and what is on disk of it."""

    def __init__(self, scorer: TextScorer, cache: Cache | None, memory: int) -> None:
        """
        Args:
            memory: bytes of features to hold.
        """
        self.scorer = scorer
        self._cache = cache
        self._recent = Recent(memory)
        self._format = struct.Struct(f"<{len(scorer.scores)}d")

    def rows(self, pairs: Sequence[Pair]) -> dict[Pair, Row]:
        """The scores of each pair, none of which comes twice."""
        if self.scorer.kept == "texts" or self._cache is None:
            return self._compared(pairs)
        digests = {pair: pair_digest(*pair) for pair in pairs}
        stored = self._cache.get(self.scorer.identity, list(digests.values()))
        found = {
            pair: dict(zip(self.scorer.scores, self._format.unpack(data), strict=True))
            for pair, data in zip(pairs, stored, strict=True)
            if data is not None
        }
        fresh = self._compared([pair for pair in pairs if pair not in found])
        packed = {
            digests[pair]: self._format.pack(*(row.get(name, math.nan) for name in self.scorer.scores))
            for pair, row in fresh.items()
        }
        self._cache.put(self.scorer.identity, packed)
        return found | fresh

    def features(self, texts: Sequence[str], lasting: Sequence[str]) -> dict[str, Feature]:
        """What the scorer reads of each text, none of which comes twice.

        Args:
            lasting: those among them that will probably come again.
        """
        digests = {text: text_digest(text) for text in texts}
        found = {text: held[0] for text, digest in digests.items() if (held := self._recent.get(digest))}
        read = self._from_disk({text: digest for text, digest in digests.items() if text not in found})
        waiting = [text for text in texts if text not in found and text not in read]
        fresh = dict(zip(waiting, self.scorer.read(waiting) if waiting else (), strict=True))
        if self._cache and self.scorer.kept == "texts":
            self._cache.put(
                self.scorer.identity,
                {digests[text]: self.scorer.pack(feature) for text, feature in fresh.items()},
            )
        read |= fresh
        for text in lasting:
            if text in read:
                self._recent.put(digests[text], read[text], self.scorer.size(read[text]))
        return found | read

    def _compared(self, pairs: Sequence[Pair]) -> dict[Pair, Row]:
        if not pairs:
            return {}
        texts = list(dict.fromkeys(text for pair in pairs for text in pair))
        references = list(dict.fromkeys(reference for _, reference in pairs))
        features = self.features(texts, texts if self.scorer.kept == "texts" else references)
        candidates = [features[candidate] for candidate, _ in pairs]
        expected = [features[reference] for _, reference in pairs]
        return dict(zip(pairs, self.scorer.compare(candidates, expected), strict=True))

    def _from_disk(self, digests: dict[str, bytes]) -> dict[str, Feature]:
        if self._cache is None or self.scorer.kept == "pairs":
            return {}
        stored = self._cache.get(self.scorer.identity, list(digests.values()))
        return {
            text: self.scorer.unpack(data)
            for text, data in zip(digests, stored, strict=True)
            if data is not None
        }
