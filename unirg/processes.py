"""Child processes that never outlive their parent."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from unirg.errors import UserError

STOP_S = 20.0
"""How long a server may take to finish what it has under way."""


def die_with_parent(signum: int = signal.SIGKILL, parent: int | None = None) -> None:
    """Ask Linux to send this process a signal when the thread that started it ends, even by kill -9.

    Call it first thing in the child. Elsewhere than on Linux it does nothing.

    Args:
        parent: id of the process that started this one. A child takes a while to come here; without the id
            a parent that ended in the meantime goes unnoticed.
    """
    if not os.path.exists("/proc/self"):
        return
    parent = parent or os.getppid()
    set_pdeathsig = 1  # PR_SET_PDEATHSIG of <sys/prctl.h>
    ctypes.CDLL(None, use_errno=True).prctl(set_pdeathsig, signum)
    if os.getppid() != parent:  # it ended before the call
        os.kill(os.getpid(), signum)


def start_worker() -> None:
    """Initialise a spawned pool's worker: Ctrl-C is the parent's to handle, and its end is the worker's."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    starter = multiprocessing.parent_process()
    die_with_parent(parent=starter.pid if starter else None)


def end_descendants(grace_s: float = 10.0) -> None:
    """End every process that this one started, directly or not: SIGTERM, and SIGKILL after the grace."""
    found = _descendants(os.getpid())
    _signal(found, signal.SIGTERM)
    deadline = time.monotonic() + grace_s
    while _running(found) and time.monotonic() < deadline:
        time.sleep(0.05)
    _signal(_running(found), signal.SIGKILL)


def _descendants(root: int) -> dict[int, str]:
    """Process id -> start time, which tells a process from a later one with its id; empty but on Linux."""
    known = {int(path.name): stat for path in Path("/proc").glob("[0-9]*") if (stat := _stat(int(path.name)))}
    found: dict[int, str] = {}
    parents = {root}
    while parents:
        parents = {pid for pid, (_, parent, _) in known.items() if parent in parents and pid not in found}
        found |= {pid: known[pid][2] for pid in parents}
    return found


def _stat(pid: int) -> tuple[str, int, str] | None:
    """(state, parent, start time) of a process; None once it is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()  # the name before it may hold anything
    return fields[0], int(fields[1]), fields[19]


def _running(found: dict[int, str]) -> dict[int, str]:
    stats = {pid: _stat(pid) for pid in found}
    return {
        pid: found[pid] for pid, stat in stats.items() if stat and stat[0] != "Z" and stat[2] == found[pid]
    }


def _signal(found: dict[int, str], number: signal.Signals) -> None:
    for pid in found:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


@contextmanager
def server(command: list[str], what: str, log: Path, timeout_s: float = 120.0) -> Iterator[str]:
    """Run a server of ours as a child; yield what it wrote into its ready file: its URL.

    Args:
        command: the server's command line; `--ready-file PATH --die-with-parent PID` is added to it.
        log: where its output goes; the last lines are shown if it does not start.

    Raises:
        UserError: it ended before it was ready, or was not ready in time.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, log.open("wb") as output:
        ready = Path(folder) / "ready"
        started = [*command, "--ready-file", str(ready), "--die-with-parent", str(os.getpid())]
        child = subprocess.Popen(started, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + timeout_s
            while not ready.exists():
                if child.poll() is not None or time.monotonic() > deadline:
                    raise UserError(f"{what} did not start{_ending(child.poll())}: {_tail(log)} (log: {log})")
                time.sleep(0.05)
            yield ready.read_text().strip()
        finally:
            child.terminate()
            try:
                child.wait(STOP_S)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


def _ending(code: int | None) -> str:
    return " in time" if code is None else f" (exit code {code})"


def _tail(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return " | ".join(lines[-3:]) or "it said nothing"
