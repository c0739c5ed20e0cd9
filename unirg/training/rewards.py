"""Rewards: the scores of `unirg.metrics`' engine, one function per score, as GRPO weighs and sums them.

All rewards of a batch of rollouts come from one pass of the engine: each distinct text is read once, a
group's reference once, and the judge is asked while the encoders run. Rollouts may be handed over as they are
written: they are scored on a thread of its own, while the next are written or the reference policy reads
them. Verdicts that the judge still owes after its client's own retries are asked for again after a pause; a
reward that is then missing, or not finite, stops the step and names the score and the study: TRL would count
a missing one as zero.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from unirg.errors import Unavailable, UserError
from unirg.metrics.catalog import CATALOG, JUDGE
from unirg.metrics.engine import Engine, Scored
from unirg.metrics.reward import reward
from unirg.metrics.scorer import Pair

Reward = Callable[..., list[float]]

_logger = logging.getLogger("unirg.training")


class Rewards:
    """The rewards of rollouts; `functions` are TRL's view, one per score in the order of `weights`."""

    def __init__(
        self, weights: Mapping[str, float], engine: Engine, attempts: int = 3, pause_s: float = 10.0
    ) -> None:
        """
        Args:
            weights: by the names of scores that `engine` gives.
            attempts: at what the judge owes, the first included.
            pause_s: seconds before the second attempt; twice as long before each further one.
        """
        self.functions = [self._function(name) for name in weights]
        self._judged = [name for name in weights if CATALOG[name].scorer == JUDGE]
        self._engine, self._attempts, self._pause_s = engine, attempts, pause_s
        self._pairs: list[Pair] = []
        self._rows: list[Scored] = []
        self._begun: list[Future[dict[Pair, Scored]]] = []
        self._thread: ThreadPoolExecutor | None = None

    def begin(self, pairs: Sequence[Pair]) -> None:
        """Score these (candidate, reference) pairs while the caller goes on; `rows` waits for them."""
        self._begun.append(self._scoring(pairs))

    def _scoring(self, pairs: Sequence[Pair]) -> Future[dict[Pair, Scored]]:
        """Always on the one thread, as the engine is for one."""
        if self._thread is None:
            import torch

            # Of the same number of CPU threads, as it is a matter of each thread and changes sums.
            threads = torch.get_num_threads()
            self._thread = ThreadPoolExecutor(1, "rewards", torch.set_num_threads, (threads,))
        return self._thread.submit(self._scored, list(dict.fromkeys(pairs)))

    def rows(self, pairs: Sequence[Pair]) -> list[Scored]:
        """The scores of each pair, in order; the last answer is kept for TRL's other functions.

        Raises:
            UserError: weights are missing, or the judge cannot be reached.
        """
        if list(pairs) != self._pairs:
            begun, self._begun = self._begun, []
            found: dict[Pair, Scored] = {}
            for scoring in begun:
                found.update(scoring.result())
            if rest := [pair for pair in pairs if pair not in found]:
                found.update(self._scoring(rest).result())
            self._again(found)
            self._pairs, self._rows = list(pairs), [found[pair] for pair in pairs]
        return self._rows

    def _scored(self, pairs: list[Pair]) -> dict[Pair, Scored]:
        return dict(zip(pairs, self._engine.score(pairs), strict=True))

    def _again(self, found: dict[Pair, Scored]) -> None:
        """Ask for what the judge owes, after a pause, until nothing is owed or the attempts are used up."""
        for attempt in range(1, self._attempts):
            owed = [pair for pair, row in found.items() if any(name in row.missing for name in self._judged)]
            if not owed:
                return
            pause_s = self._pause_s * 2 ** (attempt - 1)
            reason = next(found[owed[0]].missing[name] for name in self._judged)
            _logger.warning(
                "the judge owes %d of %d verdicts (%s): asking again in %g s, attempt %d of %d",
                *(len(owed), len(found), reason, pause_s, attempt + 1, self._attempts),
            )
            time.sleep(pause_s)
            found.update(self._scoring(owed).result())

    def _function(self, name: str) -> Reward:
        def function(
            completions: list[Any], reference: list[str], study_id: list[str], **_: Any
        ) -> list[float]:
            texts = [completion[0]["content"] for completion in completions]
            rows = self.rows(list(zip(texts, reference, strict=True)))
            return [_finite(name, study, row) for study, row in zip(study_id, rows, strict=True)]

        function.__name__ = name
        return function


def _finite(name: str, study_id: str, row: Scored) -> float:
    """The reward, if it is a number.

    Raises:
        UserError: it is missing or not finite; the score, the study and the reason are named. `Unavailable`,
            where the judge owes it.
    """
    value = row.values.get(name)
    if value is not None and math.isfinite(value):
        return reward(name, value)
    found = f"missing ({row.missing.get(name, 'no reason given')})" if value is None else str(value)
    owed = value is None and CATALOG[name].scorer == JUDGE
    raise (Unavailable if owed else UserError)(
        f"reward {name} of study {study_id} is {found}: training stops rather than learn from it; "
        "mend the metric or the judge and run again, which goes on from the last checkpoint"
    )
