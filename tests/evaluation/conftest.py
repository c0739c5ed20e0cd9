"""A world to evaluate, and a judge that answers."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.evaluation.worlds import World
from unirg import processes


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "store")


@pytest.fixture(scope="module")
def judge_url() -> Iterator[str]:
    """The offline judge, running: one a module, so that no other module's tests can be its end."""
    command = [sys.executable, "-m", "unirg.metrics.offline_judge"]
    with processes.server(command, "the offline judge") as url:
        yield url
