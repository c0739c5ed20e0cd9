"""Annotated text to train scorers on: phantom reports, and what a policy makes of reports.

A scorer that gives rewards reads mostly a policy's text: sentences left out, repeated, cut short, taken from
another patient, or no sentences at all. Each of these is made here from reports whose annotation is known, so
that it is known afterwards too. Words in disorder state nothing: they lose their annotation, and a scorer
learns to see nothing in them.

A text with its annotation is a `Passage`, as the phantom corpus writes it. What each scorer learns from it:

    CheXbert    `conditions`: a condition is positive, uncertain or negative as the observations that name it
                are present, uncertain or absent, in that precedence; blank where none names it. A heart of
                normal size is a negative Cardiomegaly. `No Finding`: the text states something, and of
                conditions other than devices nothing is positive or uncertain.
    RadGraph    `spans`, `relations`: the annotation over RadGraph's words.
    RaTE-NER    `tags`: anatomy stays anatomy; an observation is a disease where it names a diagnosis
                (DIAGNOSES), else an abnormality; absent ones, and words for what is as it should be (NORMAL),
                are non-diseases and non-abnormalities.
    synonyms    `SYNONYMS`: wordings of one concept.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import Any

from unirg import prompts
from unirg.cohort.corpora.phantom import Phantom
from unirg.cohort.corpora.phantom.markup import Entity, Passage, Relation, join

PRESENT, ABSENT, UNCERTAIN = (
    f"Observation::{state}" for state in ("definitely present", "definitely absent", "uncertain")
)
ANATOMY = "Anatomy::definitely present"
RADGRAPH_LABELS = {ANATOMY: "ANAT-DP", PRESENT: "OBS-DP", UNCERTAIN: "OBS-U", ABSENT: "OBS-DA"}
"""As RadGraph v1's vocabulary names them."""
RADGRAPH_RELATIONS = ("modify", "located_at", "suggestive_of")

NAMED = {
    "cardiomegaly": "Cardiomegaly",
    "enlarged": "Cardiomegaly",
    "opacity": "Lung Opacity",
    "haze": "Lung Opacity",
    "scarring": "Lung Opacity",
    "nodule": "Lung Lesion",
    "mass": "Lung Lesion",
    "granuloma": "Lung Lesion",
    "edema": "Edema",
    "consolidation": "Consolidation",
    "atelectasis": "Atelectasis",
    "pneumothorax": "Pneumothorax",
    "effusion": "Pleural Effusion",
    "effusions": "Pleural Effusion",
    "fracture": "Fracture",
    "pacemaker": "Support Devices",
    "central venous catheter": "Support Devices",
    "endotracheal tube": "Support Devices",
}
"""The condition that an observation's words name, as CheXbert counts."""
HEART = ("heart", "cardiac silhouette")
DIAGNOSES = ("cardiomegaly", "atelectasis", "pneumothorax", "edema", "fracture", "granuloma", "disease")
NORMAL = ("normal", "clear", "aerated", "intact", "resolved", "removed")
RATE_TYPES = ("ABNORMALITY", "NON-ABNORMALITY", "DISEASE", "NON-DISEASE", "ANATOMY")

SYNONYMS = (
    ("cardiomegaly", "enlarged"),
    ("heart", "cardiac silhouette"),
    ("effusion", "effusions"),
    ("bilateral", "bilaterally"),
    ("mild", "mildly"),
    ("moderate", "moderately"),
    ("severe", "severely"),
    ("base", "lung base", "basilar"),
    ("zone", "lung zone"),
    ("lung", "lungs"),
    ("nodule", "granuloma"),
    ("opacity", "haze"),
    ("clear", "aerated"),
    ("normal", "intact"),
    ("chest", "thoracic", "hemithorax"),
    ("abnormality", "findings"),
)
"""Wordings of one concept at different institutions; every other word is a concept of its own."""

_SENTENCE = re.compile(r"(?<=[.])\s+")


def reports(studies: int, seed: int) -> list[Passage]:
    """Phantom reports in the form that a policy writes and the metrics read, annotated."""
    corpus = Phantom(studies, seed)
    return [
        _report(study.findings, study.impression, row)
        for study, row in zip(corpus.records(), corpus.truth().to_pylist(), strict=True)
    ]


