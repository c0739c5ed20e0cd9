"""Child processes that never outlive their parent."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from unirg.errors import UserError

STOP_S = 20.0
"""How long a server may take to finish what it has under way."""
LOG_LINES = 8
"""How much of its log is shown when it fails."""


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


@contextmanager
def interrupts_kept_from_children() -> Iterator[None]:
    """A process that this thread starts in the block never gets Ctrl-C, not even while it starts."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def on_sigterm(told: Callable[[], object]) -> Iterator[None]:
    """In the block SIGTERM calls `told`; in the main thread alone, which Python gives signals to."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: told())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def start_worker() -> None:
    """Initialise a spawned pool's worker: it ends with its parent."""
    starter = multiprocessing.parent_process()
    die_with_parent(parent=starter.pid if starter else None)


def end_descendants(grace_s: float = 10.0) -> None:
    """End every process that this one started, directly or not: SIGTERM, and SIGKILL after the grace."""
    import psutil

    found = psutil.Process().children(recursive=True)
    for child in found:
        with suppress(psutil.NoSuchProcess):
            child.terminate()
    _, alive = psutil.wait_procs(found, grace_s)
    for child in alive:
        with suppress(psutil.NoSuchProcess):
            child.kill()


@contextmanager
def server(
    command: list[str],
    what: str,
    timeout_s: float = 120.0,
    environment: Mapping[str, str | None] | None = None,
) -> Iterator[str]:
    """Run a server of ours as a child; yield what it wrote into its ready file: its URL.

    It ends with the thread that calls this, even by kill -9, and Ctrl-C reaches it through us alone.

    Args:
        command: the server's command line; `--ready-file PATH --die-with-parent PID` is added to it.
        environment: variables set over this process's own; None leaves one out.

    Raises:
        UserError: it ended before it was ready, or was not ready in time; its last log lines say why.
    """
    variables = {**os.environ, **(environment or {})}
    with tempfile.TemporaryFile() as log, tempfile.TemporaryDirectory(prefix="unirg-") as folder:
        ready = Path(folder, "url")
        child = subprocess.Popen(
            [*command, "--ready-file", str(ready), "--die-with-parent", str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env={name: value for name, value in variables.items() if value is not None},
        )
        url = ""
        try:
            url = _wait_until_ready(child, what, ready, log, timeout_s)
            shutil.rmtree(folder)  # so that nothing is left if we are killed
            yield url
        finally:
            if url and child.poll():  # 0: it was told to end, by whoever ended us
                print(_ended(child, what, log), file=sys.stderr)
            _stop(child)


def _wait_until_ready(
    child: subprocess.Popen[bytes], what: str, ready: Path, log: IO[bytes], timeout_s: float
) -> str:
    until = time.monotonic() + timeout_s
    while not ready.exists():
        if child.poll() is not None:
            raise UserError(_ended(child, what, log))
        if time.monotonic() > until:
            raise UserError(f"{what} was not ready after {timeout_s:g} s: raise its time-out")
        time.sleep(0.02)
    return ready.read_text().strip()


def _ended(child: subprocess.Popen[bytes], what: str, log: IO[bytes]) -> str:
    """How a server ended; our servers log nothing of a request."""
    log.seek(0)
    lines = log.read().decode(errors="replace").splitlines()[-LOG_LINES:]
    return "\n  ".join([f"{what} ended with exit code {child.returncode}; its last lines:", *lines])


def _stop(child: subprocess.Popen[bytes]) -> None:
    child.terminate()
    try:
        child.wait(STOP_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def main() -> None:
    """`python -m unirg.processes PARENT COMMAND ...`: become a command that ends with its parent."""
    die_with_parent(parent=int(sys.argv[1]))  # Linux keeps the request across exec
    os.execvp(sys.argv[2], sys.argv[2:])


if __name__ == "__main__":
    main()
