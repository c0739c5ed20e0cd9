"""One toy policy, in memory and behind a running server, for all tests of serving."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import toy
from unirg import checkpoint
from unirg.artifact import Artifact
from unirg.serving.endpoint import LocalEndpoint, ServeConfig, open_local, serve
from unirg.serving.generation import Policy


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("serving") / "store")


@pytest.fixture(scope="session")
def model(store: str) -> Artifact:
    return toy.make_checkpoint(store)


@pytest.fixture(scope="session")
def model_directory(model: Artifact) -> Path:
    return model.directory / checkpoint.MODEL


@pytest.fixture(scope="session")
def policy(model_directory: Path) -> Policy:
    return Policy(model_directory)


@pytest.fixture(scope="session")
def endpoint(store: str) -> LocalEndpoint:
    """Of a policy that writes exactly as many tokens as it is asked for."""
    endless = toy.make_checkpoint(store, endless=True)
    return open_local(serve(ServeConfig(model_name="toy"), endless, store))


@pytest.fixture(scope="session")
def base_url(endpoint: LocalEndpoint) -> Iterator[str]:
    """A running server."""
    with endpoint.connect() as url:
        yield url
