"""Which artifacts of a store a withdrawn study reaches, and which models learned from it.

Every manifest names its inputs by digest, so the graph is read off the manifests alone. A cohort that
`unirg gc` dropped leaves its roll below `<store>/dropped/` (who was in it, in which split; no text, no
image): otherwise the question which models saw a study could never be answered again.
"""

from __future__ import annotations

import io
import json
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.parquet as pq

from unirg import journal, storage
from unirg.artifact import MANIFEST, Artifact, ArtifactError, InputRef, open_artifact
from unirg.cohort import columns
from unirg.cohort.reader import SHARDS, Cohort
from unirg.cohort.withdrawal import FOLDER, Withdrawn
from unirg.errors import UserError

ROLLS = "dropped"
NO_STAGES = {SHARDS, FOLDER, ROLLS, journal.FOLDER}
"""Folders of a store that hold no artifacts."""
ORDER = ("cohort", "base", "sft", "grpo", "serve", "score", "evaluate", "report")
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
    graph = _Graph(store, withdrawn)
    reached = [found for made in graph.artifacts if (found := graph.reached(made)).held]
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


_Found = tuple[frozenset[str], frozenset[str]]
"""(learned, held) of an artifact."""
_NOTHING: _Found = (frozenset(), frozenset())


@dataclass
class _Graph:
    store: str
    withdrawn: Withdrawn
    artifacts: list[Artifact] = field(init=False)
    unknown: set[str] = field(default_factory=set)
    _cohorts: dict[str, _Found] = field(default_factory=dict)
    """Digest of a cohort -> (withdrawn studies in its training split, all withdrawn studies in it)."""
    _by_digest: dict[str, list[Artifact]] = field(default_factory=dict)
    _memo: dict[str, _Found] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.artifacts = artifacts(self.store)
        for made in self.artifacts:
            self._by_digest.setdefault(made.digest, []).append(made)
        for roll in rolls(self.store):
            self._cohorts[roll.digest] = self._counted(roll)

    def reached(self, made: Artifact) -> Reached:
        if made.manifest.stage == "cohort":
            return Reached("cohort", made.uri, frozenset(), self._cohort(made)[1])
        return Reached(made.manifest.stage, made.uri, *self._behind(made))

    def _behind(self, made: Artifact) -> _Found:
        if made.uri not in self._memo:
            self._memo[made.uri] = _NOTHING  # a forged circle of manifests must end, too
            parts = [
                self._input(name, reference, learns(made)) for name, reference in made.manifest.inputs.items()
            ]
            self._memo[made.uri] = _union(parts)
        return self._memo[made.uri]

    def _input(self, name: str, reference: InputRef, learning: bool) -> _Found:
        if reference.digest in self._cohorts:
            return self._of_cohort(self._cohorts[reference.digest], learning)
        found = self._by_digest.get(reference.digest) or self._elsewhere(name, reference)
        parts = [
            self._of_cohort(self._cohort(made), learning)
            if made.manifest.stage == "cohort"
            else self._behind(made)
            for made in found
        ]
        return _union(parts)

    def _elsewhere(self, name: str, reference: InputRef) -> list[Artifact]:
        """The artifact of another store that an input names; digests of what is no artifact name nothing."""
        if reference.uri:
            try:
                made = open_artifact(reference.uri)
            except ArtifactError:
                self.unknown.add(reference.uri)
                return []
            if made.digest == reference.digest:
                self._by_digest[made.digest] = [made]
                return [made]
        if reference.uri or name == "model":
            self.unknown.add(reference.uri or f"model {reference.digest[:16]}")
        return []

    def _cohort(self, made: Artifact) -> _Found:
        if made.digest not in self._cohorts:
            self._cohorts[made.digest] = self._counted(Roll.of(made))
        return self._cohorts[made.digest]

    def _counted(self, roll: Roll) -> _Found:
        rows = roll.covered(self.withdrawn).to_pylist()
        named = [(f"{row['corpus']}/{row['study_id']}", row["split"]) for row in rows]
        trained = frozenset(name for name, split in named if split == "train")
        return trained, frozenset(name for name, _ in named)

    @staticmethod
    def _of_cohort(cohort: _Found, learning: bool) -> _Found:
        trained, held = cohort
        return (trained if learning else frozenset()), held


def _union(parts: Iterable[_Found]) -> _Found:
    learned, held = zip(*parts, strict=True) if (parts := list(parts)) else ((), ())
    return frozenset().union(*learned), frozenset().union(*held)
