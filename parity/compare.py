"""The parity run: ours against the upstream packages on real report pairs, then ours in lower precisions.

    .venv/bin/python -m parity.compare [--pairs 320] [--folder runs/parity]

Prints a table, and ends with 1 where a score differs by more than 1e-5 in fp32, a label differs that is no
near tie of two logits, a graph differs, or the weights turn out too weak for the comparison to mean much.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from parity import corpus, deviations, packages, weights
from unirg.metrics.bertscore import BertScore
from unirg.metrics.chexbert import CheXbert, Reading, labels
from unirg.metrics.encoder import Compute
from unirg.metrics.radgraph import Graph, Name, RadGraph
from unirg.metrics.ratescore import RaTEScore, undecided

TOLERANCE = 1e-5
NEAR = 1e-4
"""Two logits this close may change places between implementations."""
LEAST = {
    "entities a report": 2.0,
    "relations a report": 1.0,
    "texts of the rarest class": 20.0,
    "scores compared": 300.0,
}
UPSTREAM_LABELS = ("", 1, 0, -1)
"""What f1chexbert calls our classes blank, positive, negative, uncertain."""
# Made up: what IU's reports do not have, and the packages can read.
ODD: corpus.Pairs = [
    ("Findings: Heart  size\tnormal.\n\nNo effusion.", "Heart size normal.\r\nNo effusion. XXXX, XXXX/XXXX."),
    ("Nodule of ½ cm … in the ﬁrst rib (µ = 3.2).", 'No nodule?! 3%, 5%) "quoted" — dash 🙂.'),
    ("NO ACUTE DISEASE", "no acute disease"),
]


@dataclass
class Findings:
    """What the run found; a failure each where it is too much."""

    lines: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def score(self, name: str, ours: ArrayLike, theirs: ArrayLike) -> None:
        expected = np.asarray(theirs, float)
        apart = np.abs(np.asarray(ours, float) - expected)
        self.lines.append(f"{name:20} {len(apart):5} {apart.max():10.1e} {expected.std():8.3f}")
        if not apart.max() <= TOLERANCE:
            self.failures.append(f"{name} differs by {apart.max():.2e}")

    def tell(self, line: str) -> None:
        self.lines.append(f"  {line}")

    def strength(self, what: str, found: float) -> str:
        if found < LEAST[what]:
            self.failures.append(f"too weak: {what} {found:.2f}, not at least {LEAST[what]}")
        return f"{what} {found:.1f}"


@dataclass(frozen=True)
class Run:
    """What every comparison needs."""

    found: Findings
    upstream: packages.Packages
    weights: Path
    pairs: corpus.Pairs

    @property
    def texts(self) -> list[str]:
        return list(dict.fromkeys(text for pair in self.pairs for text in pair))

    def side(self, number: int) -> list[str]:
        return [pair[number] for pair in self.pairs]


def pairs_of(count: int) -> corpus.Pairs:
    """Real pairs, two more with a candidate over 512 tokens, and a few odd ones."""
    pairs = corpus.parity_pairs(count)
    texts = [text for text, _ in pairs]
    long = [(" ".join(texts[start : start + 10]), texts[start]) for start in (0, 10)]
    return [*pairs, *long, *ODD]


def chexbert(run: Run) -> None:
    theirs = run.upstream.ask("chexbert_texts", texts=run.texts)
    scorer = CheXbert(run.weights / "chexbert", Compute())
    readings = dict(zip(run.texts, scorer.read(run.texts), strict=True))
    vectors = {text: np.array(vector) for text, vector in zip(run.texts, theirs["embeddings"], strict=True)}
    classes = np.array([labels(readings[text]) for text in run.texts])
    expected = np.array([[UPSTREAM_LABELS.index(label) for label in row] for row in theirs["labels"]])
    differing = np.argwhere(classes != expected)
    near = sum(_gap(readings[run.texts[text]], head) < NEAR for text, head in differing)
    if near < len(differing):
        run.found.failures.append(f"{len(differing) - near} CheXbert labels differ that are no near ties")

    rows = scorer.compare(*([readings[text] for text in run.side(side)] for side in (0, 1)))
    cosines = [_cosine(vectors[a], vectors[b]) for a, b in run.pairs]
    run.found.score("sembscore", [row["sembscore"] for row in rows], cosines)
    said = {text: np.isin(row, (1, 3)).astype(float) for text, row in zip(run.texts, expected, strict=True)}
    cosines = [_cosine(said[a], said[b]) for a, b in run.pairs]
    run.found.score("sembscore_labels", [row["sembscore_labels"] for row in rows], cosines)
    apart = max(np.abs(readings[text].embedding - vector).max() for text, vector in vectors.items())
    run.found.tell(f"labels {classes.size}, differing {len(differing)}, of them near ties {near}")
    rarest = min(
        (expected[:, head] == label).sum() for head in range(14) for label in range(4 - 2 * (head > 12))
    )
    run.found.tell(
        f"embeddings within {apart:.1e}; {run.found.strength('texts of the rarest class', rarest)}"
    )


def _gap(reading: Reading, head: int) -> float:
    """Between the two highest logits of a head."""
    logits = np.sort(reading.logits[4 * head : 4 * head + 4])
    return float(logits[-1] - logits[-2])


def _cosine(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Of two vectors without an entry (no label) 1, of such a one and another 0."""
    lengths = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / lengths if lengths else float((a == b).all())


