"""Local processes under torchrun: nothing of them survives a failure, a signal or the launcher's end."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest

from unirg.errors import UserError
from unirg.training import launch, torchrun

ROOT = Path(__file__).parents[2]
PRELUDE = """
import os, signal, sys, time
from pathlib import Path
rank, folder = int(os.environ["RANK"]), Path(sys.argv[1])
def here():
    (folder / f"aside-{rank}").write_text(str(os.getpid()))
    (folder / f"aside-{rank}").rename(folder / f"pid-{rank}")
    while len(list(folder.glob("pid-*"))) < 2:
        time.sleep(0.01)
"""
SAVING = """
def save(*_):
    time.sleep(0.3)
    (folder / f"saved-{rank}").touch()
    sys.exit(75)
signal.signal(signal.SIGTERM, save)
here()
print("at work", flush=True)
while True:
    time.sleep(0.1)
"""


def command(script: str, folder: Path) -> list[str]:
    """What every rank runs: no torch, as none of this is about training."""
    return [sys.executable, "-S", "-c", PRELUDE + script, str(folder)]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _ended(pid: int) -> bool:
    return not alive(pid)


def soon(true: Callable[[], object], within_s: float = 40) -> bool:
    until = time.monotonic() + within_s
    while not true():
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True


@pytest.fixture
def lines() -> list[str]:
    return []


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Where ranks leave their ids; none of them may be left at the end."""
    yield tmp_path
    for path in tmp_path.glob("pid-*"):
        pid = int(path.read_text())
        left = not soon(functools.partial(_ended, pid), 5)
        if left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        assert not left, f"{path.name} is left"


def test_every_rank_runs_on_loopback_and_the_first_one_is_heard(lines: list[str], folder: Path) -> None:
    script = """
here()
names = "RANK LOCAL_RANK WORLD_SIZE MASTER_ADDR OMP_NUM_THREADS DS_ACCELERATOR".split()
print(*(os.environ.get(name) for name in names))
print("an error line", file=sys.stderr)
"""
    launch.local(2, command(script, folder), echo=lines.append)
    assert sorted(lines) == ["0 0 2 127.0.0.1 1 cpu", "an error line"]


def test_a_rank_that_dies_takes_one_that_hangs_along_and_is_told(lines: list[str], folder: Path) -> None:
    script = """
if rank == 0:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
here()
if rank == 1:
    print("a word of the failing rank")
    print("unirg: the judge is down", file=sys.stderr)
    sys.exit(3)
time.sleep(1000)
"""
    with pytest.raises(launch.LaunchError) as caught:
        launch.local(2, command(script, folder), echo=lines.append)
    told = str(caught.value)
    assert told.startswith("rank 1 ended with exit code 3: the same command goes on from the last checkpoint")
    assert "unirg: the judge is down" in told
    assert "a word of the failing rank" not in told  # it may quote a report
    assert "a word of the failing rank" in lines


@pytest.mark.parametrize(
    ("ends", "code"),
    [
        ([(0, 1), (1, -9)], -9),  # one missed its peer, which the kernel had killed
        ([(0, 75), (1, 2)], 2),  # one was told to end, and saved
        ([(1, -11), (0, -15)], -11),
        ([(1, 1), (0, -15)], 1),
        ([(0, 75), (1, 75)], 75),  # a node that is drained
    ],
)
def test_the_rank_that_is_told_is_the_cause(
    ends: list[tuple[int, int]], code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(torchrun.FAILURE_FILE, str(tmp_path / "failure"))
    killed_after_the_grace = (9, SimpleNamespace(exitcode=-9, local_rank=0, timestamp=130))
    together = [(rank, SimpleNamespace(exitcode=one, local_rank=0, timestamp=100)) for rank, one in ends]
    failures = dict([*together, killed_after_the_grace])
    assert torchrun._tell(SimpleNamespace(failures=failures), tmp_path) == (code if code > 0 else 128 - code)
    noted = json.loads((tmp_path / "failure").read_text())
    assert (noted["rank"], noted["exit_code"]) in ends
    assert noted["exit_code"] == code


@pytest.mark.parametrize(
    ("code", "failure", "error", "told"),
    [
        (
            2,
            '{"rank": 1, "exit_code": 2}',
            UserError,
            "rank 1 ended with exit code 2; its last lines:\n  unirg: x",
        ),
        (
            137,
            '{"rank": 0, "exit_code": -9}',
            launch.LaunchError,
            "rank 0 ended by SIGKILL .*lower micro_batch",
        ),
        (75, '{"rank": 0, "exit_code": 75}', SystemExit, "75"),
        (75, "", SystemExit, "75"),
        (-9, "", launch.LaunchError, "torchrun ended by SIGKILL before any rank did"),
    ],
)
def test_the_way_in_which_a_rank_ended_decides_whether_to_try_again(
    code: int, failure: str, error: type[BaseException], told: str
) -> None:
    with pytest.raises(error, match=told):
        raise launch._failed(code, failure, ["Findings: no effusion.", "unirg: x"])


LAUNCHER = """
import sys
from unirg.training import launch
launch.local(2, sys.argv[1:], grace_s=20, echo=lambda line: print(line, flush=True))
"""


@pytest.fixture
def launcher(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A launcher of ranks that save a checkpoint when they are told to end; all are at work."""
    process = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, *command(SAVING, folder)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "at work\n"
    yield process
    process.kill()
    process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.soak)])
def test_a_signal_is_passed_on_as_a_request_to_save_and_waited_for(
    launcher: subprocess.Popen[str], folder: Path, number: signal.Signals
) -> None:
    os.killpg(launcher.pid, number)  # what a terminal does, and a shell that is told to end
    _, errors = launcher.communicate(timeout=60)
    assert sorted(path.name for path in folder.glob("saved-*")) == ["saved-0", "saved-1"]
    if number == signal.SIGTERM:
        assert launcher.returncode == os.EX_TEMPFAIL
    else:
        assert errors.rstrip().endswith("KeyboardInterrupt")


def test_ranks_save_and_end_when_their_launcher_is_killed(
    launcher: subprocess.Popen[str], folder: Path
) -> None:
    launcher.kill()
    assert soon(lambda: len(list(folder.glob("saved-*"))) == 2)


@pytest.mark.soak
def test_ranks_end_when_torchrun_is_killed(launcher: subprocess.Popen[str], folder: Path) -> None:
    (child,) = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    os.kill(int(child), signal.SIGKILL)
    _, errors = launcher.communicate(timeout=60)
    assert "torchrun ended by SIGKILL" in errors
    assert list(folder.glob("saved-*")) == []  # there was no time to
