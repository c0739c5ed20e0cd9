"""gc beside others at work: what they count on stays, what nobody is at goes."""

from __future__ import annotations

import fcntl
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.conftest import S3
from tests.lifecycle.stores import age, cohort, made, put_shard, shards
from tests.lifecycle.test_retention import A, B, C, whole
from unirg import storage
from unirg.artifact import gc_lock
from unirg.cohort.reader import Cohort
from unirg.cohort.withdrawal import withdraw
from unirg.lifecycle import retention
from unirg.lifecycle.lineage import Roll, names
from unirg.lifecycle.retention import gc


def unfinished(store: str, digest: str, key: str = "0123456789abcdef", number: int = 0) -> str:
    """A note of a run that has put a shard and no cohort yet, as `stage` leaves it; its folder."""
    note = f'{{"shard": {{"sha256": "{digest}"}}}}'.encode()
    storage.put_new(f"{store}/.work/cohort-{key}/notes/shard-{number:06d}.json", note)
    return f"{store}/.work/cohort-{key}"


def test_a_shard_that_unfinished_work_counts_on_stays_however_old_it_is(tmp_path: Path) -> None:
    store = str(tmp_path)
    orphan = put_shard(store, C)
    age(store)
    work = Path(unfinished(store, orphan.sha256))
    assert gc(store).shards == 0
    age(store)
    with work.with_suffix(".lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert gc(store).shards == 0
        assert work.exists()
    assert orphan.sha256 in shards(store)


def test_abandoned_work_goes_before_its_shards_so_that_no_later_run_trusts_its_notes(tmp_path: Path) -> None:
    store = str(tmp_path)
    orphan = put_shard(store, C)
    work = Path(unfinished(store, orphan.sha256))
    age(store)
    assert gc(store, dry_run=True).shards == 1
    assert work.exists()
    assert gc(store).shards == 1
    assert not work.exists()
    assert shards(store) == set()


def test_notes_of_other_machines_count_in_a_bucket(moto_s3: S3) -> None:
    store = f"s3://{moto_s3.bucket()}/store"
    orphan = put_shard(store, C)
    unfinished(store, orphan.sha256)
    assert (gc(store).shards, gc(store).waiting) == (0, 0)
    assert gc(store, grace_s=-60).shards == 1
    assert moto_s3.client().list_objects_v2(Bucket=store.split("/")[2])["KeyCount"] == 0


@pytest.mark.parametrize("drop", [False, True])
def test_what_is_left_of_the_work_on_a_finished_cohort_protects_nothing(tmp_path: Path, drop: bool) -> None:
    store = str(tmp_path)
    done = cohort(store, A)
    shard = Cohort.open(done).index.shards[0].sha256
    orphan = put_shard(store, C).sha256
    work = Path(unfinished(store, shard, key := Path(done.uri).name), "notes")
    unfinished(store, orphan, key, 1)
    if drop:
        withdraw(store, ["phantom/s10"])
    with (tmp_path / ".work" / f"cohort-{key}.lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        freed = gc(store, drop_withdrawn=drop, dry_run=True)
        assert (freed.shards, freed.tainted) == (0, int(drop))
    freed = gc(store, drop_withdrawn=drop)
    assert (freed.shards, freed.waiting, freed.tainted) == (int(drop), 1, 0)
    assert not work.exists()
    assert whole(done.uri) if not drop else shards(store) == {orphan}


def training(store: str, key: str = "0123456789abcdef") -> str:
    """What a training leaves in the store that was killed: here its checkpoints, in a bucket their copies."""
    folder = f"{store}/.work/sft-{key}/checkpoints/checkpoint-5"
    storage.put_new(f"{folder}/{'0' * 32}/model.safetensors", b"weights")
    storage.put_new(f"{folder}/complete", b"{}")
    return f"{store}/.work/sft-{key}"


def test_checkpoints_of_a_training_that_nobody_is_at_go_after_the_grace_period(tmp_path: Path) -> None:
    store = str(tmp_path)
    cohort(store, A)
    work = Path(training(store))
    assert gc(store).bytes == 0
    age(store)
    with work.with_suffix(".lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert gc(store).bytes == 0
    assert (work / "checkpoints" / "checkpoint-5" / "complete").exists()
    said: list[str] = []
    assert gc(store, dry_run=True).bytes == 9
    assert work.exists()
    assert gc(store, tell=said.append).bytes == 9
    assert said == [f"{work.name}: 9 bytes of work that nobody is at: the grace period is over"]
    assert not work.exists()


def test_copies_of_checkpoints_that_a_finished_training_left_in_a_bucket_go_at_once(moto_s3: S3) -> None:
    store = f"s3://{moto_s3.bucket()}/store"
    source = cohort(store, A)
    key = made(store, "sft", {"cohort": source}).uri.rpartition("/")[2]
    training(store, key)
    training(store)
    said: list[str] = []
    assert gc(store, tell=said.append).bytes == 9
    assert said == [f"sft-{key}: 9 bytes of work that nobody is at: its sft is finished"]
    assert names(store, ".work") == ["sft-0123456789abcdef"]
    assert gc(store, grace_s=-60).bytes == 9
    assert names(store, ".work") == []


def test_a_withdrawn_shard_that_unfinished_work_names_stays_and_is_counted(tmp_path: Path) -> None:
    store = str(tmp_path)
    dropped = cohort(store, A)
    unfinished(store, Cohort.open(dropped).index.shards[0].sha256)
    withdraw(store, ["phantom/s10"])
    freed = gc(store, drop_withdrawn=True)
    assert (freed.shards, freed.tainted) == (0, 1)


def test_what_comes_into_use_while_gc_runs_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three shards of a dropped cohort one is renewed, one is listed by a cohort that is committed."""
    store = str(tmp_path)
    dropped = cohort(store, A, B, C)
    withdraw(store, [f"phantom/{group[0][0]}" for group in (A, B, C)])
    first, second, third = Cohort.open(dropped).index.shards
    finish = retention._Broom.finish

    def meanwhile(broom: retention._Broom, roll: Roll) -> None:
        finish(broom, roll)
        (tmp_path / first.name).touch()
        cohort(store, B)

    monkeypatch.setattr(retention._Broom, "finish", meanwhile)
    freed = gc(store, drop_withdrawn=True)
    assert (freed.shards, freed.tainted) == (1, 2)
    assert shards(store) == {first.sha256, second.sha256}
    assert third.sha256 not in shards(store)


def test_no_removal_falls_between_a_writers_look_and_its_renewal(tmp_path: Path) -> None:
    store = str(tmp_path)
    cohort(store, A)
    orphan = put_shard(store, C)
    age(store)
    with ThreadPoolExecutor(1) as pool, gc_lock(store):
        removing = pool.submit(gc, store)
        with pytest.raises(TimeoutError):
            removing.result(0.5)
        (tmp_path / orphan.name).touch()
    assert removing.result().waiting == 1
    assert orphan.sha256 in shards(store)
