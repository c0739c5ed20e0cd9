"""Rewards: the scores of `unirg.metrics`' engine, one function per score, as GRPO weighs and sums them.

All rewards of a batch of rollouts come from one pass of the engine: each distinct text is read once, a
group's reference once, and the judge is asked while the encoders run. A reward that is missing or not finite
stops the step and names the score and the study: TRL would count a missing one as zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from unirg.errors import UserError
from unirg.metrics.engine import Engine, Scored
from unirg.metrics.reward import reward
from unirg.metrics.scorer import Pair

Reward = Callable[..., list[float]]


def reward_functions(weights: Mapping[str, float], engine: Engine) -> list[Reward]:
    """One TRL reward function per score, in the order of `weights`; `engine` gives all of them."""
    scored = _Batch(engine)
    return [_function(name, scored) for name in weights]


class _Batch:
    """The scores of the batch at hand, kept while TRL calls one reward function after the other."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._pairs: list[Pair] = []
        self._scored: list[Scored] = []

    def __call__(self, pairs: list[Pair]) -> list[Scored]:
        if pairs != self._pairs:
            self._pairs, self._scored = pairs, list(self._engine.score(pairs))
        return self._scored


def _function(name: str, scored: Callable[[list[Pair]], Sequence[Scored]]) -> Reward:
    def function(completions: list[Any], reference: list[str], study_id: list[str], **_: Any) -> list[float]:
        texts = [completion[0]["content"] for completion in completions]
        rows = scored(list(zip(texts, reference, strict=True)))
        return [_finite(name, study, row) for study, row in zip(study_id, rows, strict=True)]

    function.__name__ = name
    return function


def _finite(name: str, study_id: str, row: Scored) -> float:
    """The reward, if it is a number.

    Raises:
        UserError: it is missing or not finite; the score, the study and the reason are named.
    """
    value = row.values.get(name)
    if value is not None and math.isfinite(value):
        return reward(name, value)
    found = f"missing ({row.missing.get(name, 'no reason given')})" if value is None else str(value)
    raise UserError(
        f"reward {name} of study {study_id} is {found}: training stops rather than learn from it; "
        "mend the metric or the judge and run again, which goes on from the last checkpoint"
    )
