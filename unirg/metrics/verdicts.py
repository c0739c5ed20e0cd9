"""The judge beside the encoders: asked on a thread of its own, so that its answers come while they compute.

A verdict is kept on disk by the digest of the pair and the judge's identity; a missing one is not, so that
the next run asks again.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

from unirg import telemetry
from unirg.metrics.cache import Cache, pair_digest
from unirg.metrics.chexprompt import CATEGORIES, Errors, Judge, Verdict
from unirg.metrics.scorer import Missing, Pair

NO_JUDGE = "no judge configured"
_CHUNK = 128
"""Pairs between two writes to the cache: what a kill can cost."""


class Asking(threading.Thread):
    """The verdicts on some pairs, under way. It ends with the process, finished or not."""

    def __init__(self, judge: Judge, cache: Cache | None, pairs: Sequence[Pair]) -> None:
        """Begin to ask; no pair comes twice."""
        super().__init__(name="judge", daemon=True)
        self._judge, self._cache, self._pairs = judge, cache, pairs
        self._found: dict[Pair, Verdict] = {}
        self._error: BaseException | None = None
        self._off = threading.Event()
        self.start()

    def verdicts(self) -> dict[Pair, Verdict]:
        """Wait for the verdict on each pair.

        Raises:
            UserError: the judge cannot be reached, or refuses the key or the model.
        """
        self.join()
        if self._error:
            raise self._error
        return self._found

    def call_off(self) -> None:
        """Ask for no more than what is under way."""
        self._off.set()

    def run(self) -> None:
        try:
            self._ask()
        except BaseException as error:  # raised again by `verdicts`, where someone listens
            self._error = error

    def _ask(self) -> None:
        digests = {pair: pair_digest(*pair) for pair in self._pairs}
        identity = self._judge.identity
        if self._cache:
            stored = self._cache.get(identity, list(digests.values()))
            for pair, data in zip(self._pairs, stored, strict=True):
                if data is not None:
                    self._found[pair] = Verdict(Errors.model_validate_json(data))
        waiting = [pair for pair in self._pairs if pair not in self._found]
        for start in range(0, len(waiting), _CHUNK):
            if self._off.is_set():
                return
            chunk = waiting[start : start + _CHUNK]
            fresh = dict(zip(chunk, self._judge.score(chunk), strict=True))
            self._found.update(fresh)
            telemetry.count("unirg.judged", len(fresh))
            if self._cache:
                self._cache.put(
                    identity,
                    {
                        digests[pair]: verdict.errors.model_dump_json().encode()
                        for pair, verdict in fresh.items()
                        if verdict.errors
                    },
                )


def scores(verdict: Verdict) -> dict[str, float | Missing]:
    """The scores that the judge gives, by name: all, the significant ones, and each category's."""
    names = (
        *("errors", "errors_significant", *(f"errors_{category}" for category in CATEGORIES)),
        *(f"errors_{category}_significant" for category in CATEGORIES),
    )
    if verdict.errors is None:
        return dict.fromkeys(names, Missing(verdict.reason or "no verdict"))
    pairs = [getattr(verdict.errors, category) for category in CATEGORIES]
    counts = [count.significant + count.insignificant for count in pairs]
    grave = [count.significant for count in pairs]
    return dict(zip(names, map(float, (sum(counts), sum(grave), *counts, *grave)), strict=True))
