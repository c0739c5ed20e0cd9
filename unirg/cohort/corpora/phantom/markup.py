"""Sentences that know their own annotation: templates with RadGraph entities marked inline.

    [small](O >o) [right](A >p) [pleural](A:p) [effusion](O:o @p){change}.

Square brackets hold an entity's words, round ones its label and relations:

    A, O, N, U     anatomy; observation definitely present, definitely absent, uncertain
    :x             names the entity x within its sentence
    >x  @x  ~x     modify, located_at, suggestive_of the entity x

By convention `o` is the observation that the sentence is about, so a change phrase can modify it.
`{slot}` is filled before parsing; an entity whose words come out empty vanishes with the space after
it. Spans are counted while the sentence is written, never searched for afterwards.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

LABELS = {
    "A": "Anatomy::definitely present",
    "O": "Observation::definitely present",
    "N": "Observation::definitely absent",
    "U": "Observation::uncertain",
}
RELATIONS = {">": "modify", "@": "located_at", "~": "suggestive_of"}

_ENTITY = re.compile(r"\[([^\]]*)\]\(([AONU])(?::(\w+))?((?: [>@~]\w+)*)\)( ?)")


@dataclass(frozen=True)
class Entity:
    """A labelled span; `start` and `end` are character offsets into the passage, end exclusive."""

    text: str
    start: int
    end: int
    label: str


@dataclass(frozen=True)
class Relation:
    """`source` and `target` are positions in the passage's list of entities."""

    source: int
    target: int
    type: str


@dataclass(frozen=True)
class Passage:
    """A text with its entities (in reading order) and the relations between them."""

    text: str = ""
    entities: tuple[Entity, ...] = ()
    relations: tuple[Relation, ...] = ()

    def __add__(self, other: Passage) -> Passage:
        shift, base = len(self.text), len(self.entities)
        moved = (replace(e, start=e.start + shift, end=e.end + shift) for e in other.entities)
        renumbered = (Relation(r.source + base, r.target + base, r.type) for r in other.relations)
        return Passage(self.text + other.text, (*self.entities, *moved), (*self.relations, *renumbered))

    def capitalised(self) -> Passage:
        """The same with its first letter in upper case (of its first entity too, if that starts it)."""
        entities = tuple(
            replace(e, text=e.text[:1].upper() + e.text[1:]) if e.start == 0 else e for e in self.entities
        )
        return replace(self, text=self.text[:1].upper() + self.text[1:], entities=entities)


def render(template: str, slots: Mapping[str, str] | None = None) -> Passage:
    """Fill a template's slots and read its markup.

    Raises:
        KeyError: a slot has no value, or a relation names an entity that the sentence does not have.
    """
    marked = template.format_map(slots or {})
    text = ""
    entities: list[Entity] = []
    names: dict[str, int] = {}
    pending: list[tuple[int, str, str]] = []
    position = 0
    for match in _ENTITY.finditer(marked):
        text += marked[position : match.start()]
        position = match.end()
        words, label, name, relations, space = match.groups()
        if not words:
            continue
        if name:
            names[name] = len(entities)
        pending += [(len(entities), token[0], token[1:]) for token in relations.split()]
        entities.append(Entity(words, len(text), len(text) + len(words), LABELS[label]))
        text += words + space
    text += marked[position:]
    found = tuple(Relation(source, names[target], RELATIONS[sign]) for source, sign, target in pending)
    return Passage(text, tuple(entities), found)


def join(passages: Iterable[Passage], separator: str = " ") -> Passage:
    """Passages -> one passage, with the separator between them."""
    joined = Passage()
    for index, passage in enumerate(passages):
        joined = joined + (Passage(separator) if index else Passage()) + passage
    return joined
