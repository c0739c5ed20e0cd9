"""Lineage by artifact digests, both ways: which data is behind an artifact, and what was made with one.

Read off the manifests, as `unirg.lifecycle.lineage`, which asks the same of withdrawn studies. Backwards,
parents in other stores are followed; forwards, the artifacts of one store are looked through.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import pyarrow as pa

from unirg.artifact import Artifact, open_artifact
from unirg.cohort import columns
from unirg.cohort.reader import Cohort
from unirg.errors import UserError
from unirg.lifecycle.lineage import ORDER, Graph, names, rolls

JOINED = "+"

Studies = Mapping[str, Mapping[str, int]]
"""Corpus -> split -> number of studies."""


@dataclass(frozen=True)
class Data:
    """A cohort behind an artifact."""

    digest: str
    uri: str
    """Empty where the cohort was dropped from the store (`unirg gc`)."""
    studies: Studies
    learned: bool
    """Whether the artifact, or the model behind it, was trained on its training split."""


@dataclass(frozen=True)
class Ancestors:
    """What an artifact was made of."""

    artifacts: tuple[Artifact, ...]
    """Cohorts first, models next, what was made with them last."""
    data: tuple[Data, ...]
    """Cohorts that it was made with, what they were combined of left out; of a cohort, its own studies."""
    unknown: tuple[str, ...]
    """Inputs that could not be followed: what lies behind them is not known."""


@dataclass(frozen=True)
class Descendant:
    """What was made with an artifact or a corpus."""

    made: Artifact
    learned: bool
    """Whether it, or the model behind it, was trained on studies of that cohort or corpus."""


def ancestors(store: str, uri: str) -> Ancestors:
    """All that an artifact was made of, in this store and beyond.

    Raises:
        ArtifactError: there is no artifact, or one behind it cannot be read.
    """
    made = open_artifact(uri)
    dropped = {roll.digest: _counted(roll.table) for roll in rolls(store)}
    graph = Graph(store, dropped)
    found = _closure(graph, [made])
    del found[made.uri]
    data = []
    if made.manifest.stage == "cohort":
        data.append(Data(made.digest, made.uri, contents(made), False))
    else:
        behind = graph.behind(made)
        for digest in sorted(behind.held):
            cohort = graph.cohorts.get(digest)
            studies = contents(cohort) if cohort else dropped[digest]
            learned = digest in behind.learned and any(splits.get("train") for splits in studies.values())
            data.append(Data(digest, cohort.uri if cohort else "", studies, learned))
    return Ancestors(_in_order(found.values()), tuple(data), tuple(sorted(graph.unknown)))


def with_ancestors(store: str, made: Iterable[Artifact], before: Iterable[Artifact] = ()) -> list[Artifact]:
    """Artifacts and all that they were made of, in `ancestors`' order, each once.

    Args:
        before: these, and what they were made of, are left out.

    Raises:
        ArtifactError: one behind them cannot be read.
    """
    graph = Graph(store, {roll.digest: _counted(roll.table) for roll in rolls(store)})
    old = _closure(graph, before)
    return [each for each in _in_order(_closure(graph, made).values()) if each.uri not in old]


def descendants(store: str, uri: str = "", corpus: str = "") -> tuple[Descendant, ...]:
    """All artifacts of a store that were made with an artifact, or with the cohorts of a corpus.

    Args:
        corpus: its name in the cohorts, such as `iu_xray`; instead of a URI. The cohorts themselves, of
            other stores too where they are behind an artifact of this one, are among what is found.

    Raises:
        UserError: there is no store, or no cohort of the corpus.
        ArtifactError: there is no artifact, or one of the store cannot be read.
    """
    if not names(store):
        raise UserError(f"there is no store at {store}: check --store")
    dropped = {roll.digest: _counted(roll.table) for roll in rolls(store)}
    graph = Graph(store, dropped)
    behind = {made.uri: graph.behind(made) for made in graph.artifacts}  # meets the cohorts of other stores
    cohorts = {made.uri: made for made in graph.artifacts if made.manifest.stage == "cohort"}
    cohorts |= {made.uri: made for made in graph.cohorts.values()}
    if corpus:
        holding = {made.digest: contents(made) for made in cohorts.values()} | dropped
        holding = {digest: studies for digest, studies in holding.items() if corpus in studies}
        if not holding:
            raise UserError(f"no cohort of {store} holds studies of {corpus}: check the corpus's name")
        starts = set(holding)
        taught = {digest for digest, studies in holding.items() if studies[corpus].get("train")}
    else:
        start = open_artifact(uri)
        starts = {start.digest}
        taught = _taught(start, cohorts.values())
    found = _below(graph, starts)
    if corpus:
        found |= {uri: made for uri, made in cohorts.items() if made.digest in starts}
    else:
        found = {uri: made for uri, made in found.items() if made.digest not in starts}
    return tuple(
        Descendant(made, bool(taught & behind[made.uri].learned) if made.uri in behind else False)
        for made in _in_order(found.values())
    )


def contents(cohort: Artifact) -> dict[str, dict[str, int]]:
    """Studies of a cohort by corpus and split.

    Raises:
        ArtifactError: a file of the cohort is missing or damaged.
    """
    index = Cohort.open(cohort).index
    counts: Counter[tuple[str, str]] = Counter()
    for shard in index.shards:
        if JOINED not in index.corpus:
            counts[index.corpus, shard.split] += shard.studies
            continue
        for batch in columns.batches(cohort.store, shard, ("corpus", "split")):
            rows = zip(batch.column("corpus").to_pylist(), batch.column("split").to_pylist(), strict=True)
            counts.update(rows)
    return _nested(counts)


def _counted(table: pa.Table) -> dict[str, dict[str, int]]:
    return _nested(Counter(zip(table["corpus"].to_pylist(), table["split"].to_pylist(), strict=True)))


def _nested(counts: Mapping[tuple[str, str], int]) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for (corpus, split), number in sorted(counts.items()):
        found.setdefault(corpus, {})[split] = number
    return found


def _taught(start: Artifact, cohorts: Collection[Artifact]) -> set[str]:
    """Digests of the cohorts with training studies of a cohort: itself, and what it was combined into."""
    if start.manifest.stage != "cohort" or not any(each.get("train") for each in contents(start).values()):
        return set()
    taught, size = {start.digest}, 0
    while size < len(taught):
        size = len(taught)
        for cohort in cohorts:
            taken = cohort.manifest.config.get("splits")
            for name, used in cohort.manifest.inputs.items():
                splits = taken.get(name) if isinstance(taken, dict) else None
                if used.digest in taught and (not splits or "train" in splits):
                    taught.add(cohort.digest)
    return taught


def _closure(graph: Graph, starts: Iterable[Artifact]) -> dict[str, Artifact]:
    """These and all that they were made of, by URI."""
    found = {made.uri: made for made in starts}
    waiting = list(found.values())
    while waiting:
        for parent in graph.parents(waiting.pop()):
            if parent.uri not in found:
                found[parent.uri] = parent
                waiting.append(parent)
    return found


def _below(graph: Graph, starts: Iterable[str]) -> dict[str, Artifact]:
    """The artifacts of the store that were made with one of these digests, by URI."""
    users: dict[str, list[Artifact]] = {}
    for made in _closure(graph, graph.artifacts).values():
        for used in made.manifest.inputs.values():
            users.setdefault(used.digest, []).append(made)
    found: dict[str, Artifact] = {}
    waiting = list(starts)
    while waiting:
        for user in users.get(waiting.pop(), ()):
            if user.uri not in found:
                found[user.uri] = user
                waiting.append(user.digest)
    here = {made.uri for made in graph.artifacts}
    return {uri: made for uri, made in found.items() if uri in here}


def _in_order(found: Iterable[Artifact]) -> tuple[Artifact, ...]:
    rank = {stage: number for number, stage in enumerate(ORDER)}

    def place(made: Artifact) -> tuple[int, str, str]:
        return rank.get(made.manifest.stage, len(ORDER)), made.manifest.stage, made.uri

    return tuple(sorted(found, key=place))
