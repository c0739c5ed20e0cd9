"""The sides of `training.py`: stock TRL's trainers and ours, over the same studies from the same policy."""

from __future__ import annotations

import contextlib
import io
import os
import resource
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"  # before TRL loads, which would tell of each trainer

import torch
from transformers import PrinterCallback, TrainerCallback
from transformers.trainer_pt_utils import LengthGroupedSampler, get_length_grouped_indices
from trl import GRPOTrainer, SFTTrainer
from trl import SFTConfig as SFTArguments

from parity import corpus
from unirg import checkpoint
from unirg.cohort.reader import Cohort
from unirg.cohort.stage import StageConfig, stage
from unirg.metrics.engine import Engine
from unirg.metrics.reward import PAPER
from unirg.study import Study
from unirg.training import packing
from unirg.training.data import Examples, training_studies
from unirg.training.grpo import GRPOConfig, arguments
from unirg.training.policy import BaseConfig, ToyConfig, base
from unirg.training.rewards import Rewards
from unirg.training.rollouts import Share, SharedGRPOTrainer
from unirg.training.sft_trainer import PackedSFTTrainer

GROUP, TOKENS = 16, 192
"""Rollouts, and tokens at most; the made-up reports have about 140."""


@dataclass(frozen=True)
class World:
    """What both sides train on and from."""

    cohort: Cohort
    policy: Path
    side: int
    folder: Path

    @classmethod
    def made(cls, studies: int, side: int, folder: Path) -> World:
        with contextlib.redirect_stderr(io.StringIO()):  # staging's progress
            cohort = stage(StageConfig(studies=studies, size=side, workers=1), str(folder / "store"))
            policy = base(BaseConfig(toy=ToyConfig(image_size=side)), cohort, str(folder / "store"))
        return cls(Cohort.open(cohort), policy.directory / checkpoint.MODEL, side, folder)

    def loaded(self) -> tuple[Any, Any]:
        """(model, processor), fresh; both sides get our patch embedding, which Conv3d would slow."""
        return checkpoint.load_model(self.policy).train(), checkpoint.load_processor(self.policy)

    @property
    def common(self) -> dict[str, Any]:
        """TRL's settings of all trainers."""
        return {
            "output_dir": str(self.folder / "trained"),
            "use_cpu": True,
            "bf16": False,
            "gradient_checkpointing": False,
            "report_to": [],
            "logging_steps": 1,
            "save_strategy": "no",
            "disable_tqdm": True,
            "remove_unused_columns": False,
            "dataloader_pin_memory": False,
            "lr_scheduler_type": "constant",
            "seed": 0,
        }


