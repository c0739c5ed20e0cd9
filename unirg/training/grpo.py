"""GRPO in two steps on TRL: the paper's clinical rewards, then the error reward with a KL leash.

Step 1: weighted metrics, a higher upper clip (DAPO), no KL term. Step 2: from step 1's policy, adds
1 / (errors + 1) and a KL term to that policy. Both are this one stage with other numbers.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any, Literal

from pydantic import Field, model_validator

from unirg import prompts, telemetry
from unirg.artifact import Artifact
from unirg.cohort.reader import Cohort
from unirg.config import operational
from unirg.errors import UserError
from unirg.metrics import catalog
from unirg.metrics.encoder import Compute, Precision
from unirg.metrics.engine import Engine
from unirg.metrics.reward import PAPER
from unirg.training import alarms as watch
from unirg.training import run, settings
from unirg.training.alarms import Alarms
from unirg.training.data import Examples, training_studies
from unirg.training.rewards import Rewards
from unirg.training.settings import TrainConfig, accumulation, check_scores

VERSION = 4


class GRPOConfig(TrainConfig):
    """The paper's RL: learning rate 5e-6, global batch 256, 16 rollouts per query, 1 epoch per step."""

    learning_rate: float = Field(default=5e-6, gt=0)
    """Peak learning rate (the paper: 5e-6)."""
    batch_size: int = Field(default=256, ge=2)
    """Completions in one optimiser step: the paper's global batch 256, read as TRL counts it, 16 queries."""
    group_size: int = Field(default=16, ge=2)
    """Rollouts of one query, over which advantages are normalised (the paper: 16)."""
    micro_batch: int = Field(default=16, ge=1)
    """Completions in one forward pass of one process."""
    clip_low: float = Field(default=0.2, gt=0, lt=1)
    """Lower clip of the policy ratio (PPO's and DAPO's 0.2; the paper leaves it open)."""
    clip_high: float = Field(default=0.28, gt=0)
    """Upper clip: the paper says higher, DAPO (arXiv 2503.14476) says 0.28."""
    kl: float = Field(default=0.0, ge=0)
    """Weight of the KL divergence to the policy that this step starts from (the paper: 0, then 0.03)."""
    rewards: dict[str, float] = Field(default=PAPER, min_length=1)
    """Weight of each score (`unirg metrics list`) in the summed reward; one of weight 0 is logged alone. What
    is better when lower is negated, but `errors`, which count as 1 / (errors + 1). The default is the paper's
    step 1; `{radcliq_v1: 1}` rewards the negated RadCliQ-v1."""
    reward_precision: Precision = "fp32"
    """Precision of the scorers' encoders."""
    max_completion_tokens: int = Field(default=512, ge=8)
    """A longer rollout is cut; the paper leaves it open."""
    temperature: float = Field(default=1.0, gt=0)
    """Of rollouts; the paper leaves it open, TRL's default."""

    loss: Literal["dapo", "grpo", "dr_grpo"] = "dapo"
    """How tokens are weighed: all of a batch alike (DAPO), each rollout by its own mean (GRPO), or all over
    `max_completion_tokens` (Dr. GRPO, arXiv 2503.20783). The paper leaves it open and cites DAPO."""
    advantage_scale: Literal["group", "batch", "none"] = "group"
    """Whose standard deviation divides advantages (GRPO: the group's); the paper leaves it open."""
    updates: int = Field(default=1, ge=1)
    """Optimiser steps on the rollouts written at once, each on its own `batch_size` of them. With 1, and one
    pass, the ratio is 1 and nothing is clipped; the paper leaves it open (DAPO: 16)."""
    passes: int = Field(default=1, ge=1)
    """Passes over the same rollouts (GRPO's mu, arXiv 2402.03300)."""
    share: Literal["nothing", "images", "prompt"] = "prompt"
    """What is computed once per group: images, or the prompt with them; `nothing` is stock TRL. The results
    differ by rounding."""
    rollouts: Literal["transformers", "colocate", "server"] = "transformers"
    """Who writes them: transformers; vLLM on the training GPUs; or vLLM at `vllm_url` (`trl vllm-serve`)."""
    rollout_batch: int | None = Field(default=None, ge=1)
    """Rollouts of one process that are written at once; None: all. Those written are scored, the judge's part
    included, while the next are written."""
    vllm_url: str = operational("")
    """Base URL of the vLLM server."""
    vllm_context: int = operational(4096, ge=256)
    """Tokens of a prompt with its report that vLLM keeps room for; two images and texts are below 2,000.
    The model's own limit of 262,144 would take 36 GiB."""
    vllm_memory: float = operational(0.3, gt=0, lt=1)
    """Share of a GPU's memory that colocated vLLM takes for its weights and cache."""
    vllm_tensor_parallel: int = operational(1, ge=1)
    """GPUs that hold one copy of colocated vLLM's weights."""
    reward_attempts: int = operational(3, ge=1)
    """At the verdicts that the judge owes after its client's own retries, 10 s after the first, doubling."""
    alarms: Alarms = operational(Alarms())
    """On collapse and on the hacking of a reward."""

    @model_validator(mode="after")
    def _whole_groups(self) -> GRPOConfig:
        if self.batch_size % self.group_size:
            raise ValueError(f"batch_size {self.batch_size} is no multiple of group_size {self.group_size}")
        if self.save_steps % self.rollout_steps:
            raise ValueError(
                f"save_steps {self.save_steps} is no multiple of updates x passes = {self.rollout_steps}: a "
                "checkpoint amid the steps on the same rollouts cannot be resumed from exactly"
            )
        if self.export == "best" and self.validate_steps % self.rollout_steps:
            raise ValueError(
                f"validate_steps {self.validate_steps} is no multiple of updates x passes = "
                f"{self.rollout_steps}: between, no checkpoint stands that export = best could take"
            )
        if self.rollouts == "server" and not self.vllm_url:
            raise ValueError("rollouts: server needs vllm_url, the URL of a `trl vllm-serve`")
        share = self.batch_size * self.updates // self.processes
        parts = self.rollout_batch if self.rollouts == "server" else None
        if parts and (parts % self.group_size or share % self.group_size):
            raise ValueError(
                f"rollout_batch {parts} or the {share} rollouts of a process are no multiple of group_size "
                f"{self.group_size}: a vLLM server writes whole groups"
            )
        catalog.check(self.rewards)
        return self

    @property
    def rollout_steps(self) -> int:
        """Optimiser steps from rollouts to the next: a checkpoint may stand at their multiples alone."""
        return self.updates * self.passes