def radgraph(run: Run, name: Name) -> None:
    theirs = run.upstream.score(name, run.pairs)
    scorer = RadGraph(run.weights / name, Compute(), name)
    graphs = dict(zip(run.texts, scorer.read(run.texts), strict=True))
    expected: dict[str, Any] = {}
    for side in (0, 1):
        expected |= zip(run.side(side), map(_ordered, theirs["graphs"][side]), strict=True)
    differing = sum(as_upstream(graphs[text]) != expected[text] for text in run.texts)
    if differing:
        run.found.failures.append(f"{differing} graphs of {name} differ")
    rows = scorer.compare(*([graphs[text] for text in run.side(side)] for side in (0, 1)))
    for score in scorer.scores:
        run.found.score(score, [row[score] for row in rows], theirs["scores"][score])
    nodes = [list(graph.values()) for graph in expected.values()]
    entities = np.mean([len(each) for each in nodes])
    relations = np.mean([sum(len(node["relations"]) for node in each) for each in nodes])
    kinds = {node["label"] for each in nodes for node in each}
    run.found.tell(
        f"graphs {len(run.texts)}, differing {differing}; "
        f"{run.found.strength('entities a report', float(entities))} of {len(kinds)} labels, "
        f"{run.found.strength('relations a report', float(relations))}"
    )


def as_upstream(graph: Graph) -> dict[str, Any]:
    """The graph as the package writes it, relations in an order of ours."""
    nodes: dict[str, Any] = {
        str(number): {
            "tokens": node.tokens,
            "label": node.label,
            "start_ix": node.start,
            "end_ix": node.end,
            "relations": [],
        }
        for number, node in enumerate(graph.entities, 1)
    }
    for edge in graph.relations:
        nodes[str(edge.source + 1)]["relations"].append([edge.kind, str(edge.target + 1)])
    return _ordered(nodes)


def _ordered(graph: Mapping[str, Any]) -> dict[str, Any]:
    return {key: {**node, "relations": sorted(node["relations"])} for key, node in graph.items()}


def bertscore(run: Run) -> None:
    theirs = run.upstream.score("bertscore", run.pairs)["scores"]["bertscore"]
    scorer = BertScore(run.weights / "bertscore", Compute())
    run.found.score("bertscore", [row["bertscore"] for row in deviations.rows(scorer, run.pairs)], theirs)


def ratescore(run: Run) -> None:
    """Where the package leaves a score to the last bits of a product, it is counted and not compared."""
    theirs = np.array(run.upstream.score("ratescore", run.pairs)["scores"]["ratescore"])
    scorer = RaTEScore(run.weights / "ratescore", Compute())
    read = dict(zip(run.texts, scorer.read(run.texts), strict=True))
    sides = [[read[text] for text in run.side(side)] for side in (0, 1)]
    ours = np.array([row["ratescore"] for row in scorer.compare(*sides)])
    decided = np.array([not undecided(*pair) for pair in zip(*sides, strict=True)])
    run.found.score("ratescore", ours[decided], theirs[decided])
    run.found.strength("scores compared", decided.sum())
    types = [feature.types for feature in read.values()]
    entities = run.found.strength("entities a report", float(np.mean([len(each) for each in types])))
    differing = (np.abs(ours - theirs)[~decided] > TOLERANCE).sum()
    run.found.tell(
        f"{entities} of {len(set(np.concatenate(types)))} types; "
        f"left undecided by the package {(~decided).sum()}, of them differing {differing}"
    )


STEPS: dict[str, Callable[[Run], None]] = {
    "chexbert": chexbert,
    "radgraph": lambda run: radgraph(run, "radgraph"),
    "radgraph-xl": lambda run: radgraph(run, "radgraph-xl"),
    "bertscore": bertscore,
    "ratescore": ratescore,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=320)
    parser.add_argument("--folder", type=Path, default=packages.ROOT / "runs" / "parity", help="for weights")
    parser.add_argument("--scorers", nargs="*", default=list(STEPS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tiny", action="store_true", help="tiny encoders: tries the script, shows little")
    parser.add_argument("--precisions", nargs="*", default=["int8", "bf16"], help="to measure against fp32")
    parser.add_argument("--precision-pairs", type=int, default=64)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    folder: Path = asked.folder / "tiny" if asked.tiny else asked.folder
    sizes = weights.TINY if asked.tiny else weights.PARITY
    weights.build(folder / "weights", corpus.reports()[:200], sizes)
    pairs = pairs_of(asked.pairs)
    found = Findings()
    print("fp32, ours against the packages\nscore                pairs max |diff|   spread", flush=True)
    with packages.Packages(packages.prepare(folder, folder / "weights"), asked.threads) as upstream:
        run = Run(found, upstream, folder / "weights", pairs)
        for scorer in asked.scorers:
            STEPS[scorer](run)
            print("\n".join(found.lines), flush=True)
            found.lines.clear()
    deviations.show(folder / "weights", pairs[: asked.precision_pairs], asked.precisions)
    for failure in found.failures:
        print(f"FAILED: {failure}")
    sys.exit(1 if found.failures else 0)


if __name__ == "__main__":
    main()
