"""The validation split while training goes on: loss of the references, and scores of greedy reports.

Each process takes its share of the studies, rank 0 scores the reports of all, and every process learns the
result. Nothing of it reaches the training: no random number is drawn, and modes are put back.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers import ProcessorMixin, TrainerCallback

from unirg import prompts, telemetry
from unirg.artifact import Artifact
from unirg.cohort.reader import Cohort
from unirg.errors import UserError
from unirg.metrics.chexprompt import Judge
from unirg.metrics.encoder import Compute
from unirg.metrics.engine import Engine
from unirg.study import Study
from unirg.training import distributed, packing, run
from unirg.training.data import Examples
from unirg.training.packing import Encoder, Sample
from unirg.training.settings import check_validation

if TYPE_CHECKING:
    from unirg.training.settings import TrainConfig

PREFIX = "validation/"
"""Begins the names of the log's entries."""
BATCH = 16
"""Studies in one forward pass, and in one generation."""


@dataclass(frozen=True, slots=True)
class _Found:
    """What one process has of its share."""

    loss: float
    """Sum over completion tokens."""
    tokens: int
    reports: dict[int, str]
    """Greedy report of each study, by its number."""
    lengths: list[int]
    """Tokens of each report, the end of turn left out."""
    truncated: int
    """Reports that came to no end."""


