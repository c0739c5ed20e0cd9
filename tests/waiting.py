"""Waiting for what happens in another thread or process."""

from __future__ import annotations

import time
from collections.abc import Callable


def until(
    reached: Callable[[], object], seconds: float = 30, told: Callable[[], str] = lambda: "waited in vain"
) -> None:
    """Wait until `reached` is true; fails with what is `told` where that takes longer."""
    deadline = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < deadline, told()
        time.sleep(0.005)
