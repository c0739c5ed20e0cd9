"""Checkpoints: which one to go on from, which are kept, and their copies in the store."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from unirg import storage
from unirg.training.checkpoints import MARKER, Checkpoints

FILES = {"model.safetensors": b"w" * 100, "optimizer.pt": b"o" * 200, "rng/rng_state.pth": b"r"}


def saved(checkpoints: Checkpoints, step: int, score: float | None = None, marked: bool = True) -> Path:
    made = checkpoints.folder / f"checkpoint-{step}"
    for name, content in FILES.items():
        (made / name).parent.mkdir(parents=True, exist_ok=True)
        (made / name).write_bytes(content + str(step).encode())
    if marked:
        checkpoints.commit(step, score)
    return made


def steps(folder: Path) -> list[int]:
    return sorted(int(path.name.rpartition("-")[2]) for path in folder.glob("checkpoint-*"))


@pytest.fixture
def here(tmp_path: Path) -> Checkpoints:
    """Those of a training whose store is a folder."""
    return Checkpoints(tmp_path / "checkpoints", "", kept=2)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def alter(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def folder_for_file(made: Path) -> None:
    (made / "optimizer.pt").unlink()
    (made / "optimizer.pt").mkdir()


TEARS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no marker": (lambda made: (made / MARKER).unlink(), "it was not finished"),
    "an empty marker": (lambda made: (made / MARKER).write_text(""), "it was not finished"),
    "half a marker": (lambda made: truncate(made / MARKER), "it was not finished"),
    "no optimiser state": (lambda made: (made / "optimizer.pt").unlink(), "optimizer.pt is missing"),
    "half the weights": (
        lambda made: truncate(made / "model.safetensors"),
        "model.safetensors has 101 bytes, not 102",
    ),
    "one bit of the optimiser": (lambda made: alter(made / "optimizer.pt"), "optimizer.pt has other bytes"),
    "a nested file gone": (
        lambda made: (made / "rng" / "rng_state.pth").unlink(),
        "rng_state.pth is missing",
    ),
    "a folder for a file": (folder_for_file, "optimizer.pt is missing"),
}


def test_training_goes_on_from_the_newest_checkpoint_by_number(here: Checkpoints) -> None:
    for step in (5, 20, 100):
        saved(here, step)
    found = here.newest("sft")
    assert found
    assert here.path(found) == here.folder / "checkpoint-100"


def test_without_a_checkpoint_training_starts_anew(here: Checkpoints) -> None:
    assert here.newest("sft") is None
    here.folder.mkdir()
    assert here.newest("sft") is None


@pytest.mark.parametrize(("tear", "said"), TEARS.values(), ids=TEARS)
def test_a_torn_checkpoint_is_passed_over_removed_and_told(
    here: Checkpoints,
    tear: Callable[[Path], object],
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    saved(here, 10)
    torn = saved(here, 20)
    tear(torn)
    found = here.newest("sft")
    assert found
    assert found.step == 10
    assert f"sft: checkpoint-20 is passed over: {said}" in capsys.readouterr().err
    assert not torn.exists()


def test_a_checkpoint_that_a_kill_left_unfinished_does_not_count(
    here: Checkpoints, capsys: pytest.CaptureFixture[str]
) -> None:
    saved(here, 10, marked=False)
    assert here.newest("sft") is None
    assert "checkpoint-10 is passed over: it was not finished" in capsys.readouterr().err
    assert steps(here.folder) == []


def test_the_newest_few_and_the_best_by_validation_are_kept(here: Checkpoints) -> None:
    scores = {10: 3.0, 20: 1.5, 30: None, 40: 2.0, 50: float("nan"), 60: None}
    for step, score in scores.items():
        saved(here, step, score)
    assert steps(here.folder) == [20, 50, 60]
    best = here.best("sft")
    assert best
    assert (best.step, best.score) == (20, 1.5)
    saved(here, 70, 1.0)
    assert steps(here.folder) == [60, 70]


def test_where_the_best_is_damaged_the_next_best_is_taken_and_told(
    here: Checkpoints, capsys: pytest.CaptureFixture[str]
) -> None:
    for step, score in ((1, 1.0), (2, 3.0), (3, 2.0)):
        saved(here, step, score)
    alter(here.folder / "checkpoint-1" / "optimizer.pt")
    best = here.best("sft")
    assert best
    assert best.step == 3
    assert (
        "checkpoint-1, the best so far, is passed over: optimizer.pt has other bytes"
        in capsys.readouterr().err
    )
    for step in (2, 3):
        (here.folder / f"checkpoint-{step}" / "optimizer.pt").unlink()
    assert here.best("sft") is None


def test_machines_that_share_the_folder_make_a_checkpoint_count_at_the_same_time(
    here: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = Path.replace

    def as_another_does_so_too(path: Path, target: Path) -> Path:
        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", rename)
            patch.setenv("RANK", "1")
            patch.setattr(Checkpoints, "_prune", lambda _: None)  # which waits for rank 0's decision
            here.commit(1, None)
        return rename(path, target)

    made = saved(here, 1, marked=False)
    monkeypatch.setattr(Path, "replace", as_another_does_so_too)
    here.commit(1, None)
    found = here.newest("sft")
    assert found
    assert found.step == 1
    assert not list(made.glob(f".{MARKER}*"))


def test_of_trainings_that_were_never_validated_none_is_the_best(here: Checkpoints) -> None:
    saved(here, 10)
    assert here.best("sft") is None


def test_the_marker_names_every_file_with_its_digest(here: Checkpoints) -> None:
    made = saved(here, 1)
    told = json.loads((made / MARKER).read_text())
    assert {name: entry["sha256"] for name, entry in told["files"].items()} == {
        name: storage.sha256(content + b"1") for name, content in FILES.items()
    }
    assert (told["step"], told["processes"], told["score"]) == (1, 1, None)
    assert sorted(path.name for path in made.iterdir()) == sorted([MARKER, *(n.split("/")[0] for n in FILES)])


@pytest.fixture
def mirror(moto_s3: object) -> str:
    return f"s3://{moto_s3.bucket()}/store/.work/sft-0/checkpoints"  # type: ignore[attr-defined]


def machine(tmp_path: Path, name: str, mirror: str) -> Checkpoints:
    return Checkpoints(tmp_path / name, mirror, kept=2)


def objects(mirror: str) -> set[str]:
    fs, path = storage.open_fs(mirror)
    return {str(name).removeprefix(path).lstrip("/") for name in fs.find(path)}


def away(*_: object) -> None:
    raise storage.StorageError("s3://somewhere: cannot connect")


def test_another_machine_goes_on_from_the_copy_in_the_store(tmp_path: Path, mirror: str) -> None:
    one, other = machine(tmp_path, "one", mirror), machine(tmp_path, "other", mirror)
    for step in (1, 2, 3):
        saved(one, step)
    found = other.newest("sft")
    assert found
    assert found.step == 3
    assert {name: (other.path(found) / name).read_bytes() for name in FILES} == {
        name: content + b"3" for name, content in FILES.items()
    }
    assert {name.split("/")[0] for name in objects(mirror)} == {"checkpoint-2", "checkpoint-3"}
    one.remove_copies()
    assert objects(mirror) == set()


def test_a_torn_local_file_is_brought_anew_from_the_store(tmp_path: Path, mirror: str) -> None:
    one = machine(tmp_path, "one", mirror)
    alter(saved(one, 4) / "optimizer.pt")
    found = one.newest("sft")
    assert found
    assert (one.path(found) / "optimizer.pt").read_bytes() == FILES["optimizer.pt"] + b"4"


@pytest.mark.parametrize("gone", [MARKER, "optimizer.pt"])
def test_a_copy_that_is_not_whole_falls_back_to_the_one_before_and_can_be_made_again(
    tmp_path: Path, mirror: str, gone: str, capsys: pytest.CaptureFixture[str]
) -> None:
    one, other = machine(tmp_path, "one", mirror), machine(tmp_path, "other", mirror)
    saved(one, 1)
    saved(one, 2)
    fs, path = storage.open_fs(mirror)
    (name,) = (name for name in objects(mirror) if name.startswith("checkpoint-2/") and name.endswith(gone))
    fs.rm_file(f"{path}/{name}")
    found = other.newest("sft")
    assert found
    assert found.step == 1
    if gone != MARKER:  # a copy without a marker is nobody's yet
        assert "checkpoint-2 is passed over: optimizer.pt is missing" in capsys.readouterr().err
    saved(other, 2)
    third = machine(tmp_path, "third", mirror).newest("sft")
    assert third
    assert third.step == 2


def test_a_bad_checkpoint_here_costs_no_copy_that_another_machine_made(
    tmp_path: Path, mirror: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = machine(tmp_path, "one", mirror), machine(tmp_path, "other", mirror)
    made = saved(one, 1, marked=False)
    (made / "optimizer.pt").write_bytes(b"of another course of events")
    with monkeypatch.context() as patch:
        patch.setattr(storage, "upload", away)
        one.commit(1, None)
    saved(other, 1)
    alter(made / "optimizer.pt")
    found = one.newest("sft")
    assert found
    assert (one.path(found) / "optimizer.pt").read_bytes() == FILES["optimizer.pt"] + b"1"


def test_a_writer_who_comes_second_leaves_the_firsts_copy_whole(tmp_path: Path, mirror: str) -> None:
    one, other = machine(tmp_path, "one", mirror), machine(tmp_path, "other", mirror)
    saved(one, 1)
    late = saved(other, 1, marked=False)
    (late / "optimizer.pt").write_bytes(b"of another course of events")
    other.commit(1, None)
    third = machine(tmp_path, "third", mirror)
    found = third.newest("sft")
    assert found
    assert (third.path(found) / "optimizer.pt").read_bytes() == FILES["optimizer.pt"] + b"1"


def test_training_goes_on_while_the_store_is_away_and_says_so(
    tmp_path: Path, mirror: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    one = machine(tmp_path, "one", mirror)
    with monkeypatch.context() as patch:
        for what in ("upload", "put_new", "read_bytes", "open_fs"):
            patch.setattr(storage, what, away)
        for step in (1, 2, 3):
            saved(one, step)
        one.remove_copies()
    told = capsys.readouterr().err
    assert "checkpoint-1 was not copied to the store" in told
    assert "older checkpoints stay in the store for now" in told
    assert steps(one.folder) == [2, 3]
    assert objects(mirror) == set()
    found = one.newest("sft")
    assert found
    assert found.step == 3
