"""gc: what any cohort lists stays, what none needs goes, and death in the middle leaves nothing half."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import S3
from tests.lifecycle.stores import age, cohort, put_shard, shards, snapshot
from unirg import artifact
from unirg.artifact import ArtifactError
from unirg.cohort.reader import Cohort
from unirg.cohort.withdrawal import Withdrawn, withdraw
from unirg.config import Config
from unirg.errors import UserError
from unirg.lifecycle import retention
from unirg.lifecycle.lineage import artifacts, lineage
from unirg.lifecycle.retention import gc

ROOT = Path(__file__).parents[2]
A, B, C = [("s10", "train"), ("s11", "train")], [("s20", "train")], [("s30", "test")]
POOL = [[(f"s{number}{one}", "train") for one in "01"] for number in range(1, 7)]


def whole(uri: str) -> bool:
    """A cohort that opens and whose every study can be read."""
    opened = Cohort.open(uri)
    return len(opened.studies()) == sum(shard.studies for shard in opened.index.shards)


# Shards


def test_an_old_shard_of_no_cohort_goes_and_everything_else_stays(tmp_path: Path) -> None:
    store = str(tmp_path)
    made = cohort(store, A, B)
    orphan = put_shard(store, C)
    age(store)
    said: list[str] = []
    freed = gc(store, tell=said.append)
    assert (freed.shards, freed.bytes, freed.waiting, freed.cohorts) == (1, orphan.bytes, 0, [])
    assert said == [f"{store}/{orphan.name}: {orphan.bytes} bytes"]
    assert orphan.sha256 not in shards(store)
    assert whole(made.uri)
    assert gc(store).shards == 0


def test_a_young_shard_waits_for_the_cohort_that_may_come(store: str) -> None:
    made = cohort(store, A)
    orphan = put_shard(store, C)
    freed = gc(store)
    assert (freed.shards, freed.waiting) == (0, 1)
    assert orphan.sha256 in shards(store)
    assert gc(store, grace_s=-60).shards == 1
    assert shards(store) == {shard.sha256 for shard in Cohort.open(made).index.shards}


def test_a_dry_run_tells_the_same_and_frees_nothing(tmp_path: Path) -> None:
    store = str(tmp_path)
    cohort(store, A, B)
    put_shard(store, C)
    withdraw(store, ["phantom/s10"])
    age(store)
    before = snapshot(tmp_path)
    tried: list[str] = []
    said: list[str] = []
    would = gc(store, drop_withdrawn=True, dry_run=True, tell=tried.append)
    assert snapshot(tmp_path) == before
    assert gc(store, drop_withdrawn=True, tell=said.append) == would
    assert tried == said
    assert (len(would.cohorts), would.shards) == (1, 3)


def test_what_killed_writers_left_goes_and_files_of_others_stay(tmp_path: Path) -> None:
    store = str(tmp_path)
    cohort(store, A)
    folder = tmp_path / "shards"
    (folder / f".{'0' * 64}.parquet.{'1' * 32}").write_bytes(b"half")
    (folder / "notes.txt").write_text("mine")
    age(store)
    assert gc(store).bytes == 4
    assert sorted(path.name for path in folder.iterdir() if not path.name.endswith(".parquet")) == [
        "notes.txt"
    ]


def test_a_shard_that_was_renewed_after_the_listing_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = str(tmp_path)
    cohort(store, A)
    orphan = put_shard(store, C)
    age(store)

    def renewed(*_: object) -> tuple[list[object], list[object]]:
        (tmp_path / orphan.name).touch()
        return [], []

    monkeypatch.setattr(retention, "_parted", renewed)
    gc(store)
    assert orphan.sha256 in shards(store)


@settings(max_examples=10)
@given(st.data())
def test_no_shard_that_a_remaining_cohort_lists_is_ever_touched(data: st.DataObject) -> None:
    groups = st.lists(st.sampled_from(POOL), min_size=1, max_size=3, unique_by=lambda group: group[0][0])
    with tempfile.TemporaryDirectory() as store:
        made = [cohort(store, *data.draw(groups)) for _ in range(data.draw(st.integers(1, 4)))]
        for group in data.draw(st.lists(st.sampled_from(POOL), max_size=3)):
            put_shard(store, group)
        if data.draw(st.booleans()):
            age(store)
        gone = data.draw(st.sets(st.sampled_from([name for group in POOL for name, _ in group]), max_size=3))
        if gone:
            withdraw(store, [f"phantom/{name}" for name in gone])
        drop = data.draw(st.booleans())
        if data.draw(st.booleans()):
            put_shard(store, POOL[0])
        held = {one.uri: {s.study_id for s in Cohort.open(one).studies()} for one in made}
        gc(store, drop_withdrawn=drop, grace_s=data.draw(st.sampled_from([0.0, 3600.0])))
        for uri, names in held.items():
            if drop and names & gone:
                assert not Path(uri).exists()
            else:
                assert whole(uri)
        left = {uri for uri in held if Path(uri).exists()}
        assert {one.uri for one in artifacts(store)} == left


# Cohorts with withdrawn studies


def test_without_being_asked_no_cohort_is_dropped(tmp_path: Path) -> None:
    store = str(tmp_path)
    made = cohort(store, A)
    withdraw(store, ["phantom/s10"])
    age(store)
    assert gc(store) == retention.Freed()
    assert whole(made.uri)


def test_a_cohort_with_a_withdrawn_study_goes_with_the_shard_that_holds_it_at_once(store: str) -> None:
    first, second = cohort(store, A, B), cohort(store, B, C)
    withdraw(store, patients=["phantom/p1"])
    freed = gc(store, drop_withdrawn=True)
    assert freed.cohorts == [first.uri]
    assert freed.shards == 1
    with pytest.raises(ArtifactError, match="no artifact at"):
        Cohort.open(first.uri)
    assert whole(second.uri)
    assert shards(store) == {shard.sha256 for shard in Cohort.open(second).index.shards}
    assert gc(store, drop_withdrawn=True) == retention.Freed()


def test_a_shard_that_holds_a_withdrawn_study_goes_also_when_an_earlier_run_dropped_its_cohort(
    tmp_path: Path,
) -> None:
    store = str(tmp_path)
    cohort(store, A, B)
    withdraw(store, ["phantom/s10"])
    gc(store, drop_withdrawn=True)
    assert len(shards(store)) == 1
    withdraw(store, ["phantom/s20"])
    assert gc(store, drop_withdrawn=True).shards == 1
    assert shards(store) == set()


def test_the_copies_of_this_machine_go_too(moto_s3: S3, cache: Path) -> None:
    store = f"s3://{moto_s3.bucket()}/store"
    made = cohort(store, A)
    assert whole(made.uri)
    assert list((cache / "shards").iterdir())
    withdraw(store, ["phantom/s10"])
    gc(store, drop_withdrawn=True)
    assert list((cache / "shards").iterdir()) == []
    keys = [
        entry["Key"] for entry in moto_s3.client().list_objects_v2(Bucket=store.split("/")[2])["Contents"]
    ]
    assert sorted({key.split("/")[1] for key in keys}) == ["audit", "dropped", "withdrawn"]


def test_a_cohort_staged_anew_under_the_same_key_is_no_rest(tmp_path: Path) -> None:
    store = str(tmp_path)
    cohort(store, A)
    withdraw(store, ["phantom/s10"])
    gc(store, drop_withdrawn=True)
    again = cohort(store, A)
    gc(store)
    assert whole(again.uri)


# Death in the middle

KILLED = """
import os, signal, sys
from unirg.lifecycle import retention
store, left = sys.argv[1], int(sys.argv[2])
remove = retention._remove
def counting(uri):
    global left
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    left -= 1
    remove(uri)
