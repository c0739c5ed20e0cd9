"""How good a toy scorer is, on phantoms that it was not trained on: through the scorers' own code.

F1 against the truth says that a scorer reads well. That it can serve as a reward is another matter: what is
worse must score lower. `worsened` makes worse reports out of a true one, for tests and for whoever tunes.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path

from unirg.cohort.corpora.phantom.markup import Passage, join
from unirg.metrics.encoder import Compute
from unirg.metrics.findings_terms import CONDITIONS
from unirg.training import scorers_data as data


def chexbert(folder: Path, held_out: Sequence[Passage]) -> dict[str, float]:
    """Micro F1 of the 14 conditions, positive and uncertain counting as stated."""
    from unirg.metrics.chexbert import CheXbert, labels
    from unirg.metrics.conditions import LABELS, condition_f1

    read = CheXbert(folder, Compute()).read([passage.text for passage in held_out])
    stated = [data.conditions(passage) for passage in held_out]
    truth = [[LABELS.index(one.get(name, "blank")) for name in CONDITIONS] for one in stated]
    found = condition_f1([labels(reading) for reading in read], truth)
    return {"chexbert_micro_f1": round(found.micro.f1, 4)}


def radgraph(folder: Path, held_out: Sequence[Passage]) -> dict[str, float]:
    """Micro F1 of entities (place and label) and of relations between them."""
    from unirg.metrics.radgraph import RadGraph, words_v1

    graphs = RadGraph(folder, Compute()).read([passage.text for passage in held_out])
    nodes, edges = _Counts(), _Counts()
    for graph, passage in zip(graphs, held_out, strict=True):
        spans = data.spans(passage, words_v1(passage.text))
        given = [(entity.start, entity.end, entity.label) for entity in graph.entities]
        gold = [
            (*span, data.RADGRAPH_LABELS[entity.label])
            for span, entity in zip(spans, passage.entities, strict=True)
        ]
        nodes.add(set(given), set(gold))
        edges.add(
            {(given[edge.source], given[edge.target], edge.kind) for edge in graph.relations},
            {(gold[edge.source], gold[edge.target], edge.type) for edge in passage.relations},
        )
    return {"radgraph_entity_f1": nodes.f1, "radgraph_relation_f1": edges.f1}


def ratescore(folder: Path, held_out: Sequence[Passage]) -> dict[str, float]:
    """Micro F1 of entities (number of each type in a report), and whether a wording's nearest is its like."""
    import numpy as np

    from unirg.metrics.ratescore import TYPES, RaTEScore

    scorer = RaTEScore(folder, Compute())
    counts = _Counts()
    for read, passage in zip(scorer.read([p.text for p in held_out]), held_out, strict=True):
        types = [TYPES[place] for place in read.types]
        counts.add(_numbered(types), _numbered([data.rate_type(entity) for entity in passage.entities]))
    concepts = data.concepts(held_out)
    words = [(word, number) for number, group in enumerate(concepts) for word in group]
    states = np.stack(scorer._embedded([word for word, _ in words]))
    unit = states / np.linalg.norm(states, axis=1, keepdims=True)
    nearest = (unit @ unit.T - 2 * np.eye(len(words))).argmax(1)
    hits = [
        words[near][1] == of for near, (_, of) in zip(nearest, words, strict=True) if len(concepts[of]) > 1
    ]
    return {"ratescore_type_f1": counts.f1, "ratescore_synonyms_at_1": round(float(np.mean(hits)), 4)}


def bertscore(folder: Path, held_out: Sequence[Passage]) -> dict[str, float]:
    """How often a report with a finding altered is nearer to the true one than another patient's is."""
    from unirg.metrics.bertscore import BertScore

    scorer = BertScore(folder, Compute())
    kinds = ("altered", "another's")
    made = [one for one in worsened(held_out, seed=0) if all(kind in one for kind in kinds)]
    true = scorer.read([one["true"] for one in made])
    near, far = (scorer.compare(scorer.read([one[kind] for one in made]), true) for kind in kinds)
    hits = [a["bertscore"] > b["bertscore"] for a, b in zip(near, far, strict=True)]
    return {"bertscore_order": round(sum(hits) / len(hits), 4)}


def worsened(reports: Sequence[Passage], seed: int) -> list[dict[str, str]]:
    """For each report that states a finding: the true text, and worse ones by what is wrong with them.

    `altered`: the side or degree of a finding. `dropped`: the sentences on a finding. `added`: a finding that
    the patient does not have. `another's`: another patient's report. `broken`: the words in disorder.
    """
    chance = random.Random(seed)
    made = []
    for report in reports:
        own, other = data.sentences(report), data.sentences(chance.choice(reports))
        positive = _positive(report)
        if not positive:
            continue
        worse = {
            "true": report.text,
            "another's": join(other).text,
            "broken": data.garbled(report, chance).text,
        }
        gone = chance.choice(sorted(positive))
        if kept := [sentence for sentence in own if gone not in _positive(sentence)]:
            worse["dropped"] = join(kept).text
        if new := [sentence for sentence in other if _positive(sentence) - positive]:
            worse["added"] = join([*own, chance.choice(new)]).text
        altered = " ".join(_OPPOSITE.get(word, word) for word in report.text.split())
        if altered != report.text:
            worse["altered"] = altered
        made.append(worse)
    return made


_PAIRS = (
    ("left", "right"),
    ("mild", "severe"),
    ("small", "large"),
    ("upper", "lower"),
    ("mildly", "severely"),
)
_OPPOSITE = {
    spell(a): spell(b) for one in _PAIRS for a, b in (one, one[::-1]) for spell in (str.lower, str.capitalize)
}


def _positive(passage: Passage) -> set[str]:
    stated = data.conditions(passage)
    return {name for name, state in stated.items() if state == "positive" and name != "No Finding"}


class _Counts:
    """What was found and what is true, over many reports."""

    def __init__(self) -> None:
        self.shared = self.total = 0

    def add(self, found: set[tuple[object, ...]], true: set[tuple[object, ...]]) -> None:
        self.shared += len(found & true)
        self.total += len(found) + len(true)

    @property
    def f1(self) -> float:
        return round(2 * self.shared / self.total, 4) if self.total else 0.0


def _numbered(types: Sequence[str]) -> set[tuple[object, ...]]:
    return {(kind, types[:place].count(kind)) for place, kind in enumerate(types)}


MEASURES: dict[str, Callable[[Path, Sequence[Passage]], dict[str, float]]] = {
    "chexbert": chexbert,
    "radgraph": radgraph,
    "ratescore": ratescore,
    "bertscore": bertscore,
}
