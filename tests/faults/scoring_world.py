"""What the tests of scoring's faults share: an archive, and what an undisturbed run makes of it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pytest

from tests.scoring import archives, clients
from tests.scoring.stub_server import Behaviour, question_of, served
from unirg.artifact import Artifact

STUDIES = 150
"""In three ranges, the last of 22: ten segments at least."""
SOAK_SEEDS = int(os.environ.get("UNIRG_SOAK_SEEDS", "10"))
FEW = [0, *(pytest.param(seed, marks=pytest.mark.soak) for seed in range(1, SOAK_SEEDS))]
"""Seeds of a fault: one in `make test`, the others in `make soak`."""
QUICK = Behaviour(latency_s=0.01)


class Happened(Protocol):
    """Tells the soak's summary how often what was injected in a run."""

    def __call__(self, fault: str, times: Mapping[str, int], /) -> None: ...


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
