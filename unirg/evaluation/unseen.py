"""Whether a policy learned from places that it is said never to have seen: lineage read off the manifests.

Every artifact names its inputs by digest, so behind a checkpoint stand the runs that it came from and the
cohorts that each of them trained on. What a cohort taught is read from its shards, not from what its
configuration promises: the corpora and institutions of the studies in the splits that training and the choice
of a checkpoint use. Of a cohort that was dropped from the store its roll still tells the corpora.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

import pyarrow as pa
import pyarrow.compute as pc

from unirg.artifact import Artifact, ArtifactError, InputRef, open_artifact
from unirg.checkpoint import STAGES
from unirg.cohort import columns
from unirg.cohort.reader import Cohort
from unirg.cohort.withdrawal import REXRANK
from unirg.errors import UserError
from unirg.lifecycle.lineage import artifacts, learns, rolls
from unirg.study import Study

Listed = dict[str, dict[str, list[Artifact]]]
"""Store -> digest -> artifacts."""
LEARNED = ("train", "validate")
"""Splits that a policy learns from: the second chooses its checkpoint."""
_MODELS = (*STAGES, "serve", "score")
_NEEDED = {"base": ("cohort",), "serve": ("checkpoint",), "score": ("model",)}
"""Inputs without which a lineage is unknown; of the other stages `cohort` and `parent`."""
_FOLLOWED = ("parent", "model", "checkpoint", "cohort")
"""Inputs that lead to what a policy learned from; others are prompts, metrics and scorers."""


@dataclass(frozen=True)
class Unseen:
    """A policy that learned from none of the places, as far as its lineage can be followed."""

    places: tuple[str, ...]
    cohorts: tuple[str, ...]
    """The cohorts that it learned from, by stage and key."""
    published: tuple[str, ...]
    """Published models it starts from: what these were trained on, nobody here can say."""
    unknown: tuple[str, ...]
    """What could not be followed; where there is any, the places may have been seen."""
    claimed: bool = False
    """Nothing but the caller's word ties the reports to this checkpoint."""

    @property
    def sentence(self) -> str:
        """For the reader of the report."""
        claim = "checkpoint as claimed, nothing in the predictions names it; " if self.claimed else ""
        return claim + self._found()

    def _found(self) -> str:
        if self.unknown:
            return f"lineage unknown beyond {', '.join(self.unknown)}"
        if not self.places:
            return "nothing was held out, so there is nothing to check"
        start = f"; it starts from {', '.join(self.published)}, whose data are not known here"
        return f"lineage checked: {', '.join(self.places)} held out of all training" + (
            start if self.published else ""
        )


class Seen(UserError):
    """A policy has learned from a place that is evaluated as unseen."""

    def __init__(self, why: str, how: str) -> None:
        super().__init__(f"{why}; {how}")
        self.why, self.how = why, how


def held_out(evaluated: Sequence[Study], known: Iterable[Study]) -> frozenset[str]:
    """Names of the places of a zero-shot set: its institutions, and the corpora that are in it entirely.

    Args:
        evaluated: whose zero-shot studies are the set.
        known: all studies of the cohort; of a corpus that any other split has a part of, only institutions
            are held out, whether or not that part is evaluated.
    """
    away = [study for study in evaluated if study.split == "zero_shot"]
    elsewhere = {study.corpus for study in known if study.split != "zero_shot"}
    return frozenset(study.institution for study in away) | (
        frozenset(study.corpus for study in away) - elsewhere
    )


def check_unseen(made: Artifact, places: Collection[str], listed: Listed | None = None) -> Unseen:
    """Refuse a policy that learned from any of the places.

    Args:
        made: a policy, of stage base, sft or grpo, or predictions, which name theirs by its digest.
        places: names of corpora and institutions, as `hold_out` takes them. A corpus and ReXrank's test set
            of it (`rexrank_*`) are one place.
        listed: what several calls have listed of their stores, so that each is listed once.

    Raises:
        Seen: a run behind the policy trained or validated on studies of such a place; both are named.
        ArtifactError: a cohort's shard is missing or damaged.
    """
    known = {_plain(name): name for name in sorted(places)}
    walk = _Walk(known, made.store, {} if listed is None else listed)
    walk.follow(made)
    return Unseen(
        tuple(sorted(places)),
        tuple(dict.fromkeys(walk.cohorts)),
        tuple(dict.fromkeys(walk.published)),
        tuple(dict.fromkeys(walk.unknown)),
    )


