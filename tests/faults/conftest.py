from __future__ import annotations

import pytest

from tests.faults import scoring_world
from tests.faults.scoring_world import World


@pytest.fixture(scope="session")
def scoring(tmp_path_factory: pytest.TempPathFactory) -> World:
    """An archive of 150 drawn studies, and what an undisturbed run makes of it."""
    folder = tmp_path_factory.mktemp("scoring")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNIRG_CACHE", str(folder / "cache"))
        return scoring_world.make(folder)
