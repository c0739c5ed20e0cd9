"""How far the lower precisions move our scores, against fp32 on the same weights and pairs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parity import corpus
from unirg.metrics import radcliq
from unirg.metrics.bertscore import BertScore
from unirg.metrics.chexbert import CheXbert
from unirg.metrics.encoder import Compute, Precision
from unirg.metrics.radgraph import RadGraph
from unirg.metrics.ratescore import RaTEScore


def rows(scorer: Any, pairs: corpus.Pairs) -> list[dict[str, float]]:
    """A scorer's scores of each pair."""
    texts = list(dict.fromkeys(text for pair in pairs for text in pair))
    features = dict(zip(texts, scorer.read(texts), strict=True))
    return scorer.compare([features[a] for a, _ in pairs], [features[b] for _, b in pairs])


def show(weights: Path, pairs: corpus.Pairs, precisions: Sequence[Precision]) -> None:
    """A table for each precision: the largest, the 95th percentile and the mean of the differences."""
    if not precisions:
        return
    exact = _scores(weights, pairs, "fp32")
    for precision in precisions:
        moved = _scores(weights, pairs, precision)
        print(
            f"\n{precision} against fp32, {len(pairs)} pairs\nscore                     max      p95     mean"
        )
        for name, values in exact.items():
            apart = np.abs(values - moved[name])
            print(f"{name:20} {apart.max():8.4f} {np.quantile(apart, 0.95):8.4f} {apart.mean():8.4f}")


def _scores(weights: Path, pairs: corpus.Pairs, precision: Precision) -> dict[str, NDArray[np.float64]]:
    compute = Compute(precision)
    scorers = (
        BertScore(weights / "bertscore", compute),
        CheXbert(weights / "chexbert", compute),
        RadGraph(weights / "radgraph", compute),
        RaTEScore(weights / "ratescore", compute),
    )
    found: dict[str, NDArray[np.float64]] = {}
    for scorer in scorers:
        scored = rows(scorer, pairs)
        found |= {name: np.array([row[name] for row in scored]) for name in scorer.scores}
    parts = zip(found["radgraph"], found["bertscore"], found["sembscore"], strict=True)
    # BLEU has no model, and nothing of it enters RadCliQ-v1.
    found["radcliq_v1"] = np.array([radcliq.radcliq_v1(*part, 0.0) for part in parts])
    return found