class Validation(TrainerCallback):
    """Validates every `validate_steps` optimiser steps and after the last one; for any trainer.

    Entries of the trainer's history (`log_history`), with `step` and `epoch`: `validation/loss` (mean over
    completion tokens), `validation/<score>` (mean over the studies that have it; of errors those that the
    judge answered), `validation/missing` (how many scores are missing, of all studies), `validation/asked`
    (of how many), `validation/studies`, `validation/length` (tokens of a report,
    mean), `validation/truncated_share`, `validation/seconds`.
    """

    def __init__(
        self, cohort: Cohort, processor: ProcessorMixin, config: TrainConfig, engine: Engine
    ) -> None:
        """
        Args:
            engine: its scores are the ones that are logged.

        Raises:
            UserError: the cohort has no study to validate with.
        """
        self.config, self.engine = config, engine
        studies = chosen(cohort, config.validation_studies, config.seed)
        self.examples = Examples(cohort, studies, processor, config.prior_share, config.seed, completion=True)
        self.encoder = Encoder(processor)

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        step = state.global_step
        if step % self.config.validate_steps == 0 or step >= state.max_steps:
            state.log_history.append({**self(model), "epoch": state.epoch, "step": step})

    def __call__(self, model: Any) -> dict[str, float]:
        """The entries for the model as it is; all processes call it together.

        Args:
            model: the policy, or one with adapters; not wrapped for data parallelism.
        """
        started = time.monotonic()
        told = telemetry.Progress("validation", len(self.examples), "studies")
        with _evaluating(model, self.config.bf16):
            everyone = distributed.gathered(self._share(model, told))
        scored = distributed.agreed(self._scores(everyone) if distributed.rank() == 0 else {})
        lengths = [length for found in everyone for length in found.lengths]
        entries = {
            "loss": sum(found.loss for found in everyone) / sum(found.tokens for found in everyone),
            **scored,
            "studies": len(lengths),
            "length": sum(lengths) / len(lengths),
            "truncated_share": sum(found.truncated for found in everyone) / len(lengths),
            "seconds": round(time.monotonic() - started, 3),
        }
        if distributed.rank() == 0:
            told.finish(
                " ".join(f"{name} {value:.3f}" for name, value in entries.items() if name != "seconds")
            )
        return {PREFIX + name: value for name, value in entries.items()}

    def _share(self, model: Any, told: telemetry.Progress) -> _Found:
        """This process's part. All go through equally many batches: under ZeRO-3 they wait for each other.

        One that has nothing left goes through the first study, and forgets the outcome.
        """
        together = BATCH * distributed.processes()
        loss, tokens, reports, lengths, truncated = 0.0, 0, dict[int, str](), list[int](), 0
        ends = self.encoder.processor.tokenizer.eos_token_id
        for start in range(0, len(self.examples), together):
            first = start + BATCH * distributed.rank()
            numbers = range(first, min(first + BATCH, len(self.examples)))
            samples = [self.encoder(self.examples[number]) for number in numbers or range(1)]
            batch = _on(packing.pack(samples, model.config), model.device)
            lost = packing.loss(model, batch).item()
            written = self._reports(model, samples)
            told.advance(min(together, len(self.examples) - start))
            if not numbers:
                continue
            loss, tokens = loss + lost, tokens + len(batch["targets"])
            for number, ids in zip(numbers, written, strict=True):
                until = ids.index(ends) if ends in ids else len(ids)
                truncated += ends not in ids
                lengths.append(until)
                reports[number] = self.encoder.processor.tokenizer.decode(
                    ids[:until], skip_special_tokens=True
                ).strip()
        return _Found(loss, tokens, reports, lengths, truncated)

    def _reports(self, model: Any, samples: Sequence[Sample]) -> list[list[int]]:
        """Token ids that the model writes greedily after each prompt."""
        tokenizer = self.encoder.processor.tokenizer
        asked = [
            Sample(sample.ids[: sample.prompt], sample.prompt, sample.pixels, sample.grids)
            for sample in samples
        ]
        inputs = packing.pad(asked, tokenizer.pad_token_id, model.config.image_token_id, side="left")
        del inputs["labels"]
        width = inputs["input_ids"].shape[1]
        found = model.generate(
            **_on(inputs, model.device),
            max_new_tokens=self.config.validation_tokens,
            do_sample=False,
            temperature=None,  # those of the model's own generation configuration would be warned of
            top_p=None,
            top_k=None,
            use_cache=True,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        return [list(row) for row in found[:, width:].tolist()]

    def _scores(self, everyone: Sequence[_Found]) -> dict[str, float]:
        """Mean of each score over the studies that have it, and how many scores are missing."""
        reports = {number: report for found in everyone for number, report in found.reports.items()}
        references = [prompts.report(study) for study in self.examples.studies]
        pairs = [(reports[number], reference) for number, reference in enumerate(references)]
        rows = list(self.engine.score(pairs))
        values = {
            name: [row.values[name] for row in rows if name in row.values] for name in self.engine.scores
        }
        means = {name: math.fsum(some) / len(some) for name, some in values.items() if some}
        missing = sum(len(row.missing) for row in rows)
        return means | {"missing": missing, "asked": len(rows) * len(self.engine.scores)}


def callbacks(
    config: TrainConfig,
    cohort: Cohort,
    processor: ProcessorMixin,
    weights: Artifact | None,
    judge: Judge | None,
) -> list[TrainerCallback]:
    """The validation that the configuration asks for, or nothing.

    Args:
        weights: the scorers' weights (stage `weights`); needed where a score has a model.
        judge: of `settings.judge`, the rewards' own, so that both keep one budget. One that cannot be reached
            ends the validation and so the training, as it does from a reward; verdicts that it owes are
            missing.

    Raises:
        UserError: no study to validate with, or a score whose weights or judge are not there.
    """
    if not config.validate_steps:
        return []
    check_validation(config, weights is not None)
    engine = Engine(
        config.validation_scores,
        weights=weights.uri if weights else "",
        compute=Compute(device=run.device()),
        judge=judge,
    )
    return [Validation(cohort, processor, config, engine)]


def chosen(cohort: Cohort, count: int, seed: int) -> list[Study]:
    """So many studies of the validation split, drawn by their ids and so from every corpus alike; or all.

    Raises:
        UserError: there is none.
    """
    studies = [study for study in cohort.studies("validate") if prompts.sections(study)]
    if not studies:
        raise UserError(
            f"cohort {cohort.artifact.uri} has no study in split validate: stage it with one, or set "
            "validate_steps=0"
        )

    def draw(study: Study) -> bytes:
        return hashlib.sha256(f"{seed}\0{study.corpus}\0{study.study_id}".encode()).digest()

    return sorted(studies, key=draw)[:count]


@contextmanager
def _evaluating(model: Any, bf16: bool) -> Iterator[None]:
    """The model as for serving, in training's precision, able to take packed rows; afterwards as before."""
    training = model.training
    language = packing.language_model(model)
    before = language.config._attn_implementation
    packing.use(model)
    model.eval()
    try:
        with torch.no_grad(), torch.autocast(model.device.type, torch.bfloat16, enabled=bf16):
            yield
    finally:
        language.config._attn_implementation = before
        model.train(training)


def _on(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    return {name: value.to(device) if torch.is_tensor(value) else value for name, value in batch.items()}
