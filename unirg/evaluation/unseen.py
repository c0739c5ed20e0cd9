"""Whether a policy learned from places that it is said never to have seen: lineage read off the manifests.

Every artifact names its inputs by digest, so behind a checkpoint stand the runs that it came from and the
cohorts that each of them trained on. What a cohort taught is read from its shards, not from what its
configuration promises: the corpora and institutions of the studies in the splits that training and the choice
of a checkpoint use. Of a cohort that was dropped from the store its roll still tells the corpora.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

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

LEARNED = ("train", "validate")
"""Splits that a policy learns from: the second chooses its checkpoint."""
_MODELS = (*STAGES, "serve")
_FOLLOWED = ("parent", "model", "checkpoint", "cohort")
"""Inputs that lead to what a policy learned from; others are prompts, metrics and scorers."""


@dataclass(frozen=True)
class Unseen:
    """A policy that learned from none of the places, as far as its lineage can be followed."""

    places: tuple[str, ...]
    cohorts: tuple[str, ...]
    """URIs of the cohorts that it learned from."""
    published: tuple[str, ...]
    """Published models it starts from: what these were trained on, nobody here can say."""
    unknown: tuple[str, ...]
    """What could not be followed; where there is any, the places may have been seen."""

    @property
    def sentence(self) -> str:
        """For the reader of the report."""
        if self.unknown:
            return f"lineage unknown beyond {', '.join(self.unknown)}"
        if not self.places:
            return "nothing was held out, so there is nothing to check"
        start = f"; it starts from {', '.join(self.published)}, whose data are not known here"
        return f"lineage checked: {', '.join(self.places)} held out of all training" + (
            start if self.published else ""
        )


def held_out(studies: Sequence[Study]) -> frozenset[str]:
    """Names of the places of a zero-shot set: its institutions, and the corpora that are in it entirely."""
    away = [study for study in studies if study.split == "zero_shot"]
    elsewhere = {study.corpus for study in studies if study.split != "zero_shot"}
    return frozenset(study.institution for study in away) | (
        frozenset(study.corpus for study in away) - elsewhere
    )


def check_unseen(checkpoint: Artifact, places: Collection[str]) -> Unseen:
    """Refuse a policy that learned from any of the places.

    Args:
        checkpoint: of stage base, sft or grpo.
        places: names of corpora and institutions, as `hold_out` takes them. A corpus and ReXrank's test set
            of it (`rexrank_*`) are one place.

    Raises:
        UserError: a run behind the checkpoint trained or validated on studies of such a place; both are
            named, and what to do.
        ArtifactError: a cohort's shard is missing or damaged.
    """
    walk = _Walk({_plain(name): name for name in sorted(places)}, checkpoint.store)
    walk.follow(checkpoint)
    return Unseen(
        tuple(sorted(places)),
        tuple(dict.fromkeys(walk.cohorts)),
        tuple(dict.fromkeys(walk.published)),
        tuple(dict.fromkeys(walk.unknown)),
    )


def _plain(name: str) -> str:
    return name.removeprefix(REXRANK)


@dataclass
class _Walk:
    places: dict[str, str]
    store: str
    cohorts: list[str] = field(default_factory=list)
    published: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    _known: set[str] = field(default_factory=set)
    _stored: dict[str, Artifact] | None = None

    def follow(self, made: Artifact) -> None:
        if made.uri in self._known:
            return
        self._known.add(made.uri)
        stage = made.manifest.stage
        if stage == "base" and not learns(made):
            self.published.append(str(made.manifest.config.get("source", "a published model")))
            return
        if stage not in _MODELS:
            self.unknown.append(made.uri)
            return
        needed = {"base": ("cohort",), "serve": ("checkpoint",)}.get(stage, ("cohort", "parent"))
        for name in sorted(set(needed) - made.manifest.inputs.keys()):
            self.unknown.append(f"{made.uri}, which names no {name}")
        for name, reference in made.manifest.inputs.items():
            if name in _FOLLOWED:
                self._input(made, name, reference)

    def _input(self, run: Artifact, name: str, reference: InputRef) -> None:
        found = self._opened(reference)
        if found is not None and found.manifest.stage != "cohort":
            self.follow(found)
        elif found is not None:
            if learns(run):
                self.cohorts.append(found.uri)
                self._judge(run, found.uri, _taught(found))
        elif name == "cohort" and (corpora := self._roll(reference.digest)) is not None:
            if learns(run):
                self._judge(run, f"{reference.uri} (dropped since)", corpora)
                self.unknown.append(f"the institutions of {reference.uri}, which was dropped")
        elif name != "cohort" or learns(run):
            self.unknown.append(reference.uri or f"{name} {reference.digest[:16]}")

    def _judge(self, run: Artifact, cohort: str, taught: Counter[str]) -> None:
        """Raises: UserError where a place taught."""
        for name, number in sorted(taught.items()):
            if name in self.places:
                place = self.places[name]
                raise UserError(
                    f"{place} is no zero-shot set for this policy: run {run.uri} learned from {number} "
                    f"studies of it in cohort {cohort}; evaluate a policy trained on a cohort that was "
                    f"staged with hold_out=[{place}], or leave {place} out of the zero-shot suite"
                )

    def _opened(self, reference: InputRef) -> Artifact | None:
        """The artifact that an input names: where it was, else wherever the store has it now."""
        if reference.uri:
            try:
                found = open_artifact(reference.uri)
            except ArtifactError:
                found = None
            if found is not None and found.digest == reference.digest:
                return found
        if self._stored is None:
            self._stored = {made.digest: made for made in artifacts(self.store)}
        return self._stored.get(reference.digest)

    def _roll(self, digest: str) -> Counter[str] | None:
        """Corpora of a dropped cohort's studies that taught; None where there is no roll of it."""
        for roll in rolls(self.store):
            if roll.digest == digest:
                kept = roll.table.filter(pc.is_in(roll.table["split"], pa.array(LEARNED)))
                return Counter(_plain(name) for name in kept["corpus"].to_pylist())
        return None


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
