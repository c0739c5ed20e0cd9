from __future__ import annotations

import pytest

from tests import toy
from unirg.artifact import Artifact


@pytest.fixture(scope="session")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """24 studies: 15 in test, 9 in zero_shot; every third has a prior."""
    return toy.make_cohort(str(tmp_path_factory.mktemp("scoring") / "store"), 24)


@pytest.fixture
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("store"))
