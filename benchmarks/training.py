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
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

from benchmarks.training_sides import GROUP, Epoch, Group, Steps, World, epoch
from parity import corpus, packages, weights
from unirg.metrics.engine import Engine
from unirg.metrics.reward import PAPER
from unirg.training.data import training_studies
from unirg.training.rollouts import Share

REAL, WAIT, KEPT = 0.97, 0.02, 0.9
"""SFT: real over padded tokens, at least; waiting for data, at most; of what the padding saved allows."""
IMAGES, PROMPT = 2.0, 1.5
"""GRPO: with images once per group over stock, and with the prompt once per group over that."""
REWARDS = 0.10
"""Of a GRPO step, at most."""
SAME = 1e-4
"""Losses and gradient norms of two sides apart, relatively, at most."""
PACKAGES = ("radgraph", "chexbert", "bertscore")
"""As `parity.upstream` calls those that give the paper's rewards."""


def verdict(met: bool, goal: str) -> str:
    return f"   {'met' if met else 'MISSED'} ({goal})"


def near(one: float, other: float) -> bool:
    """As alike as rounding leaves them; losses of GRPO are near zero by their nature."""
    return abs(one - other) <= SAME * abs(other) + 1e-6


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


def grpo(group: Group, rounds: int) -> Steps:
    """The table of GRPO's step; gives our best turn."""
    sides: dict[str, Share | None] = {"stock": None, "images": "images", "prompt": "prompt"}
    print(
        f"GRPO: {GROUP} rollouts a step at {group.world.side} px with a prior, kl {group.kl:g}, "
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
        group = Group(world, scorers["toy"], asked.steps, asked.kl)
        step = grpo(group, asked.rounds) if "grpo" in asked.parts else Steps()
        if "rewards" in asked.parts:
            rewards(folder, scorers, step)


if __name__ == "__main__":
    main()
