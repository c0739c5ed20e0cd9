"""Fixtures of the metrics' tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import hub_server
from tests.hub_server import Hub
from tests.originals import (
    write_originals,
)


@pytest.fixture
def originals(tmp_path: Path) -> Path:
    return write_originals(tmp_path / "mirror")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The hub's own client, in this process, against a hub on loopback with the files of `originals`."""
    from huggingface_hub import constants

    root = tmp_path / "mirror"
    with hub_server.serving(root if root.is_dir() else write_originals(root)) as serving:
        monkeypatch.setattr(constants, "ENDPOINT", serving.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", serving.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield serving
