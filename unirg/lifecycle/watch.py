"""New data: what an institution's incoming bucket holds that a cohort does not.

A watch looks at what has settled, stages what it has not seen before, and compares by content. Its artifact
holds a row for every study that was ever delivered (`cohort.ledger`) and names the cohort of the increment;
`cohort.grow` makes the next cohort of both. Its key is the digest of what had settled, of the cohort and of
what is withdrawn: the same event twice gives the same artifact, and so starts one run.

What cannot be taken without moving a patient is not taken. A patient's split is a hash of the patient alone,
so it never changes; a film that the cohort has in another split, or a correction that gives a study to a
patient of another split, is `tied`: refused for good, as models have seen it where it was.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from pydantic import Field

from unirg import artifact, storage, telemetry
from unirg.artifact import Artifact
from unirg.cohort import ledger
from unirg.cohort.incoming import Found, Incoming, Look, look
from unirg.cohort.ledger import Held, Kind, Row, Told
from unirg.cohort.shards import UNREADABLE
from unirg.cohort.stage import NothingLeft, StageConfig, stage
from unirg.cohort.withdrawal import Withdrawn
from unirg.config import Config, operational
from unirg.errors import UserError
from unirg.lifecycle.lineage import Reached, artifacts, lineage

VERSION = 1
ATTEMPTS = 5
COPY = "copy of another study"
TIED = "shown in another split"


class WatchConfig(Config):
    """What is watched, and when there is enough of it."""

    stage: StageConfig = Field(default=StageConfig(corpus="institution"))
    """How the increment is staged: with the same settings as the cohort that it is to join."""
    settle_seconds: float = operational(300.0, ge=0)
    """How long an object must have rested before it is read; where clocks differ by more, set more. On S3
    objects appear whole, so there it need only cover the time between a study's first object and its last."""
    minimum: int = operational(1, ge=1)
    """Fewer new and corrected studies train nothing."""


@telemetry.verb("watch")
def watch(
    config: WatchConfig, cohort: Artifact | None, store: str, clock: Callable[[], float] = time.time
) -> Artifact:
    """Compare what has settled in the incoming place with a cohort; None = with nothing.

    Raises:
        UserError: the incoming place or a table of it cannot be read, or keeps changing; the cohort was
            staged with other settings; studies were withdrawn meanwhile.
    """
    _check_alike(config.stage, cohort, store)
    moving: set[str] = set()
    for _ in range(ATTEMPTS):
        seen = look(config.stage, config.settle_seconds, moving, clock)
        made, moved = _compared(config, seen, cohort, store)
        if made is not None:
            return made
        moving |= moved
    raise UserError(
        f"institution {config.stage.institution.name}: what arrived changed {ATTEMPTS} times while it was "
        "read: raise settle_seconds, or watch when nobody writes"
    )


def enough(watch: Artifact, minimum: int = 1) -> bool:
    """Whether there is anything to train on: at least so many new and corrected studies."""
    return taken(watch) >= minimum


def taken(watch: Artifact) -> int:
    """How many new and corrected studies a watch found."""
    return sum(int(watch.manifest.counts.get(kind, 0)) for kind in ledger.TAKEN)


def models_that_saw(watch: Artifact, store: str) -> list[Reached]:
    """The models of a store that learned from studies which a watch refused as withdrawn.

    Read anew, as it depends on what was trained since.
    """
    institution = ledger.told(watch).institution
    refused = [row for row in ledger.read(watch).values() if row.kind == "withdrawn"]
    asked = Withdrawn.of(studies=[f"{institution}/{row.study_id}" for row in refused])
    return [one for one in lineage(store, asked).reached if one.learned] if asked else []


def _check_alike(config: StageConfig, cohort: Artifact | None, store: str) -> None:
    """Raises: UserError where the next cohort could not hold both."""
    if cohort is None:
        return
    here = str(storage.local_path(store)) if storage.is_local(store) else store.rstrip("/")
    if cohort.store != here:
        raise UserError(
            f"cohort {cohort.uri} lies in another store than {here}: watch with --store {cohort.store}"
        )
    theirs = cohort.manifest.config
    for name in ("size", "resize"):
        if name in theirs and theirs[name] != getattr(config, name):
            raise UserError(
                f"the cohort has {name} {theirs[name]} and stage.{name} is {getattr(config, name)}: "
                f"set stage.{name}={theirs[name]}"
            )


