"""Pairs per second of the metric engine on a GPU, beside the radgraph package where that is installed.

    python benchmarks/gpu/metrics.py [--device cuda] [--precision bf16] [--groups 64]

GRPO's shape: groups of one reference and 16 candidates, no candidate twice; made-up reports of about 45
words, so that the script needs nothing but the repository; BERT-base size, weights at random. The goal is 20
times the pairs per second of the radgraph package on the same GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch

from parity import corpus, originals, weights
from unirg.metrics.encoder import Compute
from unirg.metrics.engine import Engine

GOAL = 20
SCORES = ("radgraph", "sembscore", "bertscore", "radcliq_v1")


def rate(work: Callable[[], object], pairs: int, device: str) -> float:
    """Pairs per second."""
    wait = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
    wait()
    start = time.perf_counter()
    work()
    wait()
    return pairs / (time.perf_counter() - start)


def ours(score: str, folder: Path, pairs: corpus.Pairs, compute: Compute, device: str) -> float:
    """The better of two runs, each of a fresh engine."""
    found = []
    for _ in range(2):
        engine = Engine([score], weights=str(folder), compute=compute)
        list(engine.score(pairs[:16]))
        fresh = pairs[16:]
        found.append(rate(lambda: list(engine.score(fresh)), len(fresh), device))  # noqa: B023
    return max(found)


def package(folder: Path, pairs: corpus.Pairs, device: str) -> float | None:
    """The radgraph package as it is used, on the same device; None where it is not installed."""
    if importlib.util.find_spec("radgraph") is None:
        return None
    from radgraph import F1RadGraph

    originals.write(folder / "originals", folder)
    with contextlib.chdir(folder / "originals" / "hub"):
        place = folder / "originals" / "cache" / "radgraph" / "0.1.18"
        cuda = 0 if device.startswith("cuda") else -1
        scorer = F1RadGraph(reward_level="all", model_type="radgraph", model_cache_dir=str(place), cuda=cuda)
    candidates, references = (list(side) for side in zip(*pairs, strict=True))
    scorer(hyps=candidates[:2], refs=references[:2])
    return rate(lambda: scorer(hyps=candidates, refs=references), len(pairs), device)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="bf16")
    parser.add_argument("--groups", type=int, default=64)
    parser.add_argument(
        "--tokens", type=int, nargs="*", default=[0], help="tokens a batch; 0: the engine's own"
    )
    parser.add_argument("--package-pairs", type=int, default=64)
    parser.add_argument("--tiny", action="store_true", help="tiny encoders: tries the script")
    asked = parser.parse_args()
    if asked.device.startswith("cuda"):
        print(torch.cuda.get_device_name(asked.device))
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    texts = corpus.made_up(asked.groups * 17)
    pairs = corpus.group_pairs(asked.groups, 16, texts)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "weights"
        weights.build(folder, texts[:30], weights.TINY if asked.tiny else weights.PARITY)
        best = 0.0
        for tokens in asked.tokens:
            compute = Compute(asked.precision, asked.device, tokens)
            for score in SCORES:
                found = ours(score, folder, pairs, compute, asked.device)
                best = max(best, found) if score == "radgraph" else best
                print(
                    f"{score:12} {asked.precision} {compute.budget:6} tokens: {found:9.1f} pairs/s",
                    flush=True,
                )
        theirs = package(folder, pairs[: asked.package_pairs], asked.device)
        if theirs is None:
            print("the radgraph package is not installed: no ratio")
        else:
            ratio = best / theirs
            print(f"radgraph 0.1.18: {theirs:.1f} pairs/s; ours {ratio:.1f} times that (goal {GOAL})")


if __name__ == "__main__":
    main()