def cpu() -> float:
    """Seconds of this process and of those that it started and that ended."""
    both = (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    return sum(used.ru_utime + used.ru_stime for used in both)


@dataclass(frozen=True)
class Epoch:
    """A turn of SFT."""

    cpu: float
    """Seconds of all threads and processes."""
    thread: float
    """Seconds of the one that computes the steps."""
    wall: float
    waited: float
    """Seconds of wall clock for data, after the first step's."""
    real: float
    """Tokens over places in the batches."""
    log: list[dict[str, Any]]


class Stock(SFTTrainer):
    """TRL's, with its length grouping; counts tokens, places and waiting."""

    lengths: Sequence[int] = ()
    real = places = 0
    waited = 0.0

    def _get_train_sampler(self, train_dataset: Any = None) -> LengthGroupedSampler:
        return Grouped(self.args.train_batch_size, lengths=list(self.lengths))

    def get_batch_samples(self, *given: Any, **named: Any) -> Any:
        began = time.perf_counter()
        found = super().get_batch_samples(*given, **named)
        self.waited += time.perf_counter() - began if self.places else 0
        for batch in found[0]:
            self.real += int(batch["attention_mask"].sum())
            self.places += batch["attention_mask"].numel()
        return found


class Grouped(LengthGroupedSampler):
    """transformers', which groups a small set by less: a quarter of its batches at a time."""

    def __iter__(self) -> Iterator[int]:
        batches = min(50, -(-len(self.lengths) // self.batch_size))
        generator = torch.Generator().manual_seed(0)
        return iter(get_length_grouped_indices(self.lengths, self.batch_size, batches, generator=generator))


def epoch(world: World, studies: Sequence[Study], micro_batch: int, workers: int | None) -> Epoch:
    """Our trainer over these studies, or stock TRL's with so many workers."""
    model, processor = world.loaded()
    examples = Examples(world.cohort, studies, processor, 0.5, 0, completion=True)
    settings = {
        **world.common,
        "per_device_train_batch_size": micro_batch,
        "num_train_epochs": 1,
        "learning_rate": 1e-3,
        "max_length": None,
        "completion_only_loss": True,
    }
    trainer: Any
    if workers is None:
        args = SFTArguments(**settings, dataset_kwargs={"skip_prepare_dataset": True})
        trainer = PackedSFTTrainer(
            model=packing.use(model), examples=examples, packed=True, args=args, processing_class=processor
        )
    else:
        args = SFTArguments(**settings, dataloader_num_workers=workers)
        trainer = Stock(model=model, args=args, train_dataset=examples.dataset(), processing_class=processor)
        trainer.lengths = examples.lengths((world.side // 32) ** 2)
    trainer.remove_callback(PrinterCallback)
    clocks = (cpu, time.thread_time, time.perf_counter)
    began = [clock() for clock in clocks]
    trainer.train()
    used, thread, wall = (clock() - start for clock, start in zip(clocks, began, strict=True))
    log = [entry for entry in trainer.state.log_history if "loss" in entry]
    if workers is None:
        trainer.close()
        waited = sum(entry["data_wait_s"] for entry in log[1:])
        return Epoch(used, thread, wall, waited, 1 - max(entry["padding_share"] for entry in log), log)
    return Epoch(used, thread, wall, trainer.waited, trainer.real / trainer.places, log)


class Clock(TrainerCallback):
    """CPU seconds of optimiser steps."""

    def __init__(self) -> None:
        self.steps: list[float] = []
        self.began = 0.0

    def on_step_begin(self, *given: Any, **named: Any) -> None:
        self.began = time.process_time()

    def on_step_end(self, *given: Any, **named: Any) -> None:
        self.steps.append(time.process_time() - self.began)


@dataclass
class Steps:
    """A turn of GRPO."""

    cpu: float = 0.0
    """Seconds of all threads for a step."""
    parts: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    """Of that, by what they went to."""
    log: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Group:
    """The steps that each side takes."""

    world: World
    scorers: Path
    """Directories of their weights."""
    steps: int
    kl: float
    """Weight of the KL term."""

    def studies(self) -> list[Study]:
        """With a prior, one a step."""
        return [study for study in training_studies(self.world.cohort) if study.prior_study_id][: self.steps]

    def written(self, tokenizer: Any) -> list[list[list[int]]]:
        """Rollouts of each step: made-up reports, none of which comes twice."""
        ids = [
            [*tokenizer(text)["input_ids"][: TOKENS - 1], tokenizer.eos_token_id]
            for text in corpus.made_up(self.steps * GROUP)
        ]
        return [ids[start : start + GROUP] for start in range(0, len(ids), GROUP)]

    def run(self, share: Share | None) -> Steps:
        """What a side takes; stock TRL where there is no share."""
        model, processor = self.world.loaded()
        turn, clock = Steps(), Clock()
        engine = Engine(list(PAPER), weights=str(self.scorers))
        list(engine.score([("Warm.", "Up.")]))
        rewards = Rewards(PAPER, engine)
        timed(rewards, "_scored", turn, "rewards")
        examples = Examples(self.world.cohort, self.studies(), processor, 1.0, 0, completion=False)
        settings = GRPOConfig(
            batch_size=GROUP,
            group_size=GROUP,
            micro_batch=GROUP,
            rewards=PAPER,
            max_completion_tokens=TOKENS,
            kl=self.kl,
        )
        own = {
            "per_device_train_batch_size": GROUP,
            "max_steps": self.steps,
            "learning_rate": 1e-5,
        }
        given: dict[str, Any] = {
            "model": model,
            "args": arguments(settings, self.world.common | own, model.config.image_token_id),
            "train_dataset": examples.dataset(),
            "processing_class": processor,
            "callbacks": [clock],
        }
        written = iter(self.written(processor.tokenizer))
        trainer: Any
        if share is None:
            trainer = GRPOTrainer(**given, reward_funcs=rewards.functions)
            timed(
                trainer, "_generate_single_turn", turn, "generation", lambda found: (next(written), found[1])
            )
        else:
            trainer = SharedGRPOTrainer(**given, rewards=rewards, share=share)
            timed(trainer, "_sampled", turn, "generation", lambda found: next(written))
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        turn.cpu = sum(clock.steps) / len(clock.steps)
        turn.parts = {name: seconds / len(clock.steps) for name, seconds in turn.parts.items()}
        turn.log = [entry for entry in trainer.state.log_history if "loss" in entry]
        return turn


def timed(
    owner: Any, name: str, turn: Steps, part: str, then: Callable[[Any], Any] = lambda found: found
) -> None:
    """Count the CPU seconds of a method in the thread that runs it, and hand on another result of it."""
    method = getattr(owner, name)

    def counted(*given: Any, **named: Any) -> Any:
        began = time.thread_time()
        found = method(*given, **named)
        turn.parts[part] += time.thread_time() - began
        return then(found)

    setattr(owner, name, counted)