def _compared(
    config: WatchConfig, seen: Look, cohort: Artifact | None, store: str
) -> tuple[Artifact | None, set[str]]:
    """(the artifact, -), or (None, the objects that changed while they were read)."""
    name = config.stage.institution.name
    withdrawn = Withdrawn.load(store).of_corpus(name)
    inputs: dict[str, Artifact | str] = {"incoming": seen.digest}
    if cohort:
        inputs["cohort"] = cohort
    if withdrawn:
        inputs["withdrawn"] = withdrawn.digest
    with artifact.draft(store, "watch", VERSION, config, inputs) as draft:
        if draft.committed:
            return draft.committed, set()
        compared = _Comparison(config.stage, seen, cohort, store, withdrawn)
        compared.know()
        increment = compared.stage()
        compared.judge(increment)
        # They were listed before they were read and staged.
        if moved := seen.moved():
            return None, moved
        if Withdrawn.load(store).of_corpus(name) != withdrawn:
            raise UserError("studies were withdrawn while these were compared: run the same command again")
        told = Told(
            institution=name,
            watermark=seen.watermark,
            increment=increment.uri.rpartition("/")[2] if increment else "",
            increment_digest=increment.digest if increment else "",
        )
        ledger.write(draft, compared.rows.values(), told)
        return draft.commit(compared.counts()), set()


