"""From a score to a reward: something to maximise, under the weights that the paper gives.

R = 0 BLEU-2 + 0.370 BERTScore + 0.253 SembScore + 0.377 RadGraph-F1 in step 1; step 2 adds
0.5 / (errors + 1).
The weights are RadCliQ-v1's standardised coefficients on raw scores, so that R is not proportional to
-RadCliQ-v1: RadGraph weighs 1.35 times more against BERTScore than there. Whoever wants RadCliQ itself names
`radcliq_v1`, which is negated here; never its inverse, which has a pole at 0.
"""

from __future__ import annotations

from collections.abc import Mapping

from unirg.metrics.catalog import CATALOG

PAPER = {"bleu2": 0.0, "bertscore": 0.370, "sembscore": 0.253, "radgraph": 0.377}
"""Weights of GRPO step 1 (the paper, Methods)."""


def reward(name: str, value: float) -> float:
    """The score as GRPO maximises it: errors as 1 / (errors + 1), what is better when lower negated."""
    if name.startswith("errors"):
        return 1 / (value + 1)
    return value if CATALOG[name].higher_is_better else -value


def composite(weights: Mapping[str, float], values: Mapping[str, float]) -> float | None:
    """The weighted sum of rewards; None where a score that has a weight is missing."""
    used = {name: weight for name, weight in weights.items() if weight}
    if any(name not in values for name in used):
        return None
    return sum(weight * reward(name, values[name]) for name, weight in used.items())