def _report(findings: str | None, impression: str | None, row: dict[str, Any]) -> Passage:
    parts = []
    for name, text in (("findings", findings), ("impression", impression)):
        if text:
            kept = [i for i, entity in enumerate(row["entities"]) if entity["section"] == name]
            places = {old: new for new, old in enumerate(kept)}
            section = Passage(
                text,
                tuple(
                    Entity(
                        **{field: row["entities"][i][field] for field in ("text", "start", "end", "label")}
                    )
                    for i in kept
                ),
                tuple(
                    Relation(places[r["source"]], places[r["target"]], r["type"])
                    for r in row["relations"]
                    if r["source"] in places
                ),
            )
            parts.append(Passage(f"{name.capitalize()}: ") + section)
    whole = join(parts)
    assert whole.text == prompts.join_sections(findings, impression), "phantom text has no runs of spaces"
    return whole


# What a policy makes of a report


def sentences(passage: Passage) -> list[Passage]:
    """The passage cut after its full stops; no entity and no relation of a phantom crosses one."""
    starts = [0, *(match.end() for match in _SENTENCE.finditer(passage.text))]
    ends = [*(match.start() for match in _SENTENCE.finditer(passage.text)), len(passage.text)]
    return [cut(passage, start, end) for start, end in zip(starts, ends, strict=True)]


def ends(passage: Passage) -> Iterator[tuple[int, Passage]]:
    """Where each sentence ends, and the sentence; empty ones left out."""
    position = 0
    for sentence in sentences(passage):
        if sentence.text:
            position = passage.text.index(sentence.text, position) + len(sentence.text)
            yield position, sentence


def cut(passage: Passage, start: int, end: int) -> Passage:
    """The characters from `start` to `end`, with the entities that are whole there."""
    kept = [i for i, e in enumerate(passage.entities) if start <= e.start and e.end <= end]
    places = {old: new for new, old in enumerate(kept)}
    return Passage(
        passage.text[start:end],
        tuple(
            Entity(e.text, e.start - start, e.end - start, e.label)
            for e in (passage.entities[i] for i in kept)
        ),
        tuple(
            Relation(places[r.source], places[r.target], r.type)
            for r in passage.relations
            if r.source in places and r.target in places
        ),
    )


Sentences = list[Passage]


def _as_it_is(own: Sentences, foreign: Sentences, chance: random.Random) -> Passage:
    return join(own)


def _fewer(own: Sentences, foreign: Sentences, chance: random.Random) -> Passage:
    """Some of its sentences, in another order, perhaps one of them twice; mostly few, which teach fastest."""
    return join(chance.choices(own, k=min(len(own), 1 + int(chance.expovariate(0.6)))))


def _mixed(own: Sentences, foreign: Sentences, chance: random.Random) -> Passage:
    """Another patient's sentences added, or in the place of its own; they may contradict each other."""
    mixed = list(own)
    for sentence in chance.sample(foreign, k=min(len(foreign), chance.randint(1, 3))):
        place = chance.randrange(len(mixed))
        mixed[place : place + chance.randint(0, 1)] = [sentence]
    return join(mixed)


def _short(own: Sentences, foreign: Sentences, chance: random.Random) -> Passage:
    """Cut at a word, as where a policy ran out of tokens."""
    report = join(own)
    return cut(report, 0, chance.choice([match.start() for match in re.finditer(" ", report.text)]))


def _garbled(own: Sentences, foreign: Sentences, chance: random.Random) -> Passage:
    """The words of some sentences in disorder, or those of the whole report."""
    if chance.random() < 0.5:
        return garbled(join(own), chance)
    return join(garbled(sentence, chance) if chance.random() < 0.3 else sentence for sentence in own)


def garbled(passage: Passage, chance: random.Random) -> Passage:
    """The words in disorder: they state nothing. Below four words order hardly counts: it stays."""
    words = passage.text.split()
    if len(words) < 4:
        return passage
    return Passage(" ".join(chance.sample(words, k=len(words))))


def _misspelt(own: Sentences, foreign: Sentences, chance: random.Random) -> Passage:
    """Some words that are none: an entity with one is lost."""
    report = join(own)
    for _ in range(chance.randint(1, 4)):
        word = chance.choice(list(re.finditer(r"\w+", report.text)))
        middle = (word.start() + word.end()) // 2
        wrong = report.text[word.start() : middle] + chance.choice(chance.choice(foreign).text.split())[1:]
        report = cut(report, 0, word.start()) + Passage(wrong) + cut(report, word.end(), len(report.text))
    return report


