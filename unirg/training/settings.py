"""What SFT and GRPO are told alike, and what is refused of it before any work."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from pydantic import Field, model_validator

from unirg.config import Config, operational
from unirg.errors import UserError
from unirg.metrics import catalog
from unirg.metrics.chexprompt import Judge
from unirg.metrics.judge_settings import JudgeSettings
from unirg.training import distributed
from unirg.training.trainjob import TrainJobConfig


class LoRA(Config):
    """Low-rank adapters (arXiv 2106.09685) in place of full fine-tuning; the export is merged."""

    rank: int = Field(default=16, ge=1)
    """Rank of the update of one matrix."""
    alpha: float = Field(default=32.0, gt=0)
    """The update is scaled by alpha / rank."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Of what enters an adapter."""
    targets: tuple[str, ...] = Field(
        default=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"), min_length=1
    )
    """Ends of the names of the adapted matrices; the default is every one of the language model."""


class TrainConfig(JudgeSettings):
    """What SFT and GRPO have in common."""

    learning_rate: float = Field(gt=0)
    """Peak learning rate."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Decay after warm-up; the paper leaves it open."""
    warmup_steps: int = Field(default=0, ge=0)
    """Optimiser steps of linear warm-up; the paper leaves it open."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's; the paper leaves it open."""
    adam_beta2: float = Field(default=0.999, gt=0, lt=1)
    """AdamW's second decay; PyTorch's default."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are clipped to this norm (transformers' default)."""
    epochs: float = Field(default=1.0, gt=0)
    """Passes over the training studies; `max_steps` ends it earlier."""
    max_steps: int = Field(default=-1, ge=-1)
    """Optimiser steps; -1 = as many as `epochs` says."""
    micro_batch: int = Field(ge=1)
    """Sequences in one forward pass of one process."""
    prior_share: float = Field(default=0.0, ge=0, le=1)
    """Share of the studies with a prior that are shown with its image and report (longitudinal input)."""
    bf16: bool = False
    """Train in bfloat16 with fp32 optimiser state."""
    gradient_checkpointing: bool = False
    """Trade a second forward pass for activation memory."""
    threads: int = Field(default=1, ge=1)
    """CPU threads of a process: part of the identity, as it changes the order of floating-point sums."""
    seed: int = 0
    """Of data order, dropout and sampling."""
    processes: int = Field(default=1, ge=1)
    """Processes that train together; a micro-batch is of one of them."""
    resume_processes: int | None = operational(None, ge=1)
    """Processes that go on with a training which `processes` began, after machines were lost or won: the same
    data in the same order, other random numbers; none = as many. No training begins with another number."""
    zero: Literal[0, 2, 3] = 0
    """DeepSpeed's ZeRO stage: 2 splits optimiser state and gradients over the processes, 3 the weights too;
    0 = plain data parallelism."""
    offload: bool = False
    """Keep the optimiser's state in the host's memory (ZeRO)."""
    lora: LoRA | None = None
    """Train low-rank adapters; none = every weight."""
    validate_steps: int = Field(default=0, ge=0)
    """Optimiser steps between validations; 0 = none."""
    validation_studies: int = Field(default=1024, ge=1)
    """Studies of the validation split in one validation (the paper: 1,024)."""
    validation_scores: tuple[str, ...] = Field(
        default=("bleu2", "bertscore", "sembscore", "radgraph", "radcliq_v1"), min_length=1
    )
    """Scores (`unirg metrics list`) of the validation's greedy reports; the default is RadCliQ-v1 with its
    parts. All that begin with `errors` come from one verdict of the judge, so a validation calls it once for
    each of `validation_studies`, besides attempts again (the paper's step 2: 35 validations of 1,024 calls,
    beside 8,960,000 for the rewards)."""
    validation_tokens: int = Field(default=512, ge=8)
    """A longer greedy report is cut; the paper leaves it open."""
    launch: Literal["local", "trainjob"] = operational("local")
    """Who starts the processes where torchrun has not: this machine, or a cluster as a TrainJob."""
    trainjob: TrainJobConfig | None = operational(None)
    """Where and with what the TrainJob runs."""
    save_steps: int = operational(50, ge=1)
    """Optimiser steps between checkpoints: what a crash can cost."""
    export: Literal["last", "best"] = "last"
    """Weights that become the artifact: the last step's, or those of the best validation by RadCliQ-v1."""
    kept: int = operational(2, ge=1)
    """Newest checkpoints kept, beside the best by the validation's RadCliQ-v1; the second is there for a
    crash while the newest is being written."""

    @model_validator(mode="after")
    def _what_needs_what(self) -> TrainConfig:
        if self.offload and not self.zero:
            raise ValueError("offload needs ZeRO: set zero to 2 or 3")
        if self.export == "best" and not self.validate_steps:
            raise ValueError("export = best needs validations: set validate_steps")
        if self.export == "best" and "radcliq_v1" not in self.validation_scores:
            raise ValueError("export = best needs radcliq_v1 among validation_scores")
        catalog.check(self.validation_scores)
        if self.launch == "trainjob" and not self.trainjob:
            raise ValueError("launch = trainjob needs its settings: set trainjob.image")
        return self

    @property
    def started_processes(self) -> int:
        """How many a launcher starts."""
        return self.resume_processes or self.processes


def accumulation(batch: int, micro_batch: int, processes: int | None = None) -> int:
    """Micro-batches of one process that make one optimiser step.

    Args:
        processes: that train together; none = those that do now.

    Raises:
        UserError: the micro-batches of all processes do not divide the batch.
    """
    together = micro_batch * (processes or distributed.processes())
    if batch % together:
        raise UserError(f"batch_size = {batch} is no multiple of micro_batch x processes = {together}")
    return batch // together


def check_validation(config: TrainConfig, weights: bool) -> None:
    """Refuse before any work what would fail at the first validation.

    Args:
        weights: the scorers' are there.

    Raises:
        UserError: a score needs them, or a judge, and they are not.
    """
    if config.validate_steps:
        check_scores("the validation's score", config.validation_scores, config, weights)


def check_scores(what: str, scores: Sequence[str], config: TrainConfig, weights: bool) -> None:
    """Refuse scores that could not be computed.

    Raises:
        UserError: one needs its scorer's weights, or a judge, and they are not there.
    """
    if not weights and (named := catalog.with_weights(scores)):
        raise UserError(
            f"{what} `{named[0]}` needs its scorer's weights: name an artifact of stage weights "
            "(`unirg weights make` prints one), or leave the score out"
        )
    if named := catalog.judged(scores):
        needs = f"{what} `{named[0]}` needs a judge"
        if not config.judge_url:
            raise UserError(f"{needs}: set judge_url to an OpenAI-compatible endpoint")
        if not config.judge_model:
            raise UserError(f"{needs}: set judge_model to the model's name at {config.judge_url}")


def judge(config: TrainConfig, rewards: Iterable[str] = ()) -> Judge | None:
    """Who counts errors for the rewards and for the validation, within one budget; None where neither asks.

    Raises:
        UserError: a budget in money without prices.
    """
    validated = config.validation_scores if config.validate_steps else ()
    return config.judge() if catalog.judged([*rewards, *validated]) else None
