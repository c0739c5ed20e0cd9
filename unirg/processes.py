"""Child processes that never outlive their parent."""

from __future__ import annotations

import ctypes
import os
import signal


def die_with_parent(signum: int = signal.SIGKILL) -> None:
    """Ask Linux to send this process a signal when its parent ends, even by kill -9.

    Call it first thing in the child. Elsewhere than on Linux it does nothing.
    """
    parent = os.getppid()
    if not hasattr(ctypes, "CDLL") or not os.path.exists("/proc/self"):
        return
    set_pdeathsig = 1  # PR_SET_PDEATHSIG of <sys/prctl.h>
    ctypes.CDLL(None, use_errno=True).prctl(set_pdeathsig, signum)
    if os.getppid() != parent:  # the parent ended before the call
        os.kill(os.getpid(), signum)


def start_worker() -> None:
    """Initialise a pool's worker: Ctrl-C is the parent's to handle, and its end is the worker's."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with_parent()