@dataclass
class _Comparison:
    config: StageConfig
    seen: Look
    cohort: Artifact | None
    store: str
    withdrawn: Withdrawn
    rows: dict[str, Row] = field(default_factory=dict)
    """By study id."""
    _held: dict[str, Held] = field(default_factory=dict)
    """What the cohort has of the institution, by study id."""
    _newest: dict[str, datetime] = field(default_factory=dict)
    """Patient -> when the newest study in the cohort was taken."""

    @property
    def _corpus(self) -> str:
        return self.config.institution.name

    def know(self) -> None:
        """Judge what can be judged without pixels."""
        before: dict[str, Row] = {}
        if self.cohort:
            before = ledger.behind(self.cohort, self._corpus)
            self._held = ledger.held(self.cohort, self._corpus, before)
        for one in self._held.values():
            if one.acquired_at:
                newest = self._newest.get(one.patient_id, one.acquired_at)
                self._newest[one.patient_id] = max(newest, one.acquired_at)
        contents = self._contents(before)
        for name, found in self.seen.found.items():
            earlier, held = before.get(name), self._held.get(name)
            content = contents.get(found.source, "")
            if self.withdrawn.covers(found.study):
                self._put(found, "withdrawn")
            elif found.unusable:
                self._put_unusable(found, found.unusable)
            elif earlier and earlier.kind == "tied" and earlier.patient_id == found.study.patient_id:
                self._put(found, "tied", earlier.reason)
            elif held and (held.content, held.patient_id) == (content, found.study.patient_id):
                self._put(found, "duplicate", "", held.content, held.film)
        self._carry_on(before)

    def stage(self) -> Artifact | None:
        """Stage what only pixels can tell of; None where none of it can be staged."""
        wanted = [name for name in self.seen.found if name not in self.rows]
        if not wanted:
            return None
        try:
            return stage(self.config, self.store, Incoming(self.seen, wanted))
        except NothingLeft:  # no image of theirs can be read: each gets that as its reason
            return None

    def judge(self, increment: Artifact | None) -> None:
        """Judge what was staged, corrections before what is new, in the order of ids."""
        patients = {one.patient_id: one.split for one in self._held.values()}
        contents = Counter(one.content for one in self._held.values())
        films: dict[str, set[str]] = {}
        for one in self._held.values():
            films.setdefault(one.film, set()).add(one.split)
        staged = list(ledger.staged(increment)) if increment else []
        for study, content, film in sorted(
            staged, key=lambda s: (s[0].study_id not in self._held, s[0].study_id)
        ):
            found, held = self.seen.found[study.study_id], self._held.get(study.study_id)
            split = study.split or ""
            if patients.setdefault(study.patient_id, split) != split:
                raise UserError(
                    f"study {study.study_id} would be in {split}, and its patient is in "
                    f"{patients[study.patient_id]}: set stage.split and stage.hold_out as the cohort has them"
                )
            if held and (held.content, held.patient_id) == (content, study.patient_id):
                self._put(found, "duplicate", "", content, film)
            elif films.get(film, set()) - {split} or (held and held.split != split):
                self._put(found, "tied", TIED, content, film)
            elif not held and contents[content] > 0:
                self._put(found, "copy", COPY, content, film)
            else:
                self._put(found, "corrected" if held else "new", "", content, film)
                contents[content] += 1
                contents[held.content if held else ""] -= 1
                films.setdefault(film, set()).add(split)
        for name, found in self.seen.found.items():
            if name not in self.rows:
                self._put_unusable(found, UNREADABLE)

    def counts(self) -> dict[str, int]:
        """What there is to say of it, in numbers."""
        told = dict.fromkeys((*ledger.TAKEN, "late"), 0)
        told["late"] = sum(row.late for row in self.rows.values())
        kinds = Counter[str](row.kind for row in self.rows.values())
        reasons = Counter(f"unusable.{row.reason}" for row in self.rows.values() if row.kind == "unusable")
        dropped = Counter(f"dropped.{reason}" for _, reason in self.seen.dropped)
        held = ((name, one.patient_id) for name, one in self._held.items())
        return told | {
            **kinds,
            **reasons,
            **dropped,
            "withdrawn_in_cohort": sum(self.withdrawn.holds(self._corpus, *one) for one in held),
            "seen": len(self.seen.found),
            "waiting": self.seen.waiting,
            "tables_waiting": self.seen.tables_waiting,
        }

    def _contents(self, before: Mapping[str, Row]) -> dict[str, str]:
        """Source -> content, of versions that were staged once; another watch of the store knows some."""
        others = [
            one for one in artifacts(self.store, "watch") if ledger.told(one).institution == self._corpus
        ]
        fullest = max(others, key=lambda one: (int(one.manifest.counts["seen"]), one.uri), default=None)
        rows = [*(ledger.read(fullest).values() if fullest else ()), *before.values()]
        return {row.source: row.content for row in rows if row.content and row.kind in ledger.STAGED}

    def _carry_on(self, before: Mapping[str, Row]) -> None:
        """Keep what the cohort has, and what was once seen, of studies that are delivered no more."""
        for name, held in self._held.items():
            if self.withdrawn.holds(self._corpus, name, held.patient_id):
                self.rows.setdefault(name, Row(study_id=name, patient_id=held.patient_id, kind="withdrawn"))
            elif name not in self.seen.found:
                self.rows[name] = Row(
                    study_id=name,
                    patient_id=held.patient_id,
                    kind="gone",
                    content=held.content,
                    film=held.film,
                )
        for name, row in before.items():
            if name in self._held or name in self.seen.found:
                continue
            if self.withdrawn.holds(self._corpus, name, row.patient_id):
                continue
            if row.kind in ("unusable", "gone"):
                self.rows[name] = row.model_copy(update={"kind": "gone", "reason": "", "source": ""})
            elif row.kind == "tied":
                self.rows[name] = row

    def _put_unusable(self, found: Found, reason: str) -> None:
        """It replaces nothing: an earlier version that the cohort has stays."""
        held = self._held.get(found.study.study_id)
        self._put(found, "unusable", reason, held.content if held else "", held.film if held else "")

    def _put(self, found: Found, kind: Kind, reason: str = "", content: str = "", film: str = "") -> None:
        study = found.study
        newest = self._newest.get(study.patient_id)
        self.rows[study.study_id] = Row(
            study_id=study.study_id,
            patient_id=study.patient_id,
            kind=kind,
            reason=reason,
            late=bool(kind in ledger.TAKEN and newest and study.acquired_at and study.acquired_at < newest),
            source=found.source,
            content=content,
            film=film,
            acquired_at=study.acquired_at,
            acquired_basis=study.acquired_basis,
        )
