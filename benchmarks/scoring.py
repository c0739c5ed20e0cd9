"""How close scoring comes to what its endpoint can give: ratios, each beside its goal.

    .venv/bin/python benchmarks/scoring.py [--parts stub memory predictor] [--rounds 2]

- stub: `unirg score` as a process of its own against a stub endpoint that answers everything after a fixed
  latency (`tests/scoring/stub_server.py`, on another core). The ideal rate is concurrency / latency, ours is
  from the first question's arrival to the last answer, with the growth of concurrency in it. CPU a study is
  what a longer run takes above a shorter one, divided by the studies between them, so that starting Python is
  not in it; reading Parquet, checking digests, writing the request, ledger and artifact are.
- memory: the largest resident set of the same process over an archive of 1,000 and of 100,000 studies. No
  100,000 images are staged: an archive is drawn in which 16 pictures of 64 pixels are in every shard under
  new study ids (`tests/scoring/archives.py`), each study stored as a study of its own.
- predictor: our client and `unirg serve`'s predictor with a toy policy that never ends a report itself,
  beside plain code: `model.generate` in the best of several fixed batches over a quarter of the studies
  (images decoded and prepared batch by batch, without a server), a batch that the predictor then has too, and
  a loop that sends one request at a time to it. Of each side the best round counts; wall clock, as server and
  client overlap.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

from benchmarks.scoring_sides import BATCHES, Used, World, client
from tests.scoring import archives
from tests.scoring.stub_server import Behaviour, served

CONCURRENCY = 64
RATE, CPU_MS, MEMORY = 0.95, 2.0, 1.10
"""Of the ideal rate, at least; CPU ms a study, at most; the large archive's memory over the small one's."""
GENERATE, LOOP = 0.90, 3.0
"""Over `model.generate`'s rate, and over the loop's, at least."""


def verdict(met: bool, goal: str) -> str:
    return f"   {'met' if met else 'MISSED'} ({goal})"


def stub(folder: Path, studies: int, side: int, latency_s: float, rounds: int) -> None:
    """The client's rate and its CPU time."""
    archive = archives.make(str(folder / "stub"), studies, side, shard=128)
    few, settings = max(studies // 10, 1), ("splits=[test]", f"concurrency={CONCURRENCY}")
    size = sum(path.stat().st_size for path in (folder / "stub" / "shards").iterdir()) / studies
    print(f"Stub: {studies} studies at {side} px ({size / 1024:.0f} KiB), {latency_s:g} s latency")
    rates, costs = [], []
    for number in range(rounds):
        used: dict[int, Used] = {}
        for count in (few, studies):
            with served(Behaviour(latency_s=latency_s), folder / "log", logged=False) as one:
                store = folder / f"store-{number}-{count}"
                used[count] = client(archive, one.url, store, *settings, f"limit={count}")
                told = one.stats()
        rates.append(told["answered"] / told["seconds"])
        costs.append(1000 * (used[studies].cpu - used[few].cpu) / max(studies - few, 1))
        print(
            f"  round {number + 1}: {rates[-1]:.1f}/s, {told['most_at_once']:.0f} at once at most, "
            f"{costs[-1]:.2f} CPU ms a study, {used[studies].wall:.1f} s in all",
            flush=True,
        )
    ideal = CONCURRENCY / latency_s
    share = max(rates) / ideal
    print(f"  rate / ideal ({ideal:.0f}/s): {share:.1%}" + verdict(share >= RATE, f">= {RATE:.0%}"))
    print(
        f"  CPU a study: {min(costs):.2f} ms" + verdict(min(costs) < CPU_MS, f"< {CPU_MS:g} ms"), flush=True
    )


def memory(folder: Path, sizes: Sequence[int], latency_s: float) -> None:
    """The client's memory, over a small archive and a large one."""
    print(f"Memory: {sizes[0]} and {sizes[1]} studies at 64 px, largest resident set")
    found = []
    for studies in sizes:
        archive = archives.make(str(folder / f"memory-{studies}"), studies, 64, shard=128)
        with served(Behaviour(latency_s=latency_s), folder / "log", logged=False) as one:
            store = folder / f"memory-store-{studies}"
            used = client(archive, one.url, store, "splits=[test]", f"concurrency={CONCURRENCY}")
        found.append(used.rss)
        print(
            f"  {studies:7} studies {used.rss / 1024:8.1f} MiB   {used.wall:.0f} s, {used.cpu:.0f} CPU s",
            flush=True,
        )
    ratio = found[1] / found[0]
    print(f"  large / small: {ratio:.3f} x" + verdict(ratio <= MEMORY, f"<= {MEMORY}"), flush=True)


def predictor(folder: Path, studies: int, side: int, tokens: int, rounds: int) -> None:
    """Our client and predictor, beside `model.generate` and beside a loop."""
    archive = archives.make(str(folder / "predictor"), studies, side, shard=128)
    world = World.made(archive, folder / "policy", tokens)
    asked = world.asked(studies)
    print(f"Predictor: {studies} studies at {side} px, {tokens} tokens each, the toy policy")
    direct = {batch: 0.0 for batch in BATCHES if batch <= max(studies // 4, BATCHES[0])}
    ours = loop = 0.0
    for number in range(rounds):
        for batch in direct:
            direct[batch] = max(direct[batch], world.generate(asked[: studies // 4], batch))
        best = max(direct, key=lambda batch: direct[batch])
        with world.served(best) as url:
            loop = max(loop, world.one_at_a_time(asked[: max(studies // 16, 1)], url))
            ours = max(ours, world.ours(studies, url, folder / f"scored-{number}", best))
    print("  model.generate: " + ", ".join(f"{rate:.1f}/s in {batch}s" for batch, rate in direct.items()))
    print(f"  one request at a time: {loop:.1f}/s; ours: {ours:.1f}/s")
    ratio = ours / direct[best]
    print(
        f"  ours / model.generate in {best}s: {ratio:.1%}" + verdict(ratio >= GENERATE, f">= {GENERATE:.0%}")
    )
    ratio = ours / loop
    print(f"  ours / one at a time: {ratio:.2f} x" + verdict(ratio >= LOOP, f">= {LOOP:g}"), flush=True)


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="*", default=["stub", "memory", "predictor"])
    parser.add_argument("--rounds", type=int, default=2, help="turns of each side; the best counts")
    parser.add_argument("--studies", type=int, default=4000, help="of the stub's archive")
    parser.add_argument("--side", type=int, default=512, help="of a radiograph, in pixels")
    parser.add_argument("--latency", type=float, default=0.5, help="of the stub, in seconds")
    parser.add_argument(
        "--memory", type=int, nargs=2, default=[1000, 100_000], help="studies of both archives"
    )
    parser.add_argument("--reports", type=int, default=2048, help="studies of the predictor's archive")
    parser.add_argument("--tokens", type=int, default=48, help="of each of its reports")
    asked = parser.parse_args(given)
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if "stub" in asked.parts:
            stub(folder, asked.studies, asked.side, asked.latency, asked.rounds)
        if "memory" in asked.parts:
            memory(folder, asked.memory, min(asked.latency, 0.02))
        if "predictor" in asked.parts:
            predictor(folder, asked.reports, asked.side, asked.tokens, asked.rounds)


if __name__ == "__main__":
    main()
