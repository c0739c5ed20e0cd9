"""GRPO in two steps on TRL: the paper's clinical rewards, then the error reward with a KL leash.

Step 1: weighted metrics, a higher upper clip (DAPO), no KL term. Step 2: from step 1's policy, adds
1 / (errors + 1) and a KL term to that policy. Both are this one stage with other numbers.
"""

from __future__ import annotations

from pydantic import Field, model_validator

from unirg import artifact, prompts, telemetry
from unirg.artifact import Artifact
from unirg.cohort.reader import Cohort
from unirg.errors import UserError
from unirg.metrics import catalog
from unirg.metrics.encoder import Compute, Precision
from unirg.metrics.engine import Engine
from unirg.metrics.judge_settings import JudgeSettings
from unirg.metrics.reward import PAPER
from unirg.training import run
from unirg.training.data import Examples, training_studies
from unirg.training.rewards import reward_functions

VERSION = 2


class GRPOConfig(run.TrainConfig, JudgeSettings):
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

    @model_validator(mode="after")
    def _whole_groups(self) -> GRPOConfig:
        if self.batch_size % self.group_size:
            raise ValueError(f"batch_size {self.batch_size} is no multiple of group_size {self.group_size}")
        catalog.check(self.rewards)
        return self


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
            or not finite.
    """
    inputs: dict[str, Artifact | str] = {"cohort": cohort, "parent": parent, "prompts": prompts.VERSION}
    inputs["metrics"] = catalog.version(config.rewards)
    judge = config.judge() if any(name.startswith("errors") for name in config.rewards) else None
    if judge:
        inputs["judge"] = judge.identity
    if weights:
        inputs["weights"] = weights
    with artifact.draft(store, "grpo", VERSION, config, inputs) as draft:
        if draft.committed:
            return draft.committed
        _check_needs(config, weights)
        run.prepare(config)
        from trl import GRPOConfig as Arguments
        from trl import GRPOTrainer

        engine = Engine(
            list(config.rewards),
            weights=weights.uri if weights else "",
            compute=Compute(config.reward_precision, device="cuda" if run.has_gpu() else "cpu"),
            judge=judge,
        )
        opened = Cohort.open(cohort)
        studies = training_studies(opened)
        queries = config.batch_size // config.group_size
        if len(studies) < queries:  # TRL drops an incomplete batch, and would wait for a step for ever
            raise UserError(
                f"{len(studies)} studies to train on, and batch_size / group_size = {queries} a step: "
                "lower batch_size"
            )
        # The KL term's reference is loaded from where the model came from: the parent, on resume too.
        model, processor = run.policy_of(parent)
        examples = Examples(opened, studies, processor, config.prior_share, config.seed, completion=False)
        trainer = GRPOTrainer(
            model=model,
            reward_funcs=reward_functions(config.rewards, engine),
            args=Arguments(
                **run.arguments(config, draft),
                gradient_accumulation_steps=run.accumulation(config.batch_size, config.micro_batch),
                num_generations=config.group_size,
                epsilon=config.clip_low,
                epsilon_high=config.clip_high,
                beta=config.kl,
                use_bias_correction_kl=False,  # the plain k3 estimate of GRPO (arXiv 2402.03300, eq. 4)
                reward_weights=list(config.rewards.values()),
                max_completion_length=config.max_completion_tokens,
                temperature=config.temperature,
            ),
            train_dataset=examples.dataset(),
            processing_class=processor,
        )
        steps = run.train(trainer, draft, f"grpo (kl {config.kl:g})")
        return draft.commit({"studies": len(studies), "steps": steps})


def _check_needs(config: GRPOConfig, weights: Artifact | None) -> None:
    """Refuse before any work what would fail at the first reward."""
    if weights is None and (named := catalog.with_weights(config.rewards)):
        raise UserError(
            f"the reward `{named[0]}` needs its scorer's weights: name an artifact of stage weights "
            "(`unirg weights make` prints one)"
        )
    if not config.judge_url and any(name.startswith("errors") for name in config.rewards):
        raise UserError("the reward `errors` needs a judge: set judge_url to an OpenAI-compatible endpoint")
