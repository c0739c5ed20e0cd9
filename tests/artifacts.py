"""A small stage and its artifact, for the tests of what every stage does."""

from __future__ import annotations

from unirg import artifact
from unirg.artifact import Artifact
from unirg.config import Config, operational


class Inner(Config):
    depth: int = 2
    """Changes the output."""
    threads: int = operational(1)
    """Does not."""


class Settings(Config):
    rate: float = 1e-4
    """Changes the output."""
    name: str = "a"
    """Changes the output."""
    parts: tuple[str, ...] = ()
    """Changes the output."""
    inner: Inner = Inner()
    """Has both kinds."""
    workers: int = operational(0)
    """Does not change the output."""
    url: str = operational("")
    """Does not change the output."""


def build(
    store: str, content: str = "content", log: str = "log", stage: str = "demo", config: Config | None = None
) -> Artifact:
    """A small artifact of three files, one of them in a folder and one a log."""
    with artifact.draft(store, stage, 1, config or Settings(), {"corpus": "d1"}) as draft:
        if draft.committed:
            return draft.committed
        for name, text in (("data.txt", content), ("deep/er/data.txt", content * 2), ("logs/log.txt", log)):
            path = draft.out / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return draft.commit({"files": 2})


def whole(made: Artifact) -> bool:
    """Every file, logs included, is there as the manifest says; anything else raises."""
    for name in made.manifest.files | made.manifest.logs:
        made.path(name)
    return True
