"""What the tests of scoring's faults share: an archive, and what an undisturbed run makes of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.scoring import archives, clients
from tests.scoring.stub_server import Behaviour, question_of, served
from unirg.artifact import Artifact

STUDIES = 150
"""In three ranges, the last of 22: ten segments at least."""
QUICK = Behaviour(latency_s=0.01)


@dataclass(frozen=True)
class World:
    """An archive, and the artifact that an undisturbed run makes of it."""

    archive: str
    undisturbed: Artifact
    questions: dict[str, str]
    """study -> the beginning of its question, as the stub knows it."""

    @property
    def digest(self) -> str:
        return clients.digest(self.undisturbed)


def make(folder: Path, studies: int = STUDIES) -> World:
    archive = archives.make(str(folder / "archive"), studies)
    with served(QUICK, folder / "log") as stub:
        made = clients.scored(archive.uri, stub.url, str(folder / "undisturbed"))
    clients.assert_complete(made, studies)
    texts = {row["study_id"]: row["text"] for row in clients.predictions(made)}
    assert len(set(texts.values())) == studies
    return World(archive.uri, made, {study: question_of(text) for study, text in texts.items()})


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """150 drawn studies."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("world")
        patch.setenv("UNIRG_CACHE", str(folder / "cache"))
        return make(folder)
