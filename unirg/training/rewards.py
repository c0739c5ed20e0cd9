"""Rewards: the metrics of `unirg.metrics`, one function per metric, as GRPO weighs and sums them.

A reward that is missing or not finite stops the step and names the metric and the study: TRL would count a
missing one as zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from unirg.errors import UserError
from unirg.metrics.bleu import bleu
from unirg.metrics.chexprompt import Judge
from unirg.metrics.rouge import rouge_l

Metric = Literal["bleu2", "rouge_l", "errors"]
Score = Callable[[Sequence[tuple[str, str]]], Sequence[float | None]]
Reward = Callable[..., list[float]]


def reward_functions(weights: Mapping[Metric, float], judge: Judge | None) -> list[Reward]:
    """One TRL reward function per metric, in the order of `weights`.

    Args:
        judge: the client that counts errors; needed where `errors` has a weight.

    Raises:
        UserError: a judge is needed and none is configured.
    """
    scores: dict[Metric, Score] = {
        "bleu2": lambda pairs: [bleu(*pair) for pair in pairs],
        "rouge_l": lambda pairs: [rouge_l(*pair) for pair in pairs],
    }
    if "errors" in weights:
        if judge is None:
            raise UserError(
                "the reward `errors` needs a judge: set judge_url to an OpenAI-compatible endpoint"
            )
        scores["errors"] = lambda pairs: error_rewards(judge, pairs)
    return [_reward(metric, scores[metric]) for metric in weights]


def error_rewards(judge: Judge, pairs: Sequence[tuple[str, str]]) -> list[float | None]:
    """1 / (errors + 1) for each (candidate, reference) pair (the paper, step 2); None where unjudged."""
    totals = [verdict.total for verdict in judge.score(pairs)]
    return [None if total is None else 1 / (total + 1) for total in totals]


def _reward(metric: str, score: Score) -> Reward:
    def reward(completions: list[Any], reference: list[str], study_id: list[str], **_: Any) -> list[float]:
        texts = [completion[0]["content"] for completion in completions]
        values = score(list(zip(texts, reference, strict=True)))
        return [finite(metric, study, value) for study, value in zip(study_id, values, strict=True)]

    reward.__name__ = metric
    return reward


def finite(metric: str, study_id: str, value: float | None) -> float:
    """The value, if it is one.

    Raises:
        UserError: it is missing or not finite; the metric and the study are named.
    """
    if value is None or not math.isfinite(value):
        found = "missing" if value is None else str(value)
        raise UserError(
            f"reward {metric} of study {study_id} is {found}: training stops rather than learn from it; "
            "mend the metric or the judge and run again, which goes on from the last checkpoint"
        )
    return value
