"""Which artifacts of a store a withdrawn study reaches, and which models learned from it.

Every manifest names its inputs by digest, so the graph is read off the manifests alone. A cohort that
`unirg gc` dropped leaves its roll below `<store>/dropped/` (who was in it, in which split; no text, no
image): otherwise the question which models saw a study could never be answered again.
"""

from __future__ import annotations

import io
import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from unirg import journal, storage
from unirg.artifact import MANIFEST, Artifact, ArtifactError, InputRef, open_artifact
from unirg.cohort import columns
from unirg.cohort.reader import SHARDS, Cohort
from unirg.cohort.withdrawal import FOLDER, Withdrawn
from unirg.errors import UserError

ROLLS = "dropped"
CYCLES = "cycles"
"""Where cycles of retraining are noted."""
NO_STAGES = {SHARDS, FOLDER, ROLLS, journal.FOLDER, CYCLES}
"""Folders of a store that hold no artifacts."""
ORDER = ("watch", "cohort", "base", "sft", "grpo", "serve", "score", "evaluate", "report", "gate")
IDS = ("corpus", "study_id", "patient_id", "split")
_METADATA = b"unirg"


@dataclass(frozen=True)
class Reached:
    """An artifact whose inputs lead to a cohort with withdrawn studies, or such a cohort itself."""

    stage: str
    uri: str
    learned: frozenset[str]
    """Withdrawn studies in the training split of a cohort that it, or the model behind it, was trained on."""
    held: frozenset[str]
    """Withdrawn studies in any cohort behind it, whatever their split."""


@dataclass(frozen=True)
class Lineage:
    reached: tuple[Reached, ...]
    unknown: tuple[str, ...]
    """Inputs that could not be followed: what lies behind them is not known."""


@dataclass(frozen=True)
class Roll:
    """Who was in a cohort."""

    digest: str
    key: str
    """Name of the cohort's folder in the store."""
    table: pa.Table
    """`IDS` and `shard`, the SHA-256 of the shard with the study."""

    @classmethod
    def of(cls, cohort: Artifact) -> Roll:
        """Read from the cohort's shards.

        Raises:
            ArtifactError: a file of the cohort is missing or damaged.
        """
        tables = []
        for shard in Cohort.open(cohort).index.shards:
            for batch in columns.batches(cohort.store, shard, IDS):
                found = pa.Table.from_batches([batch]).select(list(IDS))
                tables.append(found.append_column("shard", pa.array([shard.sha256] * len(found))))
        return cls(cohort.digest, cohort.uri.rpartition("/")[2], pa.concat_tables(tables))

    def put(self, store: str) -> None:
        """Keep it in the store, under the cohort's key."""
        told = json.dumps({"digest": self.digest, "key": self.key})
        buffer = io.BytesIO()
        pq.write_table(self.table.replace_schema_metadata({_METADATA: told}), buffer)
        storage.put_new(storage.join(store, ROLLS, f"{self.key}.parquet"), buffer.getvalue())

    def covered(self, withdrawn: Withdrawn) -> pa.Table:
        """Its rows of withdrawn studies."""
        ids = zip(*(self.table[name].to_pylist() for name in IDS[:3]), strict=True)
        return self.table.filter(pa.array([withdrawn.holds(*row) for row in ids], pa.bool_()))


def rolls(store: str) -> Iterator[Roll]:
    """Of the cohorts that were dropped from the store."""
    for name in names(store, ROLLS):
        if name.startswith("."):
            continue
        uri = storage.join(store, ROLLS, name)
        try:
            table = pq.read_table(io.BytesIO(storage.read_bytes(uri)))
            told = json.loads(table.schema.metadata[_METADATA])
            yield Roll(told["digest"], told["key"], table)
        except (pa.ArrowException, KeyError, TypeError, ValueError):
            raise UserError(f"{uri} is damaged: restore it from a copy") from None


def names(store: str, *folder: str) -> list[str]:
    """What lies in a folder of the store, sorted; nothing where there is no such folder."""
    return storage.listed(storage.join(store, *folder) if folder else store)


def artifacts(store: str, stage: str = "", known: Collection[str] = ()) -> list[Artifact]:
    """Every committed artifact of the store, or those of one stage; `known` keys are left out.

    Raises:
        ArtifactError: a manifest is not readable, so nobody can say what it needs.
    """
    found = []
    for folder in [stage] if stage else names(store):
        if folder.startswith(".") or folder in NO_STAGES:
            continue
        for key in names(store, folder):
            if key in known:
                continue
            uri = storage.join(store, folder, key)
            fs, path = storage.open_fs(storage.join(uri, MANIFEST))
            with storage.explained(uri):
                committed = fs.exists(path)
            if committed:
                found.append(open_artifact(uri))
    return found


def lineage(store: str, withdrawn: Withdrawn) -> Lineage:
    """The artifacts that withdrawn studies reach, models before what was made with them.

    Raises:
        UserError: there is no store, or an artifact or a roll of it cannot be read.
    """
    if not names(store):
        raise UserError(f"there is no store at {store}: check --store")
    studies = {roll.digest: _covered(roll, withdrawn) for roll in rolls(store)}
    graph = Graph(store, set(studies))
    reached = [found for made in graph.artifacts if (found := _reached(graph, made, studies, withdrawn)).held]
    rank = {stage: number for number, stage in enumerate(ORDER)}
    reached.sort(key=lambda found: (rank.get(found.stage, len(ORDER)), found.stage, found.uri))
    return Lineage(tuple(reached), tuple(sorted(graph.unknown)))


