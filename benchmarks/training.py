"""Speed of training beside stock TRL: SFT, the GRPO step, and what rewards take of it.

    .venv/bin/python benchmarks/training.py [--parts sft grpo rewards] [--rounds 2] [--studies 120]

Both sides train the same toy policy on the same staged phantoms with the same settings, one thread each, in
turns; a turn is a fresh trainer, and the least of a side's turns counts. Seconds are CPU seconds, which other
work on the machine moves less; wall clock is for an idle one.

- SFT: one epoch. Stock TRL groups by length (over the whole set, as it does over 50 batches of a large one),
  without and with a worker. What a batch has less of padding should come back as speed.
- GRPO: one group of rollouts a step, each study with its prior. Both sides sample their rollouts, and then
  go on with the same made-up reports, so that losses and gradients can be compared; their rewards are ours.
- Rewards: the paper's of step 1 for that group, beside one pair at a time by the upstream packages
  (`tools/parity.sh` installs them; else by our engine without memory). In the step the scorers are as small
  beside BERT as the policy; a group at BERT-base size comes after it.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import random
import resource
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"  # before TRL loads, which would tell of each trainer

import torch
from transformers import PrinterCallback, TrainerCallback
from transformers.trainer_pt_utils import LengthGroupedSampler, get_length_grouped_indices
from trl import GRPOTrainer, SFTTrainer
from trl import SFTConfig as SFTArguments

from parity import corpus, packages, weights
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

REAL, WAIT, KEPT = 0.97, 0.02, 0.9
"""SFT: real over padded tokens, at least; waiting for data, at most; of what the padding saved allows."""
IMAGES, PROMPT = 2.0, 1.5
"""GRPO: with images once per group over stock, and with the prompt once per group over that."""
REWARDS = 0.10
"""Of a GRPO step, at most."""
SAME = 1e-4
"""Losses and gradient norms of two sides apart, relatively, at most."""
GROUP, TOKENS = 16, 192
"""Rollouts, and tokens at most; the made-up reports have about 140."""
PACKAGES = ("radgraph", "chexbert", "bertscore")
"""As `parity.upstream` calls those that give the paper's rewards."""


def verdict(met: bool, goal: str) -> str:
    return f"   {'met' if met else 'MISSED'} ({goal})"


def near(one: float, other: float) -> bool:
    """As alike as rounding leaves them; losses of GRPO are near zero by their nature."""
    return abs(one - other) <= SAME * abs(other) + 1e-6


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


