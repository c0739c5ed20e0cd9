"""A corpus's studies on disk while a cohort is made of them: filtered, linked, split, in the order of shards.

They lie in SQLite, so memory holds the studies of one patient or of one shard, whatever the corpus has. All
of it is one transaction: a run that is killed before its end reads the corpus again, one killed later does
not.
"""

from __future__ import annotations

import itertools
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

from unirg.cohort import priors, splits
from unirg.cohort.corpora import Corpus, Dropped
from unirg.study import Study

NO_SECTIONS, NO_FRONTAL = "neither findings nor impression", "no frontal image"
DUPLICATE, WITHDRAWN = "duplicate study id", "withdrawn"

_SCHEMA = """
CREATE TABLE read (
    corpus TEXT, patient TEXT, study TEXT PRIMARY KEY, institution TEXT, split TEXT, usable INTEGER,
    record TEXT
);
CREATE TABLE arranged (split TEXT, corpus TEXT, study TEXT, record TEXT);
CREATE TABLE dropped (study TEXT, reason TEXT);
CREATE TABLE account (met TEXT, number INTEGER);
"""


def unusable(study: Study, with_report: bool = True) -> str | None:
    """Why a study cannot be used: the paper's filter, and the policy's need of an image.

    `with_report`: it must have one, to train on or to compare with; an archive's studies need none.
    """
    if with_report and not (study.findings or study.impression):
        return NO_SECTIONS
    return None if study.key_image else NO_FRONTAL


class Intake:
    """The studies of one corpus, in a database of their own."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def take(
        self,
        corpus: Corpus,
        config: splits.SplitConfig,
        hold_out: Sequence[str] = (),
        withdrawn: Callable[[Study], bool] = lambda study: False,
        with_reports: bool = True,
    ) -> None:
        """Read, filter, link and split the corpus, unless an earlier run has finished that.

        Raises:
            UserError: `hold_out` names nobody, the splits share a patient, or the draw cannot be made.
        """
        with closing(self._open()) as database:
            if database.execute("PRAGMA user_version").fetchone()[0]:
                return
            database.executescript(f"BEGIN; {_SCHEMA}")
            self._read(database, corpus, withdrawn, with_reports)
            self._arrange(database, config, hold_out)
            database.execute("DROP TABLE read")
            database.execute("PRAGMA user_version = 1")
            database.execute("COMMIT")

    def groups(self, size: int) -> Iterator[list[Study]]:
        """Studies of a split, in order of id, cut into shards; a growing cohort keeps its full ones."""
        with closing(self._open()) as database:
            rows = database.execute("SELECT split, record FROM arranged ORDER BY split, corpus, study")
            for _, split in itertools.groupby(rows, key=lambda row: row[0]):
                for records in _batched(split, size):
                    yield [Study.model_validate_json(record) for _, record in records]

    def sizes(self, size: int) -> list[int]:
        """How many studies each of the groups has."""
        with closing(self._open()) as database:
            counts = database.execute("SELECT COUNT(*) FROM arranged GROUP BY split ORDER BY split")
            return [min(size, count - start) for (count,) in counts for start in range(0, count, size)]

    def dropped(self) -> Counter[str]:
        """How many records did not become studies, by reason."""
        with closing(self._open()) as database:
            return Counter(dict(database.execute("SELECT reason, COUNT(*) FROM dropped GROUP BY reason")))

    def drops(self) -> Iterator[tuple[str, str]]:
        """(study id, reason) of each of them, in the corpus's order."""
        with closing(self._open()) as database:
            yield from database.execute("SELECT study, reason FROM dropped ORDER BY rowid")

    def account(self) -> dict[str, int]:
        """What reading met beside studies."""
        with closing(self._open()) as database:
            return dict(database.execute("SELECT met, number FROM account ORDER BY met"))

    def discard(self) -> None:
        """Leave nothing of it behind."""
        for path in self._path.parent.glob(f"{self._path.name}*"):
            path.unlink()

    def _open(self) -> sqlite3.Connection:
        self._path.touch(mode=0o600)  # reports, and an institution's paths
        return sqlite3.connect(self._path, isolation_level=None)

    def _read(
        self,
        database: sqlite3.Connection,
        corpus: Corpus,
        withdrawn: Callable[[Study], bool],
        with_reports: bool,
    ) -> None:
        for record in corpus.records():
            if isinstance(record, Dropped):
                reason: str | None = record.reason
            elif withdrawn(record):
                reason = WITHDRAWN
            else:
                reason = unusable(record, with_reports)
                row = (record.corpus, record.patient_id, record.study_id, record.institution, record.split)
                # One that cannot be used is an encounter of its patient all the same.
                new = database.execute(
                    "INSERT OR IGNORE INTO read VALUES (?, ?, ?, ?, ?, ?, ?)",
                    (*row, reason is None, record.model_dump_json()),
                ).rowcount
                reason = reason if new else DUPLICATE
            if reason is not None:
                database.execute("INSERT INTO dropped VALUES (?, ?)", (record.study_id, reason))
        database.executemany("INSERT INTO account VALUES (?, ?)", corpus.account().items())

    def _arrange(
        self, database: sqlite3.Connection, config: splits.SplitConfig, hold_out: Sequence[str]
    ) -> None:
        """Link and split patient by patient."""
        names = database.execute("SELECT institution FROM read UNION SELECT corpus FROM read")
        known = [name for (name,) in names]
        if known:  # of a corpus without studies that is all there is to say, and `stage` says it
            splits.check_hold_out(hold_out, known)
        drawn = None
        if config.validation_studies:
            marks = ", ".join("?" * len(hold_out))
            owners = database.execute(
                "SELECT corpus, patient, SUM(split = 'train') AS training FROM read WHERE usable "
                "GROUP BY corpus, patient HAVING training > 0 "
                f"AND NOT MAX(institution IN ({marks}) OR corpus IN ({marks}))",
                (*hold_out, *hold_out),
            )
            patients = [((corpus, patient), studies) for corpus, patient, studies in owners]
            drawn = splits.draw(patients, config.validation_studies, config.seed)
        disjoint = splits.Disjoint()
        rows = database.execute(
            "SELECT corpus, patient, usable, record FROM read ORDER BY corpus, patient, study"
        )
        for _, of_patient in itertools.groupby(rows, key=lambda row: row[:2]):
            read = [(usable, Study.model_validate_json(record)) for *_, usable, record in of_patient]
            candidates = [study for usable, study in read if usable]
            kept, dropped = splits.assign(candidates, config, hold_out, drawn)
            disjoint.watch(kept)
            placed = {study.study_id: study for study in kept}
            linked = priors.link((placed.get(study.study_id, study) for _, study in read), placed)
            database.executemany(
                "INSERT INTO arranged VALUES (?, ?, ?, ?)",
                [
                    (study.split, study.corpus, study.study_id, study.model_dump_json())
                    for study in linked
                    if study.study_id in placed
                ],
            )
            if dropped:
                (reason,) = dropped  # a patient's studies are dropped for one reason
                database.executemany(
                    "INSERT INTO dropped VALUES (?, ?)",
                    [(study.study_id, reason) for study in candidates if study.study_id not in placed],
                )
        disjoint.check()


def _batched(rows: Iterator[tuple[str, str]], size: int) -> Iterator[list[tuple[str, str]]]:
    while batch := list(itertools.islice(rows, size)):
        yield batch
