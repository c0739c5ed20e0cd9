"""Speed of the metric engine beside the upstream packages as they are used, and beside its own floor.

    tools/parity.sh
    .venv/bin/python benchmarks/metrics.py [--scale 1] [--threads 1] [--precisions fp32 int8]

Both sides score the same real IU report pairs with the same weights, of BERT-base size at random, in turns:
- GRPO: 64 references x 16 candidates, no candidate twice;
- evaluation: 500 pairs, no text twice;
- duplicates: IU's 590 test studies with their natural repetitions (398 distinct findings).
The packages take hours for all of it: `--scale` 0.0625 takes a sixteenth of the references and pairs, for
both sides alike. Loading is not timed. Seconds are CPU seconds, which other work on the machine moves less;
wall clock is beside them. The floor is the bare encoders' forward over the distinct texts, sorted by length,
at the fastest of several batch sizes, in the same precision.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

from parity import corpus, packages, weights
from unirg.metrics.encoder import Compute, Precision, hidden_states, prepared, run, token_ids
from unirg.metrics.engine import Engine

FLOOR = 1.25
"""The engine's time over the floor's, at most."""
BUDGETS = (256, 512, 1024, 2048)
"""Tokens a batch that the floor tries."""


@dataclass(frozen=True)
class Metric:
    """One row of the table."""

    package: str
    """As `parity.upstream` calls it."""
    score: str
    label: str
    encoders: tuple[str, ...]
    """Directories of weights, below which an encoder's configuration and tokenizer lie."""
    bars: dict[str, tuple[float, float]]
    """Shape -> how many times faster than the package: in fp32, and in a lower precision."""


_RADGRAPH, _CHEXBERT, _BERTSCORE = "radgraph/encoder", "chexbert", "bertscore"
METRICS = (
    Metric("radgraph", "radgraph", "RadGraph / radgraph 0.1.18", (_RADGRAPH,), {"GRPO": (2.5, 6)}),
    Metric("chexbert", "sembscore", "SembScore / f1chexbert 0.0.2", (_CHEXBERT,), {"GRPO": (2.5, 7)}),
    Metric("bertscore", "bertscore", "BERTScore / bert-score 0.3.13", (_BERTSCORE,), {"GRPO": (2, 6)}),
    Metric(
        "radcliq",
        "radcliq_v1",
        "RadCliQ-v1 / RadEval 2.2.1",
        (_RADGRAPH, _CHEXBERT, _BERTSCORE),
        {"GRPO": (2.7, 7.5), "evaluation": (1.3, 3.5)},
    ),
)


@dataclass(frozen=True)
class Seconds:
    cpu: float
    wall: float

    def __str__(self) -> str:
        return f"{self.cpu:8.1f} ({self.wall:.1f})"


def clocked(work: Callable[[], object]) -> Seconds:
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    return Seconds(time.process_time() - cpu, time.perf_counter() - wall)


def least(times: Sequence[Seconds]) -> Seconds:
    return min(times, key=lambda seconds: seconds.cpu)


def shapes(scale: float) -> dict[str, corpus.Pairs]:
    """The pairs of each shape, or their first part."""
    texts = corpus.reports()
    natural = corpus.duplicate_pairs()
    return {
        "GRPO": corpus.group_pairs(max(1, round(64 * scale)), 16, texts),
        "evaluation": corpus.evaluation_pairs(max(1, round(500 * scale)), texts),
        "duplicates": natural[: max(1, round(len(natural) * scale))],
    }


def ours(folder: Path, metric: Metric, pairs: corpus.Pairs, compute: Compute) -> Seconds:
    """A fresh engine each time, since it keeps what it has read."""
    engine = Engine([metric.score], weights=str(folder), compute=compute)
    list(engine.score([("Warm.", "Up.")]))
    return clocked(lambda: list(engine.score(pairs)))


