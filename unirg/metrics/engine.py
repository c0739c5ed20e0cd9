"""Any set of scores over any number of pairs: the reward in training, the ruler in evaluation.

Pairs go through in windows, so that memory does not grow with their number. In a window each distinct text is
read once by each scorer and each distinct pair compared once; references are kept from window to window, and
a cache on disk, where one is named, serves several runs and processes. While the encoders compute, the judge
is asked. None of this changes a score: a score depends on its two texts and on `identity`, on nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from unirg import storage, telemetry
from unirg.metrics import catalog, radcliq, verdicts, weights
from unirg.metrics.bleu import bleu
from unirg.metrics.cache import Cache
from unirg.metrics.catalog import COMPOSED, JUDGE, TEXTS, Score
from unirg.metrics.chexprompt import Judge, Verdict
from unirg.metrics.encoder import Compute
from unirg.metrics.reader import Reader
from unirg.metrics.rouge import rouge_l
from unirg.metrics.scorer import Missing, Pair, TextScorer

WINDOW = 1024
"""Pairs of a window at most."""
CHARACTERS = 1 << 18
"""Of a window's distinct texts, about: a window ends there too. It bounds what the features of the most
talkative scorer take: BERTScore's float32 vector of every token, about 200 MB."""
MEMORY = 256 << 20
"""Bytes of features kept from window to window, over all scorers."""

FP32 = Compute()
"""On the CPU."""

_TEXTS: Mapping[str, Callable[[str, str], float]] = {
    "bleu2": bleu,
    "bleu4": lambda candidate, reference: bleu(candidate, reference, 4),
    "rouge_l": rouge_l,
}
_FORMULAS = {"radcliq_v0": radcliq.radcliq_v0, "radcliq_v1": radcliq.radcliq_v1}
_Found = dict[str, float | Missing]


@dataclass(frozen=True, slots=True)
class Scored:
    """What was found for one pair; every score asked for is in exactly one of the two."""

    values: dict[str, float]
    """Finite numbers."""
    missing: dict[str, str]
    """Score -> why there is none; holds no text of a report."""


