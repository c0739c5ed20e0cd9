"""Shards in the making: which notes the next run believes, what a decoder's time is, what stays behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.canary import CANARY
from tests.cohort.films import Films
from unirg import storage
from unirg.cohort import stage as staging
from unirg.cohort.reader import Cohort, Shard
from unirg.cohort.shards import DOUBTFUL, UNREADABLE, Notes, ShardWriter, Written
from unirg.cohort.stage import StageConfig, stage
from unirg.cohort.withdrawal import withdraw
from unirg.cohort.workers import Pool


def note(digest: str, *reasons: str, studies: int = 3) -> Written:
    shard = Shard(sha256=digest * 64, bytes=9, split="train", studies=studies)
    return Written(shard, [(f"s{place}", reason) for place, reason in enumerate(reasons)], [])


def test_a_note_is_believed_if_its_shard_is_there_and_no_busy_machine_may_be_to_blame(store: str) -> None:
    notes = Notes(storage.join(store, ".work", "notes"))
    assert notes.finished(store) == set()
    given = {
        0: note("a"),
        1: note("b", f"{UNREADABLE}: corrupt or truncated"),
        2: note("c"),  # its shard is gone
        3: note("d", f"{UNREADABLE}: missing", studies=0),  # there is none
        4: note("e", DOUBTFUL[0]),
        5: note("f", f"{UNREADABLE}: missing", DOUBTFUL[1], studies=0),
    }
    for number, written in given.items():
        notes.put(number, written)
        if written.shard.studies and number != 2:
            storage.put_new(storage.join(store, written.shard.name), b"x")
    assert notes.finished(store) == {0, 1, 3}
    assert notes.get(1) == given[1]
    for number in (2, 4, 5):
        notes.put(number, note("0"))  # the note before would stay if it were there still
        assert notes.get(number) == note("0")


def test_the_clock_runs_while_a_film_is_decoded_and_not_while_storage_is_asked(tmp_path: Path) -> None:
    corpus = Films(count=2, stalling=frozenset({0}))
    told: list[tuple[str, int]] = []
    read = corpus.read

    def watched(*given: object) -> object:
        told.append(("read", -1))
        return read(*given)  # type: ignore[arg-type]

    corpus.read = watched  # type: ignore[assignment, method-assign]
    writer = ShardWriter(corpus, 64, "stretch", str(tmp_path))
    studies = [corpus.study(0).model_copy(update={"split": "train"}), corpus.study(1)]
    writer((0, studies), {}, lambda item: told.append(("item", item)))
    assert told == [("read", -1), ("item", 0), ("item", -1), ("read", -1), ("item", 1), ("item", -1)]


def test_a_stalling_storage_costs_no_study(tmp_path: Path) -> None:
    corpus = Films(count=3, stalling=frozenset({1}))
    studies = [corpus.study(number).model_copy(update={"split": "train"}) for number in range(3)]
    pool = Pool(1, ShardWriter(corpus, 64, "stretch", str(tmp_path)), seconds=1.0)
    ((_, written),) = pool.run([(0, studies)])
    assert (written.shard.studies, written.unreadable) == (3, [])


def test_the_truth_of_a_withdrawn_phantom_goes_with_it(tmp_path: Path) -> None:
    config = StageConfig(studies=6, size=64, workers=1)
    whole = Cohort.open(stage(config, str(tmp_path)))
    gone = whole.studies()[0].study_id
    withdraw(str(tmp_path), [f"phantom/{gone}"])
    left = Cohort.open(stage(config, str(tmp_path)))
    truths = [cohort.truth() for cohort in (whole, left)]
    assert all(table is not None for table in truths)
    ids = [set(table["study_id"].to_pylist()) for table in truths if table is not None]
    assert ids[0] - ids[1] == {gone}


def test_a_part_leaves_no_path_of_an_institution_behind(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(staging, "open_corpus", lambda config: Films(count=6))
    config = StageConfig.model_validate({"size": 64, "shard_studies": 2, "workers": 1})
    assert staging.stage_part(config, str(tmp_path), 0, 2)
    left = [path for path in tmp_path.rglob("*") if path.is_file() and path.parent.name != "shards"]
    assert left
    assert not [path.name for path in left if CANARY.encode() in path.read_bytes()]
