"""Every score by name: how it is read, where it is defined, and which scorer gives it.

What a score computes is in the module of its scorer; this is the table that the engine, the rewards, the
evaluation and the command line look it up in.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import ModuleType

from unirg.errors import UserError
from unirg.metrics.chexprompt import CATEGORIES

VERSION = 1
"""Of the scores without a model and of the composed ones: raised when one of them computes otherwise."""
TEXTS = "texts"
"""In `Score.scorer`: a plain function of the two texts."""
JUDGE = "judge"
"""In `Score.scorer`: the language model that counts errors."""
COMPOSED = "composed"
"""In `Score.scorer`: a formula over other scores."""


@dataclass(frozen=True, slots=True)
class Score:
    """How a score is read, and what gives it."""

    name: str
    label: str
    low: float
    high: float
    higher_is_better: bool
    source: str
    """The publication that defines it."""
    rexrank: str
    """What ReXrank calls it there and how it sets it; empty where it does not report it."""
    scorer: str
    """Name of the `TextScorer`, or `TEXTS`, `JUDGE`, `COMPOSED`."""
    parts: tuple[str, ...] = ()
    """The scores that a composed one is made of, in the order of its formula."""


_BLEU = "Papineni et al., ACL 2002"
_CHEXBERT = "Yu et al., Patterns 2023, over CheXbert (Smit et al., EMNLP 2020)"
_RADGRAPH = "Jain et al., NeurIPS Datasets and Benchmarks 2021"
_RADGRAPH_REWARD = "Delbrouck et al., Findings of EMNLP 2022"
_RADGRAPH_XL = "Delbrouck et al., Findings of ACL 2024"
_RADCLIQ = "Yu et al., Patterns 2023"
_CHEXPROMPT = "Zambrano Chaves et al., Nature Communications 2025"
_RADCLIQ_PARTS = ("radgraph", "bertscore", "sembscore", "bleu2")
_LEVELS = {
    "simple": "entities' tokens and labels",
    "partial": "and whether an entity has a relation",
    "complete": "and its relations",
}


def _radgraph(name: str, scorer: str, label: str, source: str, rexrank: str = "") -> list[Score]:
    """The four levels of RadGraph-F1 under one set of weights."""
    mean = Score(name, label, 0, 1, True, source, rexrank, scorer)
    return [
        mean,
        *(
            Score(f"{name}_{level}", f"{label}, {level}", 0, 1, True, _RADGRAPH_REWARD, "", scorer)
            for level in _LEVELS
        ),
    ]


_ALL = [
    Score("bleu2", "BLEU-2", 0, 1, True, _BLEU, "BLEU: sentence BLEU-2, method1 smoothing", TEXTS),
    Score("bleu4", "BLEU-4", 0, 1, True, _BLEU, "", TEXTS),
    Score("rouge_l", "ROUGE-L", 0, 1, True, "Lin, ACL 2004 workshop", "", TEXTS),
    Score(
        "bertscore",
        "BERTScore",
        -math.inf,
        1,
        True,
        "Zhang et al., ICLR 2020",
        "BertScore: distilroberta-base, layer 5, rescaled with baseline, no idf, F1",
        "bertscore",
    ),
    Score(
        "sembscore", "SembScore", -1, 1, True, _CHEXBERT, "SembScore: cosine of [CLS] embeddings", "chexbert"
    ),
    Score("sembscore_labels", "SembScore of labels", 0, 1, True, _CHEXBERT, "", "chexbert"),
    *_radgraph("radgraph", "radgraph", "RadGraph-F1", _RADGRAPH, "RadGraph: mean of entity and relation F1"),
    *_radgraph("radgraph_xl", "radgraph-xl", "RadGraph-XL F1", _RADGRAPH_XL),
    Score("ratescore", "RaTEScore", 0, 1, True, "Zhao et al., EMNLP 2024", "", "ratescore"),
    Score(
        "radcliq_v0",
        "RadCliQ-v0",
        -math.inf,
        math.inf,
        False,
        _RADCLIQ,
        "RadCliQ-v0",
        COMPOSED,
        _RADCLIQ_PARTS,
    ),
    Score(
        "radcliq_v1",
        "RadCliQ-v1",
        -math.inf,
        math.inf,
        False,
        _RADCLIQ,
        "1/RadCliQ-v1: one over the mean of the studies",
        COMPOSED,
        _RADCLIQ_PARTS,
    ),
    Score("errors", "Errors per report", 0, math.inf, False, _CHEXPROMPT, "", JUDGE),
    Score("errors_significant", "Significant errors per report", 0, math.inf, False, _CHEXPROMPT, "", JUDGE),
    *(
        Score(
            f"errors_{category}{ending}",
            category.replace("_", " ").capitalize() + words,
            0,
            math.inf,
            False,
            _CHEXPROMPT,
            "",
            JUDGE,
        )
        for ending, words in (("", ""), ("_significant", ", significant"))
        for category in CATEGORIES
    ),
]
CATALOG: Mapping[str, Score] = {score.name: score for score in _ALL}


def lookup(name: str) -> Score:
    """The score of this name.

    Raises:
        UserError: there is none; the nearest right name is given.
    """
    if name in CATALOG:
        return CATALOG[name]
    near = difflib.get_close_matches(name.lower().replace("-", "_"), CATALOG, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]}? " if near else ""
    raise UserError(f"no score is named {name!r}: {hint}`unirg metrics list` shows them all")


def check(names: Iterable[str]) -> None:
    """Refuse a name that no score has.

    Raises:
        UserError: the first such name, with the nearest right one.
    """
    for name in names:
        lookup(name)


def with_parts(names: Iterable[str]) -> list[Score]:
    """The scores, each after the parts that it is made of, none twice."""
    found: dict[str, Score] = {}
    for name in names:
        score = lookup(name)
        found.update({part: lookup(part) for part in score.parts})
        found[name] = score
    return list(found.values())


def scorers(names: Iterable[str]) -> list[str]:
    """Names of the scorers with a model that the scores need, hence of the directories of weights."""
    needed = dict.fromkeys(score.scorer for score in with_parts(names))
    return [name for name in needed if name not in (TEXTS, JUDGE, COMPOSED)]


def with_weights(names: Iterable[str]) -> list[str]:
    """Those of the scores that need a scorer's weights."""
    return [name for name in names if scorers([name])]


def judged(names: Iterable[str]) -> list[str]:
    """Those of the scores that need a judge."""
    return [name for name in names if any(score.scorer == JUDGE for score in with_parts([name]))]


def version(names: Iterable[str]) -> str:
    """Digest of the versions of the code that computes the scores; their weights are not in it."""
    versions = {
        score.name: VERSION if score.scorer in (TEXTS, JUDGE, COMPOSED) else _module(score.scorer).VERSION
        for score in with_parts(names)
    }
    return digest(versions)


def _module(scorer: str) -> ModuleType:
    """Where a scorer is; imported here, so that a name alone costs nothing."""
    return importlib.import_module(f"unirg.metrics.{scorer.partition('-')[0]}")


def digest(decisive: object) -> str:
    """First 16 characters of the SHA-256 of JSON values that decide a score."""
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:16]