def held(store: str, asked: Withdrawn) -> Withdrawn:
    """The part of what is asked for that cohorts of the store hold.

    Raises:
        ArtifactError: a cohort cannot be read.
    """
    studies: set[str] = set()
    patients: set[str] = set()
    for cohort in artifacts(store, "cohort"):
        for row in Roll.of(cohort).covered(asked).select(list(IDS[:3])).to_pylist():
            found = asked.naming(*row.values())
            studies |= found.studies
            patients |= found.patients
    return Withdrawn(frozenset(studies), frozenset(patients))


def learns(made: Artifact) -> bool:
    """Whether a stage trains on its cohort; a published model is fetched, and only named beside it."""
    stage = made.manifest.stage
    return stage in ("sft", "grpo") or (stage == "base" and made.manifest.config.get("source") == "toy")


@dataclass(frozen=True)
class Behind:
    """The cohorts that an artifact's inputs lead to, by digest."""

    learned: frozenset[str] = frozenset()
    """That it, or the model behind it, was trained on."""
    held: frozenset[str] = frozenset()
    """All of them."""


class Graph:
    """The artifacts of a store by what they were made of; parents in other stores are followed, too."""

    def __init__(self, store: str, dropped: Collection[str]) -> None:
        """`dropped`: digests of the cohorts that the store has rolls of."""
        self.artifacts = artifacts(store)
        self.unknown: set[str] = set()
        """Inputs that could not be followed, of what was asked so far."""
        self.cohorts: dict[str, Artifact] = {}
        """By digest, of what was asked so far; without the dropped ones."""
        self._dropped = dropped
        self._by_digest: dict[str, list[Artifact]] = {}
        self._memo: dict[str, Behind] = {}
        for made in self.artifacts:
            self._by_digest.setdefault(made.digest, []).append(made)

    def behind(self, made: Artifact) -> Behind:
        """A cohort is a leaf here, also where it was combined of others."""
        # Not by recursion: a model retrained for years has more parents than Python lets calls nest.
        waiting, opened = [made], set[str]()
        while waiting:
            one = waiting[-1]
            first = [] if one.uri in opened else [p for p in self.parents(one) if self._is_open(p)]
            opened.add(one.uri)  # a forged circle of manifests must end, too
            if first:
                waiting += first
                continue
            waiting.pop()
            if one.uri not in self._memo:
                parts = [self._input(name, used, learns(one)) for name, used in one.manifest.inputs.items()]
                learned = frozenset[str]().union(*(part.learned for part in parts))
                self._memo[one.uri] = Behind(learned, frozenset[str]().union(*(part.held for part in parts)))
        return self._memo[made.uri]

    def _is_open(self, parent: Artifact) -> bool:
        return parent.manifest.stage != "cohort" and parent.uri not in self._memo

    def parents(self, made: Artifact) -> list[Artifact]:
        """What it was made of; of a dropped cohort there is none left."""
        found = []
        for name, used in made.manifest.inputs.items():
            if used.digest not in self._dropped:
                found += self._named(name, used)
        return found

    def _input(self, name: str, used: InputRef, learning: bool) -> Behind:
        cohorts = {used.digest} if used.digest in self._dropped else set()
        learned, held = set[str](), set[str]()
        for made in [] if cohorts else self._named(name, used):
            if made.manifest.stage == "cohort":
                self.cohorts.setdefault(made.digest, made)
                cohorts.add(made.digest)
            else:
                behind = self._memo.get(made.uri, Behind())
                learned |= behind.learned
                held |= behind.held
        return Behind(frozenset(learned | cohorts if learning else learned), frozenset(held | cohorts))

    def _named(self, name: str, used: InputRef) -> list[Artifact]:
        """The artifacts that an input names; digests of what is no artifact name nothing."""
        if found := self._by_digest.get(used.digest):
            return found
        if used.uri:
            try:
                made = open_artifact(used.uri)
            except ArtifactError:
                self.unknown.add(used.uri)
                return []
            if made.digest == used.digest:
                self._by_digest[made.digest] = [made]
                return [made]
        if used.uri or name == "model":
            self.unknown.add(used.uri or f"model {used.digest[:16]}")
        return []


_Studies = tuple[frozenset[str], frozenset[str]]
"""Withdrawn studies of a cohort: (in its training split, in any)."""


def _reached(graph: Graph, made: Artifact, studies: dict[str, _Studies], withdrawn: Withdrawn) -> Reached:
    """`studies`: of the cohorts, by digest; those met for the first time are added."""
    nobody = frozenset[str]()
    if made.manifest.stage == "cohort":
        return Reached("cohort", made.uri, nobody, _of(made, studies, withdrawn)[1])
    behind = graph.behind(made)
    for digest in behind.held - studies.keys():
        _of(graph.cohorts[digest], studies, withdrawn)
    learned = nobody.union(*(studies[digest][0] for digest in behind.learned))
    held = nobody.union(*(studies[digest][1] for digest in behind.held))
    return Reached(made.manifest.stage, made.uri, learned, held)


def _of(cohort: Artifact, studies: dict[str, _Studies], withdrawn: Withdrawn) -> _Studies:
    if cohort.digest not in studies:
        studies[cohort.digest] = _covered(Roll.of(cohort), withdrawn)
    return studies[cohort.digest]


def _covered(roll: Roll, withdrawn: Withdrawn) -> _Studies:
    rows = roll.covered(withdrawn).to_pylist()
    named = [(f"{row['corpus']}/{row['study_id']}", row["split"]) for row in rows]
    return frozenset(name for name, split in named if split == "train"), frozenset(name for name, _ in named)