def _plain(name: str) -> str:
    return name.removeprefix(REXRANK)


def _named(uri: str) -> str:
    """An artifact by stage and key: a report says which one it is, and not where somebody keeps it."""
    return " ".join(PurePosixPath(uri).parts[-2:])


def _model(source: str) -> str:
    """A published model by its name on the hub, or, from an address, by the last part of that."""
    address = "://" in source or source.startswith(("/", "~", "."))
    return PurePosixPath(source).name if address else source


@dataclass
class _Walk:
    places: dict[str, str]
    store: str
    listed: Listed
    cohorts: list[str] = field(default_factory=list)
    published: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    _known: set[str] = field(default_factory=set)

    def follow(self, made: Artifact) -> None:
        if made.uri in self._known:
            return
        self._known.add(made.uri)
        stage = made.manifest.stage
        if stage == "base" and not learns(made):
            self.published.append(_model(str(made.manifest.config.get("source", "a published model"))))
            return
        if stage not in _MODELS:
            self.unknown.append(_named(made.uri))
            return
        needed = _NEEDED.get(stage, ("cohort", "parent"))
        for name in sorted(set(needed) - made.manifest.inputs.keys()):
            self.unknown.append(f"{_named(made.uri)}, which names no {name}")
        for name, reference in made.manifest.inputs.items():
            if name in _FOLLOWED:
                self._input(made, name, reference)

    def _input(self, run: Artifact, name: str, reference: InputRef) -> None:
        if opened := self._opened(reference):
            for found in opened:
                if found.manifest.stage != "cohort":
                    self.follow(found)
                elif learns(run):
                    self.cohorts.append(_named(found.uri))
                    self._judge(run, _named(found.uri), _taught(found))
        elif name == "cohort" and (corpora := self._roll(reference.digest)) is not None:
            if learns(run):
                dropped = _called(name, reference)
                self._judge(run, f"{dropped} (dropped since)", corpora)
                self.unknown.append(f"the institutions of {dropped}, which was dropped")
        elif name != "cohort" or learns(run):
            self.unknown.append(_called(name, reference))

    def _judge(self, run: Artifact, cohort: str, taught: Counter[str]) -> None:
        """Raises: Seen where a place taught."""
        for name, number in sorted(taught.items()):
            if name in self.places:
                place = self.places[name]
                raise Seen(
                    f"{place} is no zero-shot set for this policy: run {_named(run.uri)} learned from "
                    f"{number} studies of it in {cohort}",
                    f"evaluate a policy trained on a cohort that was staged with hold_out=[{place}], or "
                    f"leave {place} out of the zero-shot suite",
                )

    def _opened(self, reference: InputRef) -> list[Artifact]:
        """The artifact that an input names where it was, else all of the same content that the store has.

        Two runs may have made the same content; what either learned from, the content may hold.
        """
        if reference.uri:
            try:
                found = open_artifact(reference.uri)
            except ArtifactError:
                found = None
            if found is not None and found.digest == reference.digest:
                return [found]
        if self.store not in self.listed:
            by_digest = self.listed.setdefault(self.store, {})
            for made in artifacts(self.store):
                by_digest.setdefault(made.digest, []).append(made)
        return self.listed[self.store].get(reference.digest, [])

    def _roll(self, digest: str) -> Counter[str] | None:
        """Corpora of a dropped cohort's studies that taught; None where there is no roll of it."""
        for roll in rolls(self.store):
            if roll.digest == digest:
                kept = roll.table.filter(pc.is_in(roll.table["split"], pa.array(LEARNED)))
                return Counter(_plain(name) for name in kept["corpus"].to_pylist())
        return None


def _called(name: str, reference: InputRef) -> str:
    return _named(reference.uri) if reference.uri else f"{name} {reference.digest[:16]}"


def _taught(cohort: Artifact) -> Counter[str]:
    """Corpus or institution -> studies of a cohort's training and validation splits."""
    found: Counter[str] = Counter()
    for shard in Cohort.open(cohort).index.shards:
        if shard.split in LEARNED:
            for batch in columns.batches(cohort.store, shard, ("corpus", "institution")):
                names = (batch.column(name).to_pylist() for name in ("corpus", "institution"))
                for corpus, institution in zip(*names, strict=True):
                    found.update({_plain(corpus), institution})
    return found