def inputs(
    config: GRPOConfig, cohort: Artifact, parent: Artifact, weights: Artifact | None
) -> dict[str, Artifact | str]:
    """What makes the artifact's identity beside the configuration."""
    found: dict[str, Artifact | str] = {"cohort": cohort, "parent": parent, "prompts": prompts.VERSION}
    found["metrics"] = catalog.version(config.rewards)
    if judge := settings.judge(config, config.rewards):
        found["judge"] = judge.identity
    if config.validate_steps:
        found["validation"] = catalog.version(config.validation_scores)
    if weights:
        found["weights"] = weights
    return found


@telemetry.verb("train.grpo")
def grpo(
    config: GRPOConfig, cohort: Artifact, parent: Artifact, store: str, weights: Artifact | None = None
) -> Artifact:
    """Reinforce `parent` (stage `base`, `sft` or `grpo`) on the cohort's training split.

    Args:
        weights: the scorers' weights (stage `weights`); needed where `rewards` names a score with a model.

    Returns:
        A checkpoint artifact (stage `grpo`): `model/` and the trainer's log with every reward.

    Raises:
        UserError: no training study, no judge or no weights where they are needed, a reward that is missing
            or not finite, vLLM asked for and absent, an alarm that is set to stop.
    """
    with run.draft(store, "grpo", VERSION, config, inputs(config, cohort, parent, weights)) as draft:
        if draft.committed:
            return draft.committed
        check_rewards(config, weights is not None)
        _check_vllm(config)
        run.prepare(config)
        from unirg.training import validation
        from unirg.training.rollouts import SharedGRPOTrainer

        judge = settings.judge(config, config.rewards)
        engine = Engine(
            list(config.rewards),
            weights=weights.uri if weights else "",
            compute=Compute(config.reward_precision, device=run.device()),
            judge=judge,
        )
        opened = Cohort.open(cohort)
        studies = training_studies(opened)
        queries = config.batch_size * config.updates // config.group_size
        if len(studies) < queries:  # TRL drops an incomplete batch, and would wait for a step for ever
            raise UserError(
                f"{len(studies)} studies to train on, and batch_size x updates / group_size = {queries} for "
                "each batch of rollouts: lower batch_size"
            )
        # The KL term's reference is loaded from where the model came from: the parent, on resume too.
        model, processor = run.policy_of(parent)
        examples = Examples(opened, studies, processor, config.prior_share, config.seed, completion=False)
        trainer = SharedGRPOTrainer(
            model=model,
            rewards=Rewards(config.rewards, engine, config.reward_attempts),
            share=config.share,
            rollout_batch=config.rollout_batch,
            args=arguments(config, run.arguments(config, draft), model.config.image_token_id),
            train_dataset=examples.dataset(),
            processing_class=processor,
            peft_config=run.adapters(config),
            callbacks=[
                watch.callback(config.alarms),
                *validation.callbacks(config, opened, processor, weights, judge),
            ],
        )
        steps = run.train(trainer, draft, f"grpo (kl {config.kl:g})")
        return draft.commit({"studies": len(studies), "steps": steps})


