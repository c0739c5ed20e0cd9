"""A small cohort of training and validation studies, half of them with priors, and a tiny policy for them."""

from __future__ import annotations

from typing import Any

import pytest

from tests.cohort.films import Films
from unirg import artifact, checkpoint, prompts
from unirg.artifact import Artifact
from unirg.cohort import stage as staging
from unirg.cohort.reader import Cohort
from unirg.cohort.stage import StageConfig, stage
from unirg.training.policy import BaseConfig, ToyConfig, toy_policy

TOY = ToyConfig(hidden_size=32, vision_hidden_size=32, image_size=64, vocabulary=300, initializer_range=0.2)
"""Weights large enough that what the policy says depends on what it is shown."""


def made(store: str, studies: int = 24, validate: float = 0.4) -> tuple[Artifact, Artifact]:
    """(cohort, base policy)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(staging, "open_corpus", lambda config: Films(count=studies))
        wanted = {"split": {"test": 0.0, "validate": validate}, "size": 64, "workers": 1}
        cohort = stage(StageConfig.model_validate(wanted), store)
    texts = [
        text
        for study in Cohort.open(cohort).studies()
        for text in (
            prompts.messages(study, "both", study)[0]["content"][-1]["text"],
            prompts.report(study),
        )
    ]
    model, processor = toy_policy(TOY, texts, seed=0)
    with artifact.draft(store, "base", 1, BaseConfig(), {"cohort": cohort}) as draft:
        checkpoint.save(model, processor, draft.out / checkpoint.MODEL)
        return cohort, draft.commit()


def loaded(base: Artifact) -> tuple[Any, Any]:
    """(model, processor), fresh."""
    directory = base.directory / checkpoint.MODEL
    return checkpoint.load_model(directory), checkpoint.load_processor(directory)
