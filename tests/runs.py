"""Runs of the demo as a user starts them: a process group of its own that can be watched and killed."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from unirg import artifact

ROOT = Path(__file__).parents[1]
IU_XRAY = ROOT.parent / "shared" / "data" / "iu_xray"
PREDICTOR, JUDGE = "unirg.serving.predictor", "unirg.metrics.offline_judge"
TASK = "kfp.dsl.executor_main"
MARK = "UNIRG_TEST_RUN"
"""Environment variable by which the processes of a run are found again."""
COMMITTED = re.compile(r"^ *(\S.*?)  Output: '(.*)'$", re.MULTILINE)
"""The demo's line about a finished task: its name and its artifact's URI."""


@dataclass
class Demo:
    """A demo under way, with its output in `log`."""

    process: subprocess.Popen[bytes]
    log: Path
    started: float = field(default_factory=time.monotonic)

    @property
    def output(self) -> str:
        return self.log.read_text()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    def processes(self) -> dict[int, str]:
        """Every running process of this run by id, with its command line, orphans included."""
        return _commands(f"{MARK}={self.log}")

    def wait(self, timeout_s: float = 280.0) -> int:
        return self.process.wait(timeout_s)

    def wait_until(self, reached: Callable[[], bool], timeout_s: float = 240.0) -> None:
        """Wait for a moment of the run; fails if it ends or takes longer."""
        deadline = time.monotonic() + timeout_s
        while not reached():
            assert self.process.poll() is None, f"the demo ended:\n{self.output}"
            assert time.monotonic() < deadline, f"not reached in time:\n{self.output}"
            time.sleep(0.05)

    def signal_group(self, number: signal.Signals) -> None:
        """What a terminal does at Ctrl-C, with any signal."""
        os.killpg(self.process.pid, number)

    def wait_until_gone(self, timeout_s: float = 30.0) -> dict[int, str]:
        """Wait for the end of every process of this run; what is left after the time."""
        deadline = time.monotonic() + timeout_s
        while (left := self.processes()) and time.monotonic() < deadline:
            time.sleep(0.1)
        return left


@dataclass(frozen=True)
class Finished:
    """A demo that has ended."""

    exit_code: int
    output: str
    seconds: float
    servers: frozenset[str]
    """Which of our servers were seen running."""
    left: tuple[str, ...]
    """Processes that were still there after it had ended."""


def finished(folder: Path, *arguments: str, environment: Mapping[str, str] = os.environ) -> Finished:
    """Run a demo to its end."""
    with demo(folder, *arguments, environment=environment) as started, watched(started) as servers:
        code, seconds = started.wait(550), started.seconds
        return Finished(
            code, started.output, seconds, frozenset(servers), tuple(started.processes().values())
        )


class watched:
    """Looks, several times a second, which of our servers a run has started."""

    def __init__(self, demo: Demo) -> None:
        self.demo, self.seen, self.ended = demo, set[str](), threading.Event()
        self.thread = threading.Thread(target=self._look)

    def _look(self) -> None:
        while not self.ended.wait(0.2):
            commands = " ".join(self.demo.processes().values())
            self.seen |= {server for server in (PREDICTOR, JUDGE) if server in commands}

    def __enter__(self) -> set[str]:
        self.thread.start()
        return self.seen

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.thread.join()


@contextmanager
def demo(folder: Path, *arguments: str, environment: Mapping[str, str] = os.environ) -> Iterator[Demo]:
    """Start `python -m pipelines.demo` in `folder`, which takes its output, cache and temporary files.

    What is still running at the end is killed.
    """
    log = folder / f"output-{len(list(folder.glob('output-*')))}.txt"
    (folder / "tmp").mkdir(exist_ok=True)
    short = tempfile.mkdtemp()
    # By a short name: Torch's workers open sockets there, whose path must not exceed 107 bytes.
    temporary = Path(short, "t")
    temporary.symlink_to(folder / "tmp")
    own = {
        "UNIRG_CACHE": str(folder / "cache"),
        "TMPDIR": str(temporary),
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",
        MARK: str(log),
    }
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "pipelines.demo", *arguments],
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            cwd=folder,
            env={**environment, **own},
            start_new_session=True,
        )
    started = Demo(process, log)
    try:
        yield started
    finally:
        for pid in started.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()
        shutil.rmtree(short)


def _commands(mark: str) -> dict[int, str]:
    """Running processes with `mark` in their environment, wherever they were reparented to."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (folder / "environ").read_bytes().split(b"\0"):
                command = (folder / "cmdline").read_bytes()
                found[int(folder.name)] = command.replace(b"\0", b" ").decode(errors="replace").strip()
        except OSError:  # it has ended, or is not ours
            continue
    return found


def manifests(store: Path) -> list[Path]:
    return sorted(path for path in store.glob("*/*/manifest.json") if path.parts[-3] not in (".work", "kfp"))


def _kfp_logs(folder: Path) -> Iterator[Path]:
    """KFP's log of a run: it lies in a store that is a folder, else below runs/."""
    for where, _, files in os.walk(folder):  # which bears with folders that go away, as Path.glob does not
        if "kfp.log" in files:
            yield Path(where, "kfp.log")


def reaches(demo: Demo, task: str, server: str = "") -> None:
    """Wait until a task of this name is under way, with `server` running for it."""
    before = {log: log.stat().st_size for log in _kfp_logs(demo.log.parent)}

    def under_way() -> bool:
        log = next(_kfp_logs(demo.log.parent), None)
        if log is None:
            return False
        with log.open() as file:
            file.seek(before.get(log, 0))
            latest = [line for line in file if "Executing task" in line][-1:]
        commands = " ".join(demo.processes().values())
        return bool(latest) and f"'{task}" in plain(latest[0]) and TASK in commands and server in commands

    demo.wait_until(under_way)


def plain(line: str) -> str:
    """A line of KFP's log without its colours."""
    return line.replace("\x1b[96m", "").replace("\x1b[0m", "")


def digests(store: Path) -> dict[str, str]:
    """`stage/key` -> output digest of every artifact in a local store."""
    found = {}
    for path in manifests(store):
        opened = artifact.open_artifact(str(path.parent))
        found[f"{opened.manifest.stage}/{path.parent.name}"] = opened.digest
    return found


def assert_nothing_half_written(store: Path) -> None:
    """Every folder where an artifact may lie holds a whole one, and every file has its manifest's digest."""
    own = {"kfp", "shards", ".work", "audit", "cycles"}
    folders = [path for path in store.glob("*/*") if path.is_dir() and path.parts[-2] not in own]
    for folder in folders:
        opened = artifact.open_artifact(str(folder))
        for name in (*opened.manifest.files, *opened.manifest.logs):
            opened.path(name)
    for shard in store.glob("shards/**/*"):
        if shard.is_file():
            assert shard.name.split(".")[0] == artifact.storage.sha256_file(shard), shard