class Floor:
    """The bare encoder of a scorer."""

    def __init__(self, directory: Path, precision: Precision) -> None:
        from transformers import AutoConfig, AutoModel, AutoTokenizer

        config = AutoConfig.from_pretrained(directory)
        if config.model_type == "roberta":
            config.num_hidden_layers = 5  # those that BERTScore needs
        self._precision = precision
        model = AutoModel.from_config(config, add_pooling_layer=False)
        self._forward = hidden_states(prepared(model, Compute(precision)))
        self._tokenizer: Any = AutoTokenizer.from_pretrained(directory)

    def seconds(self, pairs: corpus.Pairs) -> tuple[Seconds, int]:
        """At the fastest batch size, found on some of the texts; and that size in tokens."""
        texts = list(dict.fromkeys(text for pair in pairs for text in pair))
        sequences = token_ids(self._tokenizer, texts, 512)
        few = sequences[:48]
        budget = min(BUDGETS, key=lambda tokens: self._run(few, tokens).cpu)
        return self._run(sequences, budget), budget

    def _run(self, sequences: Sequence[Sequence[int]], tokens: int) -> Seconds:
        def forward(ids: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
            return self._forward(ids, mask)[:, 0]

        compute = Compute(self._precision, tokens=tokens)
        return clocked(lambda: list(run(forward, sequences, self._tokenizer.pad_token_id, compute)))


def compare(asked: argparse.Namespace, folder: Path, upstream: packages.Packages | None) -> None:
    """The table: shape by shape, both sides and the floor in turns."""
    print(f"{'CPU seconds (wall)':30}{'package':>18}{'':>8}{'ours':>18}  ratio {'bar':>11} floor x")
    for shape, pairs in shapes(asked.scale).items():
        if shape not in asked.shapes:
            continue
        distinct = len({text for pair in pairs for text in pair})
        print(f"{shape}: {len(pairs)} pairs, {distinct} distinct texts of {2 * len(pairs)}")
        for metric in METRICS:
            if metric.package in asked.metrics and (shape in metric.bars or metric.score == "radcliq_v1"):
                _row(asked, folder, upstream, metric, shape, pairs)


def _row(
    asked: argparse.Namespace,
    folder: Path,
    upstream: packages.Packages | None,
    metric: Metric,
    shape: str,
    pairs: corpus.Pairs,
) -> None:
    package: list[Seconds] = []
    mine: dict[Precision, list[Seconds]] = {precision: [] for precision in asked.precisions}
    floor: dict[Precision, list[float]] = {precision: [] for precision in asked.precisions}
    for _ in range(asked.repeats):
        if upstream:
            upstream.score(metric.package, pairs[:1])
            answer = upstream.score(metric.package, pairs)
            package.append(Seconds(answer["cpu"], answer["wall"]))
        for precision in asked.precisions:
            mine[precision].append(ours(folder, metric, pairs, Compute(precision)))
            floors = [Floor(folder / encoder, precision).seconds(pairs)[0].cpu for encoder in metric.encoders]
            floor[precision].append(sum(floors))
    for precision in asked.precisions:
        took = least(mine[precision])
        line = (
            f"  {metric.label:28}{least(package) if package else 'not run'!s:>18} {precision:>7}{took!s:>18}"
        )
        if package:
            ratio, bars = least(package).cpu / took.cpu, metric.bars.get(shape)
            bar = bars[precision != "fp32"] if bars else 0
            verdict = f"{bar:>5} {'met' if ratio >= bar else 'MISSED'}" if bars else ""
            line += f" {ratio:6.2f} {verdict:>11}"
        over = took.cpu / min(floor[precision])
        print(f"{line} {over:5.2f} {'met' if over <= FLOOR else 'MISSED'} (<= {FLOOR})", flush=True)


def processor() -> None:
    """The CPU, and what a linear layer reaches on it: no encoder is faster than its products of matrices."""
    text = Path("/proc/cpuinfo").read_text()
    name = next((line.split(": ")[1] for line in text.splitlines() if line.startswith("model name")), "?")
    flags = next((line.split() for line in text.splitlines() if line.startswith("flags")), [])
    known = [
        flag
        for flag in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
        if flag in flags
    ]
    print(f"{name}: {', '.join(known)}; torch {torch.__version__}, {torch.get_num_threads()} thread(s)")
    rows = torch.randn(512, 768)
    for precision in ("fp32", "bf16", "int8"):
        layer = prepared(torch.nn.Sequential(torch.nn.Linear(768, 3072)), Compute(precision))
        inputs = rows.bfloat16() if precision == "bf16" else rows
        with torch.inference_mode():
            layer(inputs)
            took = clocked(lambda: [layer(inputs) for _ in range(10)])  # noqa: B023
        print(f"  {precision}: {10 * 2 * 512 * 768 * 3072 / took.cpu / 1e9:6.1f} GFLOP/s a CPU second")


def memory(folder: Path, counts: Sequence[int]) -> None:
    """Peak memory of a process that streams so many pairs, all different, through tiny encoders."""
    tiny = folder / "tiny"
    weights.build(tiny, corpus.reports()[:100], weights.TINY)
    for count in counts:
        command = [sys.executable, __file__, "--stream", str(count), "--folder", str(folder)]
        print(f"peak memory over {count} pairs: ", end="", flush=True)
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL)


def stream(folder: Path, count: int) -> None:
    import random
    import resource

    sentences = sorted({part for text in corpus.reports() for part in text.split(". ")})
    draw = random.Random(0)

    def text(number: int) -> str:
        return f"{number}. " + ". ".join(draw.choices(sentences, k=5))

    engine = Engine(["radcliq_v1"], weights=str(folder / "tiny"))
    pairs = ((text(2 * number), text(2 * number + 1)) for number in range(count))
    cpu = time.process_time()
    scored = sum(1 for _ in engine.score(pairs))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{peak:.0f} MB ({scored} scored, {1000 * (time.process_time() - cpu) / count:.2f} ms a pair)")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--folder", type=Path, default=packages.ROOT / "runs" / "parity", help="weights, kept there"
    )
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--threads", type=int, default=1, help="of both sides")
    parser.add_argument("--repeats", type=int, default=2, help="in turns; the least counts")
    parser.add_argument("--precisions", nargs="*", default=["fp32", "int8"], help="of fp32, bf16 and int8")
    parser.add_argument("--shapes", nargs="*", default=["GRPO", "evaluation", "duplicates"])
    parser.add_argument("--metrics", nargs="*", default=[metric.package for metric in METRICS])
    parser.add_argument("--no-packages", action="store_true", help="ours and the floor alone")
    parser.add_argument(
        "--memory", nargs="*", type=int, default=[1_000, 10_000, 100_000], help="pairs to stream"
    )
    parser.add_argument("--stream", type=int, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    if asked.stream:
        return stream(asked.folder, asked.stream)
    processor()
    built = asked.folder / "weights"
    weights.build(built, corpus.reports()[:200], weights.PARITY)
    if asked.no_packages:
        compare(asked, built, None)
    else:
        with packages.Packages(packages.prepare(asked.folder, built), asked.threads) as upstream:
            compare(asked, built, upstream)
    memory(asked.folder, asked.memory)


if __name__ == "__main__":
    main()
