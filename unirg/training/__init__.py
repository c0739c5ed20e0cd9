"""Training: the policy to start from, SFT and GRPO, as one verb."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from unirg import config
from unirg.artifact import Artifact, open_artifact
from unirg.checkpoint import STAGES
from unirg.errors import UserError


def train(
    algorithm: str,
    recipe: str | None,
    overrides: Sequence[str],
    cohort: str,
    parent: str,
    store: str,
    judge_url: str = "",
    weights: str = "",
) -> Artifact:
    """Train by name: `base`, `sft` or `grpo`; URIs in, the checkpoint artifact out.

    Args:
        weights: the scorers' weights (stage `weights`), for GRPO's rewards.

    Raises:
        UserError: an unknown algorithm, a missing parent, or what the algorithm itself refuses.
    """
    from unirg.training import grpo, policy, sft

    studies = open_artifact(cohort, "cohort")
    if algorithm == "base":
        return policy.base(config.load(policy.BaseConfig, recipe, overrides), studies, store)
    if algorithm not in STAGES:
        raise UserError(f"no algorithm {algorithm}: there are {', '.join(STAGES)}")
    if not parent:
        raise UserError(f"{algorithm} needs a parent: the URI of the checkpoint to start from")
    start = open_artifact(parent, STAGES)
    if algorithm == "sft":
        return sft.sft(config.load(sft.SFTConfig, recipe, overrides), studies, start, store)
    given: dict[str, Any] = {"judge_url": judge_url} if judge_url else {}
    settings = config.load(grpo.GRPOConfig, recipe, overrides, **given)
    return grpo.grpo(settings, studies, start, store, open_artifact(weights, "weights") if weights else None)