retention._remove = counting
retention.gc(store, drop_withdrawn=True)
"""


def damaged_store(store: str) -> tuple[str, str]:
    """Two cohorts, one of which is to be dropped."""
    pair = cohort(store, A, B, C), cohort(store, B)
    withdraw(store, ["phantom/s10", "phantom/s30"])
    return pair[0].uri, pair[1].uri


@pytest.mark.parametrize("deletions", [0, 1, 3, 5, 6])
def test_killed_at_any_deletion_a_cohort_is_whole_or_none_and_a_rerun_completes(
    tmp_path: Path, deletions: int
) -> None:
    store = str(tmp_path / "store")
    dropped, kept = damaged_store(store)
    command = [sys.executable, "-c", KILLED, store, str(deletions)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
    # A manifest, an index, a configuration, a log, and two shards that hold a withdrawn study.
    assert done.returncode == (-signal.SIGKILL if deletions < 6 else 0), done.stderr
    assert whole(kept)
    if deletions == 0:
        assert whole(dropped)
    else:
        with pytest.raises(ArtifactError, match="no artifact at"):
            Cohort.open(dropped)
    assert [len(one.held) for one in lineage(store, Withdrawn.of(["phantom/s10"])).reached] == (
        [1] if deletions == 0 else []
    )
    gc(store, drop_withdrawn=True)
    assert [one.uri for one in artifacts(store)] == [kept]
    assert list((tmp_path / "store" / "cohort").iterdir()) == [Path(kept)]
    assert shards(store) == {shard.sha256 for shard in Cohort.open(kept).index.shards}
    assert cohort(store, A, B, C).uri == dropped  # nothing is in the way of one who withdraws no longer


@pytest.mark.parametrize("deletions", [0, 1, 4, 6])
def test_broken_off_at_any_deletion_in_a_bucket_a_rerun_completes(moto_s3: S3, deletions: int) -> None:
    store = f"s3://{moto_s3.bucket()}/store"
    _, kept = damaged_store(store)
    remove, left = retention._remove, [deletions]

    def counting(uri: str) -> None:
        if left[0] == 0:
            raise KeyboardInterrupt
        left[0] -= 1
        remove(uri)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retention, "_remove", counting)
        with nullcontext() if deletions == 6 else pytest.raises(KeyboardInterrupt):
            gc(store, drop_withdrawn=True)
    gc(store, drop_withdrawn=True)
    assert [one.uri for one in artifacts(store)] == [kept]
    assert whole(kept)
    assert shards(store) == {shard.sha256 for shard in Cohort.open(kept).index.shards}


# What stops it before anything is freed


def test_a_cohort_of_another_version_is_named_by_gc_and_lineage(tmp_path: Path) -> None:
    store = str(tmp_path)
    cohort(store, A)
    put_shard(store, C)
    with artifact.draft(store, "cohort", 0, Config(), {}) as draft:
        (draft.out / "cohort.json").write_text('{"corpus": "phantom", "shards": []}')
        old = draft.commit()
    age(store)
    before = snapshot(tmp_path)
    for ask in (gc, lambda store: lineage(store, Withdrawn.of(["phantom/s10"])), lambda _: Cohort.open(old)):
        with pytest.raises(
            ArtifactError, match=f"{old.uri} is a cohort of another version: .* stage it again"
        ):
            ask(store)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("damage", ["manifest", "index", "withdrawal"])
def test_what_cannot_be_read_stops_it_before_anything_is_freed(tmp_path: Path, damage: str) -> None:
    store = str(tmp_path)
    made = cohort(store, A)
    put_shard(store, C)
    entry = withdraw(store, ["phantom/s10"])
    files = {"manifest": f"{made.uri}/manifest.json", "index": f"{made.uri}/cohort.json", "withdrawal": entry}
    Path(files[damage]).write_text("{")
    age(store)
    before = snapshot(tmp_path)
    with pytest.raises(UserError, match=r"altered|not a manifest"):
        gc(store, drop_withdrawn=True)
    assert snapshot(tmp_path) == before


def test_no_store_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no store at"):
        gc(str(tmp_path / "nowhere"))
