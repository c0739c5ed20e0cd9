"""A world to evaluate, and a judge that answers."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.evaluation.worlds import World


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "store")


@pytest.fixture(scope="session")
def judge_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The offline judge, running."""
    ready = tmp_path_factory.mktemp("judge") / "url"
    command = [sys.executable, "-m", "unirg.metrics.offline_judge", "--ready-file", str(ready)]
    process = subprocess.Popen([*command, "--die-with-parent"])
    try:
        deadline = time.monotonic() + 60
        while not ready.exists():
            assert process.poll() is None, "the offline judge ended"
            assert time.monotonic() < deadline, "the offline judge did not start in 60 s"
            time.sleep(0.05)
        yield ready.read_text()
    finally:
        process.terminate()
        process.wait(10)
