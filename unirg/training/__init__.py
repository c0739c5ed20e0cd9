"""Training: the policy to start from, SFT and GRPO, as one verb, in as many processes as it names."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from unirg import artifact, config, storage
from unirg.artifact import Artifact, open_artifact
from unirg.checkpoint import STAGES
from unirg.errors import UserError
from unirg.training import distributed

if TYPE_CHECKING:
    from unirg.training.settings import TrainConfig


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

    Where the configuration wants several processes, ZeRO or a TrainJob and torchrun did not start this one,
    they are started here and waited for; they run this same function.

    Args:
        judge_url: who counts errors, for GRPO's rewards and for validation.
        weights: the scorers' weights (stage `weights`), for the same.

    Raises:
        UserError: an unknown algorithm, a missing parent, or what the algorithm itself refuses.
        SystemExit: with 75, after SIGTERM and a saved checkpoint: the same call goes on.
    """
    from unirg.training import grpo, policy, sft
    from unirg.training.settings import check_validation

    studies = open_artifact(cohort, "cohort")
    if algorithm == "base":
        return policy.base(config.load(policy.BaseConfig, recipe, overrides), studies, store)
    if algorithm not in STAGES:
        raise UserError(f"no algorithm {algorithm}: there are {', '.join(STAGES)}")
    if not parent:
        raise UserError(f"{algorithm} needs a parent: the URI of the checkpoint to start from")
    start = open_artifact(parent, STAGES)
    scorers = open_artifact(weights, "weights") if weights else None
    options = {"cohort": studies.uri, "parent": start.uri, "weights": weights, "judge-url": judge_url}
    given: dict[str, Any] = {"judge_url": judge_url} if judge_url else {}
    if algorithm == "sft":
        wanted = config.load(sft.SFTConfig, recipe, overrides, **given)
        check_validation(wanted, bool(scorers))
        if _in_this_process(wanted):
            return sft.sft(wanted, studies, start, store, scorers)
        inputs = sft.inputs(wanted, studies, start, scorers)
        return _launched("sft", sft.VERSION, wanted, inputs, options, store)
    settings = config.load(grpo.GRPOConfig, recipe, overrides, **given)
    check_validation(settings, bool(scorers))
    grpo.check_rewards(settings, bool(scorers))
    if _in_this_process(settings):
        return grpo.grpo(settings, studies, start, store, scorers)
    inputs = grpo.inputs(settings, studies, start, scorers)
    return _launched("grpo", grpo.VERSION, settings, inputs, options, store)


def _in_this_process(settings: TrainConfig) -> bool:
    alone = settings.started_processes == 1 and not settings.zero and settings.launch == "local"
    return alone or distributed.started()


def _launched(
    stage: str,
    version: int,
    settings: TrainConfig,
    inputs: Mapping[str, Artifact | str],
    options: Mapping[str, str],
    store: str,
) -> Artifact:
    """The artifact, made by processes that are started here unless it is there already."""
    from unirg.training import launch

    key = artifact.action_key(stage, version, settings, inputs)
    uri = artifact.place(store, stage, key)
    if found := artifact.done(uri):
        return found
    command = [sys.executable, "-m", "unirg.training", stage, "--store", uri.rsplit("/", 2)[0]]
    command += [f"--{name}={value}" for name, value in options.items() if value]
    # Every field by name: no file need be where the processes run.
    command += [f"--set={name}={json.dumps(value)}" for name, value in config.resolved(settings).items()]
    if settings.launch == "local" or settings.trainjob is None:
        launch.local(settings.started_processes, command)
        return open_artifact(uri)
    for what in (store, *options.values()):
        if what and storage.is_local(what):
            raise UserError(f"{what} is a folder of this machine, which pods do not see: use an object store")
    launch.train_job(settings.trainjob, settings.started_processes, stage, uri, ["python", *command[1:]])
    return open_artifact(uri)
