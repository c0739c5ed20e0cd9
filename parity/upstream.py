"""The upstream packages as they are, answering over standard input and output; runs in .venv-parity.

Started by `parity.packages` in the folder where the packages find their weights by hub name. A line in is
{"package": name, "pairs": [[candidate, reference], ...], ...}, a line out what the package gave, with the
seconds that scoring took: loading comes before the clock. Imports nothing of ours, which would not run here.
"""

from __future__ import annotations

import json
import os
import re
import resource
import sys
import time
from collections.abc import Callable
from functools import lru_cache
from typing import Any

Answer = dict[str, Any]


@lru_cache
def radgraph(model: str) -> Callable[[Answer], Answer]:
    """F1RadGraph, and ReXrank's level computed from the graphs that it gives."""
    from radgraph import F1RadGraph

    scorer = F1RadGraph(reward_level="all", model_type=model)

    def answer(asked: Answer) -> Answer:
        candidates, references = zip(*asked["pairs"], strict=True)
        _, rewards, *graphs = scorer(hyps=list(candidates), refs=list(references))
        name = model.replace("-", "_")
        scores = {f"{name}_{level}": rewards[n] for n, level in enumerate(("simple", "partial", "complete"))}
        scores[name] = [_mean_f1(*pair) for pair in zip(*graphs, strict=True)]
        return {"scores": scores, "graphs": [[graph["entities"] for graph in side] for side in graphs]}

    return answer


def _mean_f1(candidate: Answer, reference: Answer) -> float:
    """CXR-Report-Metric's definition: the mean of the F1 over entities and of that over relations."""
    sets = []
    for graph in (candidate["entities"], reference["entities"]):
        nodes = {key: (entity["tokens"], entity["label"]) for key, entity in graph.items()}
        edges = {
            (nodes[key], nodes[target], kind)
            for key, entity in graph.items()
            for kind, target in entity["relations"]
        }
        sets.append((set(nodes.values()), edges))
    total = 0.0
    for mine, theirs in zip(*sets, strict=True):
        precision, recall = (len(mine & theirs) / len(side) if side else 0.0 for side in (mine, theirs))
        total += 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    return total / 2


@lru_cache
def _chexbert() -> Any:
    from f1chexbert import F1CheXbert

    return F1CheXbert(device="cpu")


def chexbert() -> Callable[[Answer], Answer]:
    """F1CheXbert over pairs, as it is used."""
    scorer = _chexbert()

    def answer(asked: Answer) -> Answer:
        candidates, references = zip(*asked["pairs"], strict=True)
        scorer(list(candidates), list(references))
        return {}

    return answer


def chexbert_texts() -> Callable[[Answer], Answer]:
    """Labels by the package, and the embeddings as CXR-Report-Metric's encode.py takes them, of each text."""
    import torch

    scorer = _chexbert()

    def answer(asked: Answer) -> Answer:
        embeddings = []
        for text in asked["texts"]:
            ids = scorer.tokenizer(
                " ".join(text.split()), truncation=True, max_length=512, return_tensors="pt"
            )
            with torch.no_grad():
                states = scorer.model.bert(ids["input_ids"], attention_mask=ids["attention_mask"])[0]
            embeddings.append(states[0, 0].tolist())
        labels = [scorer.get_label(text, mode="classification") for text in asked["texts"]]
        return {"labels": labels, "embeddings": embeddings}

    return answer


@lru_cache
def bertscore(baseline: str) -> Callable[[Answer], Answer]:
    """BERTScorer in ReXrank's setting, which makes one space of a run of them before."""
    from bert_score import BERTScorer

    scorer = BERTScorer(
        model_type="distilroberta-base",
        num_layers=5,
        lang="en",
        rescale_with_baseline=True,
        baseline_path=baseline,
        idf=False,
        batch_size=64,
        device="cpu",
    )

    def answer(asked: Answer) -> Answer:
        candidates, references = zip(*asked["pairs"], strict=True)
        sides = [[re.sub(" +", " ", text) for text in side] for side in (candidates, references)]
        _, _, f1 = scorer.score(*sides)
        return {"scores": {"bertscore": f1.tolist()}}

    return answer


@lru_cache
def ratescore() -> Callable[[Answer], Answer]:
    """RaTEScore with its own batch size, 1."""
    from RaTEScore import RaTEScore

    scorer = RaTEScore(use_gpu=False)

    def answer(asked: Answer) -> Answer:
        candidates, references = zip(*asked["pairs"], strict=True)
        scores = scorer.compute_score(list(candidates), list(references))
        return {"scores": {"ratescore": [float(score) for score in scores]}}

    return answer


@lru_cache
def radcliq() -> Callable[[Answer], Answer]:
    """RadEval's RadCliQ-v1, whole; its BERTScore is not ReXrank's (idf), so its scores are not compared."""
    from radeval.metrics.RadCliQv1.radcliq import CompositeMetric

    scorer = CompositeMetric()

    def answer(asked: Answer) -> Answer:
        candidates, references = zip(*asked["pairs"], strict=True)
        scorer.predict(list(references), list(candidates))
        return {}

    return answer


def package(asked: Answer) -> Callable[[Answer], Answer]:
    """Loaded when first asked for."""
    name = asked["package"]
    if name in ("radgraph", "radgraph-xl"):
        return radgraph(name)
    if name == "bertscore":
        return bertscore(asked["baseline"])
    plain: dict[str, Callable[[], Callable[[Answer], Answer]]] = {
        "chexbert": chexbert,
        "chexbert_texts": chexbert_texts,
        "ratescore": ratescore,
        "radcliq": radcliq,
    }
    return plain[name]()


def cpu_seconds() -> float:
    """Of this process, its threads, and its children that have ended."""
    whose = resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN
    return sum(usage.ru_utime + usage.ru_stime for usage in map(resource.getrusage, whose))


def serve() -> None:
    # The packages print as they like: to standard error from here on, this side's answers go out alone.
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    import torch

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    for line in sys.stdin:
        asked = json.loads(line)
        answer = package(asked)
        cpu, wall = cpu_seconds(), time.perf_counter()
        answered = answer(asked)
        answered |= {"cpu": cpu_seconds() - cpu, "wall": time.perf_counter() - wall}
        replies.write(json.dumps(answered) + "\n")
        replies.flush()


if __name__ == "__main__":
    serve()