class Engine:
    """Scores of pairs. Scorers are loaded when the first pair, or `identity`, needs them.

    One thread may use it at a time.
    """

    def __init__(
        self,
        scores: Sequence[str],
        weights: str = "",
        compute: Compute = FP32,
        cache: str = "",
        judge: Judge | None = None,
        window: int = WINDOW,
        memory: int = MEMORY,
    ) -> None:
        """
        Args:
            scores: names in the catalog.
            weights: URI or directory that holds each scorer's (`weights.local` says what an empty one means).
            cache: file on this machine that keeps what was computed; several processes may share it.
            judge: who counts errors; where one of those scores is asked for and there is none, it is missing.
            window: pairs that go through together, at most.
            memory: bytes of features kept from window to window.

        Raises:
            UserError: a score is unknown, or the cache is damaged or none of ours.
        """
        self.scores = tuple(dict.fromkeys(scores))
        self._needed = catalog.with_parts(self.scores)
        self._weights, self._compute = weights, compute
        self._cache = Cache(storage.local_path(cache)) if cache else None
        self._judged = any(score.scorer == JUDGE for score in self._needed)
        self._judge = judge
        self._window = window
        self._names = catalog.scorers(self.scores)
        self._memory = memory // max(1, len(self._names))
        self._readers: dict[str, Reader] = {}

    @cached_property
    def identity(self) -> Mapping[str, str]:
        """Score -> digest of all that decides it besides the texts: code, weights, precision, judge.

        Raises:
            UserError: a scorer's weights are missing or do not fit.
        """
        found: dict[str, str] = {}
        for score in self._needed:
            if score.scorer == TEXTS:
                found[score.name] = catalog.digest([score.name, catalog.VERSION])
            elif score.scorer == COMPOSED:
                parts = [found[part] for part in score.parts]
                found[score.name] = catalog.digest([score.name, catalog.VERSION, parts])
            elif score.scorer == JUDGE:
                found[score.name] = self._judge.identity if self._judge else verdicts.NO_JUDGE
            else:
                found[score.name] = self._reader(score.scorer).scorer.identity
        return {name: found[name] for name in self.scores}

    def score(self, pairs: Iterable[Pair], told: telemetry.Progress | None = None) -> Iterator[Scored]:
        """The scores of each (candidate, reference) pair, in order; `pairs` is read as results are taken.

        Raises:
            UserError: weights are missing or do not fit, the judge cannot be reached, the cache is damaged.
        """
        for window in _windows(pairs, self._window):
            scored = self._scored(list(dict.fromkeys(window)))
            telemetry.count("unirg.scored", len(window))
            if told:
                told.advance(len(window))
            yield from (scored[pair] for pair in window)

    def conditions(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        """CheXbert's class for each of the 14 conditions of each text (`conditions.LABELS`), in order.

        Raises:
            UserError: CheXbert's weights are missing or do not fit.
        """
        from unirg.metrics.chexbert import labels

        reader = self._reader("chexbert")
        found: dict[str, tuple[int, ...]] = {}
        for window in _windows(((text, "") for text in dict.fromkeys(texts)), self._window):
            some = [text for text, _ in window]
            features = reader.features(some, some)
            found.update({text: tuple(labels(feature).tolist()) for text, feature in features.items()})
        return [found[text] for text in texts]

    def _scored(self, pairs: Sequence[Pair]) -> dict[Pair, Scored]:
        """The scores of one window's pairs, none of which comes twice."""
        judge = self._judge if self._judged else None
        asking = verdicts.Asking(judge, self._cache, pairs) if judge else None
        try:
            rows = [self._reader(name).rows(pairs) for name in self._names]
            judged = asking.verdicts() if asking else {}
        finally:
            if asking:
                asking.call_off()
        unasked = Verdict(None, verdicts.NO_JUDGE)
        scored = {}
        for pair in pairs:
            found: _Found = {name: function(*pair) for name, function in self._functions.items()}
            for row in rows:
                found.update(row[pair])
            if self._judged:
                found.update(verdicts.scores(judged.get(pair, unasked)))
            scored[pair] = self._split(found)
        return scored

    @cached_property
    def _functions(self) -> dict[str, Callable[[str, str], float]]:
        return {score.name: _TEXTS[score.name] for score in self._needed if score.scorer == TEXTS}

    def _split(self, found: _Found) -> Scored:
        """Check and compose in the order of `_needed`, where parts come before what is made of them."""
        values: dict[str, float] = {}
        missing: dict[str, str] = {}
        for score in self._needed:
            outcome = _composed(score, values, missing) if score.parts else found.get(score.name, math.nan)
            if isinstance(outcome, Missing):
                missing[score.name] = outcome.reason
            elif math.isfinite(outcome):
                values[score.name] = outcome
            else:
                missing[score.name] = "its value is not a finite number"
        return Scored(
            {name: values[name] for name in self.scores if name in values},
            {name: missing[name] for name in self.scores if name in missing},
        )

    def _reader(self, name: str) -> Reader:
        """The scorer of this name, loaded when first needed."""
        if name not in self._readers:
            scorer = _loaded(name, self._directory / name, self._compute)
            self._readers[name] = Reader(scorer, self._cache, self._memory)
        return self._readers[name]

    @cached_property
    def _directory(self) -> Path:
        return weights.local(self._weights)


def _composed(score: Score, values: Mapping[str, float], missing: Mapping[str, str]) -> float | Missing:
    lacking = [part for part in score.parts if part in missing]
    if lacking:
        return Missing("; ".join(f"{part} is missing: {missing[part]}" for part in lacking))
    return float(_FORMULAS[score.name](*(values[part] for part in score.parts)))


def _loaded(name: str, directory: Path, compute: Compute) -> TextScorer:
    """A scorer with its weights; only its own module is imported."""
    if name == "bertscore":
        from unirg.metrics.bertscore import BertScore

        return BertScore(directory, compute)
    if name == "chexbert":
        from unirg.metrics.chexbert import CheXbert

        return CheXbert(directory, compute)
    if name == "ratescore":
        from unirg.metrics.ratescore import RaTEScore

        return RaTEScore(directory, compute)
    from unirg.metrics.radgraph import RadGraph

    return RadGraph(directory, compute, name="radgraph-xl" if name == "radgraph-xl" else "radgraph")


def _windows(pairs: Iterable[Pair], count: int) -> Iterator[list[Pair]]:
    """Runs of pairs, each of `count` at most and of about `CHARACTERS` in its distinct texts."""
    window: list[Pair] = []
    texts: set[str] = set()
    characters = 0
    for pair in pairs:
        window.append(pair)
        characters += sum(len(text) for text in set(pair) - texts)
        texts.update(pair)
        if len(window) >= count or characters >= CHARACTERS:
            yield window
            window, texts, characters = [], set(), 0
    if window:
        yield window
