"""Supervised fine-tuning on TRL: the completion's tokens alone bear loss."""

from __future__ import annotations

from contextlib import closing

from pydantic import Field

from unirg import prompts, telemetry
from unirg.artifact import Artifact
from unirg.cohort.reader import Cohort
from unirg.metrics import catalog
from unirg.training import run, settings
from unirg.training.data import Examples, training_studies
from unirg.training.settings import TrainConfig, accumulation

VERSION = 3


class SFTConfig(TrainConfig):
    """The paper's SFT: learning rate 5e-5, batch 256, 3 epochs."""

    learning_rate: float = Field(default=5e-5, gt=0)
    """Peak learning rate (the paper's choice from its grid of 1e-5 and 5e-5)."""
    batch_size: int = Field(default=256, ge=1)
    """Studies in one optimiser step (the paper: 256, from 128, 256, 512)."""
    micro_batch: int = Field(default=8, ge=1)
    """Studies in one forward pass of one process."""
    epochs: float = Field(default=3.0, gt=0)
    """Passes over the training studies (the paper: 3)."""
    packed: bool = True
    """Micro-batches without padding (`packing`); otherwise studies of like length are padded together."""


def inputs(
    config: SFTConfig, cohort: Artifact, parent: Artifact, weights: Artifact | None
) -> dict[str, Artifact | str]:
    """What makes the artifact's identity beside the configuration."""
    found: dict[str, Artifact | str] = {"cohort": cohort, "parent": parent, "prompts": prompts.VERSION}
    if config.validate_steps:  # it decides which checkpoint is the best
        found["validation"] = catalog.version(config.validation_scores)
        if weights:
            found["weights"] = weights
    if judge := settings.judge(config):
        found["judge"] = judge.identity
    return found


@telemetry.verb("train.sft")
def sft(
    config: SFTConfig, cohort: Artifact, parent: Artifact, store: str, weights: Artifact | None = None
) -> Artifact:
    """Fine-tune `parent` (stage `base`) on the cohort's training split.

    Returns:
        A checkpoint artifact (stage `sft`): `model/` and the trainer's log.

    Raises:
        UserError: no training study, a batch that the micro-batch does not divide, a non-finite loss; a
            validation whose judge cannot be reached.
    """
    with run.draft(store, "sft", VERSION, config, inputs(config, cohort, parent, weights)) as draft:
        if draft.committed:
            return draft.committed
        run.prepare(config)
        from trl import SFTConfig as Arguments

        from unirg.training import packing, validation
        from unirg.training.sft_trainer import PackedSFTTrainer

        opened = Cohort.open(cohort)
        studies = training_studies(opened)
        model, processor = run.policy_of(parent)
        trainer = PackedSFTTrainer(
            model=packing.use(model) if config.packed else model,
            examples=Examples(opened, studies, processor, config.prior_share, config.seed, completion=True),
            packed=config.packed,
            args=Arguments(
                **run.arguments(config, draft),
                gradient_accumulation_steps=accumulation(config.batch_size, config.micro_batch),
                max_length=None,  # a cut sequence may lose image tokens
                completion_only_loss=True,
                dataset_kwargs={"skip_prepare_dataset": True},
                ddp_find_unused_parameters=False,  # each batch has images, and so reaches every weight
            ),
            processing_class=processor,
            callbacks=validation.callbacks(config, opened, processor, weights, settings.judge(config)),
            peft_config=run.adapters(config),
        )
        with closing(trainer):
            steps = run.train(trainer, draft, "sft")
        return draft.commit({"studies": len(studies), "steps": steps})