def arguments(config: GRPOConfig, common: dict[str, Any], image_token: int) -> Any:
    """TRL's configuration for ours.

    Args:
        common: what `run.arguments` gives.
        image_token: the id that stands for a part of an image, which no report may hold.
    """
    from trl import GRPOConfig as Arguments

    steps = accumulation(config.batch_size, config.micro_batch)
    if config.rollouts != "transformers":  # where TRL sees to it itself
        common = common | {"generation_kwargs": {"logit_bias": {image_token: -100}}}
    return Arguments(
        **common,
        gradient_accumulation_steps=steps,
        ddp_find_unused_parameters=False,  # each batch has images, and so reaches every weight
        steps_per_generation=steps * config.updates,
        num_iterations=config.passes,
        num_generations=config.group_size,
        epsilon=config.clip_low,
        epsilon_high=config.clip_high,
        beta=config.kl,
        use_bias_correction_kl=False,  # the plain k3 estimate of GRPO (arXiv 2402.03300, eq. 4)
        loss_type=config.loss,
        scale_rewards=config.advantage_scale,
        reward_weights=list(config.rewards.values()),
        max_completion_length=config.max_completion_tokens,
        temperature=config.temperature,
        # What is sampled must be the policy's whole distribution, as the loss's probabilities are.
        top_p=1.0,
        top_k=0,
        use_vllm=config.rollouts != "transformers",
        vllm_max_model_length=config.vllm_context,
        vllm_mode="server" if config.rollouts == "server" else "colocate",
        vllm_server_base_url=config.vllm_url or None,
        vllm_gpu_memory_utilization=config.vllm_memory,
        vllm_tensor_parallel_size=config.vllm_tensor_parallel,
        # The default sums log-ratios over a report, and masks whole reports whose sum strays (TRL 4772).
        vllm_importance_sampling_mode="token_truncate",
    )


def check_rewards(config: GRPOConfig, weights: bool) -> None:
    """Refuse before any work what would fail at the first reward.

    Args:
        weights: the scorers' are there.

    Raises:
        UserError: a reward needs them, or a judge, and they are not.
    """
    check_scores("the reward", list(config.rewards), config, weights)


def _check_vllm(config: GRPOConfig) -> None:
    if config.rollouts != "transformers":
        missing = "vLLM is not installed" if find_spec("vllm") is None else "torch sees no GPU"
        if find_spec("vllm") is None or not run.has_gpu():
            raise UserError(
                f"rollouts: {config.rollouts} needs vLLM and a GPU, and {missing}: install vLLM on a machine "
                "with a GPU, or set rollouts to transformers"
            )