def sft(world: World, rounds: int, micro_batch: int) -> None:
    """The table of SFT."""
    studies = training_studies(world.cohort)
    sides: dict[str, int | None] = {"stock": 0, "stock, 1 worker": 1, "ours": None}
    print(f"SFT: {len(studies)} studies at {world.side} px, half of the priors shown, {micro_batch} a batch")
    one = {name: epoch(world, studies[:micro_batch], micro_batch, sides[name]) for name in ("stock", "ours")}
    same("one batch", [[side.log[0][name] for name in ("loss", "grad_norm")] for side in one.values()])
    found: dict[str, list[Epoch]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, workers in sides.items():
            found[name].append(epoch(world, studies, micro_batch, workers))
    best = {name: min(turns, key=lambda turn: turn.cpu) for name, turns in found.items()}
    for name, turn in best.items():
        rates = [len(studies) / seconds for seconds in (turn.cpu, turn.thread, turn.wall)]
        print(
            f"  {name:18}{rates[0]:7.2f} samples/CPU s{rates[1]:7.2f} of the training thread alone"
            f"{rates[2]:7.2f}/s wall   {turn.real:.3f} real   waits {turn.waited / turn.wall:.1%} of wall"
        )
    ours = best.pop("ours")
    print(f"  real over padded tokens {ours.real:.3f}" + verdict(ours.real >= REAL, f">= {REAL}"))
    share = max(turn.waited / turn.wall for turn in found["ours"])
    print(f"  waiting for data {share:.2%} of the time at most" + verdict(share < WAIT, f"< {WAIT:.0%}"))
    for name, turn in best.items():
        ratio, allowed = turn.cpu / ours.cpu, ours.real / turn.real
        goal = verdict(ratio >= KEPT * allowed, f">= {KEPT:.0%} of the {allowed:.2f} x that padding saved")
        print(f"  ours / {name}: {ratio:.2f} x{goal}", flush=True)


def same(label: str, sides: Sequence[Sequence[float]]) -> None:
    """Losses and gradient norms of several sides, each alike the first."""
    met = all(near(mine, first) for side in sides for mine, first in zip(side, sides[0], strict=True))
    shown = " | ".join(" ".join(f"{value:.7g}" for value in side) for side in sides)
    print(f"  loss and gradient norm, {label}: {shown}{verdict(met, f'within {SAME:g}')}", flush=True)


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
    settings: GRPOConfig
    scorers: Path
    """Directories of their weights."""
    steps: int

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
        engine = Engine(list(self.settings.rewards), weights=str(self.scorers))
        list(engine.score([("Warm.", "Up.")]))
        rewards = Rewards(self.settings.rewards, engine)
        timed(rewards, "_scored", turn, "rewards")
        examples = Examples(self.world.cohort, self.studies(), processor, 1.0, 0, completion=False)
        own = {
            "per_device_train_batch_size": GROUP,
            "max_steps": self.steps,
            "learning_rate": 1e-5,
        }
        given: dict[str, Any] = {
            "model": model,
            "args": arguments(self.settings, self.world.common | own),
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


def grpo(group: Group, rounds: int) -> Steps:
    """The table of GRPO's step; gives our best turn."""
    sides: dict[str, Share | None] = {"stock": None, "images": "images", "prompt": "prompt"}
    print(
        f"GRPO: {GROUP} rollouts a step at {group.world.side} px with a prior, kl {group.settings.kl:g}, "
        f"{group.steps} steps a turn"
    )
    found: dict[str, list[Steps]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, share in sides.items():
            found[name].append(group.run(share))
    best = {name: min(turns, key=lambda turn: turn.cpu) for name, turns in found.items()}
    for number in range(group.steps):
        pairs = [[turn.log[number][name] for name in ("loss", "grad_norm")] for turn in best.values()]
        same(f"step {number + 1}", pairs)
    for name, turn in best.items():
        rest = turn.cpu - sum(turn.parts.values())
        parts = ", ".join(f"{part} {turn.parts[part]:.2f}" for part in ("generation", "rewards"))
        print(f"  {name:18}{turn.cpu:7.2f} CPU s a step: {parts}, images and training {rest:.2f}")
    stock, images, prompt = (best[name].cpu for name in sides)
    print(f"  images once per group / stock: {stock / images:.2f} x" + _least(stock / images, IMAGES))
    print(f"  prompt once per group / images: {images / prompt:.2f} x" + _least(images / prompt, PROMPT))
    print(f"  ours / stock: {stock / prompt:.2f} x", flush=True)
    return best["prompt"]


def _least(ratio: float, goal: float) -> str:
    return verdict(ratio >= goal, f">= {goal}")


def one_at_a_time(folder: Path, scorers: Path, pairs: corpus.Pairs) -> tuple[str, float]:
    """Who scores pair by pair, and the CPU seconds that it takes."""
    if packages.PYTHON.exists():
        with packages.Packages(packages.prepare(folder, scorers)) as upstream:
            for package in PACKAGES:
                upstream.score(package, pairs[:1])
            asked = [(package, [pair]) for pair in pairs for package in PACKAGES]
            return "the upstream packages", sum(upstream.score(*each)["cpu"] for each in asked)
    engine = Engine([name for name, weight in PAPER.items() if weight], weights=str(scorers), memory=0)
    list(engine.score(pairs[:1]))
    began = time.process_time()
    for pair in pairs:
        list(engine.score([pair]))
    return "our engine (no packages here)", time.process_time() - began


def rewards(folder: Path, scorers: Mapping[str, Path], step: Steps) -> None:
    """The table of rewards: a group by the engine, and pair by pair."""
    pairs = corpus.group_pairs(1, GROUP, corpus.made_up(GROUP + 1))
    print(f"Rewards: the paper's of step 1 for {GROUP} rollouts, CPU s")
    for label, place in scorers.items():
        engine = Engine(list(PAPER), weights=str(place))
        list(engine.score([("Warm.", "Up.")]))
        began = time.process_time()
        list(engine.score(pairs))
        ours = time.process_time() - began
        who, theirs = one_at_a_time(folder / label, place, pairs)
        print(
            f"  {label:18}{ours:7.2f} by the engine{theirs:8.2f} pair by pair by {who}, {theirs / ours:.1f} x"
        )
        if label == "toy" and step.cpu:
            rest = step.cpu - step.parts["rewards"]
            share = step.parts["rewards"] / step.cpu
            print(f"  of the step {share:.1%}{verdict(share <= REWARDS, f'<= {REWARDS:.0%}')}")
            print(f"  pair by pair they would be {theirs / (rest + theirs):.1%} of it", flush=True)


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="*", default=["sft", "grpo", "rewards"])
    parser.add_argument("--rounds", type=int, default=2, help="turns of each side; the least counts")
    parser.add_argument("--studies", type=int, default=120, help="phantoms to stage")
    parser.add_argument("--side", type=int, default=512, help="of a radiograph, in pixels")
    parser.add_argument("--micro-batch", type=int, default=8, help="studies of SFT's")
    parser.add_argument("--steps", type=int, default=2, help="of GRPO in a turn")
    parser.add_argument("--kl", type=float, default=0.0, help="weight of GRPO's KL term")
    parser.add_argument("--scorers", nargs="*", default=["toy", "BERT-base"], help="sizes to time rewards at")
    asked = parser.parse_args(given)
    torch.set_num_threads(1)
    random.seed(0)
    print(f"torch {torch.__version__}, 1 thread, load {os.getloadavg()[0]:.1f}", flush=True)
    sizes = {"toy": weights.TINY, "BERT-base": weights.PARITY}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        world = World.made(asked.studies, asked.side, folder)
        if "sft" in asked.parts:
            sft(world, asked.rounds, asked.micro_batch)
        scorers = {label: folder / "weights" / label for label in dict.fromkeys(["toy", *asked.scorers])}
        for label, place in scorers.items():
            if {"grpo", "rewards"} & {*asked.parts}:
                weights.build(place, corpus.made_up(60)[-30:], sizes[label])
        settings = GRPOConfig(
            batch_size=GROUP, group_size=GROUP, micro_batch=GROUP, max_completion_tokens=TOKENS, kl=asked.kl
        )
        group = Group(world, settings, scorers["toy"], asked.steps)
        step = grpo(group, asked.rounds) if "grpo" in asked.parts else Steps()
        if "rewards" in asked.parts:
            rewards(folder, scorers, step)


if __name__ == "__main__":
    main()