_WAYS: dict[Callable[[Sentences, Sentences, random.Random], Passage], float] = {
    _as_it_is: 0.2,
    _fewer: 0.5,
    _mixed: 0.1,
    _short: 0.05,
    _garbled: 0.1,
    _misspelt: 0.05,
}


def batches(found: Sequence[Passage], size: int, steps: int, seed: int) -> Iterator[list[Passage]]:
    """`steps` batches of reports as a policy may write them, each of texts of like length (no padding)."""
    chance = random.Random(seed)
    known = [sentences(report) for report in found]
    # Most sentences deny; the more a report finds, the more often it is drawn.
    draws = list(accumulate(list(conditions(report).values()).count("positive") ** 2 for report in found))
    ways, shares = list(_WAYS), list(_WAYS.values())
    ready: list[list[Passage]] = []
    for _ in range(steps):
        if not ready:
            drawn = chance.choices(ways, shares, k=8 * size)
            pairs = (chance.choices(known, cum_weights=draws, k=2) for _ in drawn)
            pool = [way(report, other, chance) for way, (report, other) in zip(drawn, pairs, strict=True)]
            pool.sort(key=lambda passage: len(passage.text))
            ready = [pool[start : start + size] for start in range(0, len(pool), size)]
            chance.shuffle(ready)
        yield ready.pop()


# What the annotation says to each scorer


def conditions(passage: Passage) -> dict[str, str]:
    """CheXbert's conditions that the text names -> positive, negative or uncertain."""
    said: dict[str, set[str]] = {}
    for entity in passage.entities:
        if entity.label != ANATOMY and (name := NAMED.get(entity.text.lower())):
            said.setdefault(name, set()).add(entity.label)
    for relation in passage.relations:
        source, target = passage.entities[relation.source], passage.entities[relation.target]
        if source.text.lower() == "normal" and target.text.lower() in HEART:
            said.setdefault("Cardiomegaly", set()).add(ABSENT)
    order = {PRESENT: "positive", UNCERTAIN: "uncertain", ABSENT: "negative"}
    stated = {
        name: next(word for label, word in order.items() if label in labels) for name, labels in said.items()
    }
    well = all(state == "negative" for name, state in stated.items() if name != "Support Devices")
    if passage.entities and well:
        stated["No Finding"] = "positive"
    return stated


def places(text: str, words: Sequence[str]) -> list[tuple[int, int]]:
    """(start, end) in the text of each of its words; the words leave out nothing but white space."""
    found, position = [], 0
    for word in words:
        start = text.index(word, position)
        position = start + len(word)
        found.append((start, position))
    return found


def spans(passage: Passage, words: Sequence[str]) -> list[tuple[int, int]]:
    """(first, last) word of each entity."""
    where = places(passage.text, words)
    first = {start: word for word, (start, _) in enumerate(where)}
    last = {end: word for word, (_, end) in enumerate(where)}
    return [(first[entity.start], last[entity.end]) for entity in passage.entities]


def rate_type(entity: Entity) -> str:
    """RaTE-NER's type of an entity."""
    if entity.label == ANATOMY:
        return "ANATOMY"
    words = entity.text.lower()
    kind = "DISEASE" if words in DIAGNOSES else "ABNORMALITY"
    return f"NON-{kind}" if entity.label == ABSENT or words in NORMAL else kind


def tags(passage: Passage, offsets: Sequence[tuple[int, int]]) -> list[str]:
    """`B-`, `I-` and `O` of each token; `offsets` are (start, end) in the text, white space before it aside.

    Special tokens have empty offsets and are `O`.
    """
    found = []
    for start, end in offsets:
        start += len(passage.text[start:end]) - len(passage.text[start:end].lstrip())
        within = [e for e in passage.entities if start < end and e.start <= start < e.end]
        found.append(f"{'B' if within[0].start == start else 'I'}-{rate_type(within[0])}" if within else "O")
    return found


def concepts(found: Sequence[Passage]) -> list[tuple[str, ...]]:
    """Every entity's words (lower case), wordings of one concept together; sorted."""
    words = {entity.text.lower() for passage in found for entity in passage.entities}
    grouped = [tuple(w for w in group if w in words) for group in SYNONYMS]
    alone = words - {word for group in grouped for word in group}
    return sorted([group for group in grouped if group] + [(word,) for word in alone])
