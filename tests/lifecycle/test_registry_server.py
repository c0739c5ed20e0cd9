"""The registry through an MLflow server, where no lock keeps writers apart: what is promised there holds."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import S3
from tests.lifecycle.stores import made
from tests.lifecycle.writers import together
from unirg.artifact import Artifact
from unirg.lifecycle.registry import Registry

SERVE = """
import sys
from mlflow.server import app
from werkzeug.serving import make_server
server = make_server("127.0.0.1", 0, app, threaded=True)
print(server.port, flush=True)
server.serve_forever()
"""


@pytest.fixture
def server(tracking_uri: str, tmp_path: Path) -> Iterator[str]:
    """MLflow's own REST application on the database; its launcher takes half a minute and more workers."""
    stores = {"_MLFLOW_SERVER_FILE_STORE": tracking_uri, "_MLFLOW_SERVER_REGISTRY_STORE": tracking_uri}
    places = {"_MLFLOW_SERVER_ARTIFACT_ROOT": str(tmp_path / "artifacts"), "MLFLOW_DISABLE_TELEMETRY": "true"}
    with (tmp_path / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", SERVE],
            env={**os.environ, **stores, **places},
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    assert process.stdout is not None
    port = process.stdout.readline().strip()
    assert port, (tmp_path / "server.log").read_text()[-2000:]
    yield f"http://127.0.0.1:{port}"
    process.kill()
    process.wait()
    process.stdout.close()


@pytest.fixture
def checkpoints(moto_s3: S3) -> list[Artifact]:
    where = f"s3://{moto_s3.bucket()}/store"
    return [made(where, "sft", {}, name=f"policy {number}") for number in range(8)]


def test_processes_that_race_through_a_server_make_one_version_and_one_promotion(
    server: str, tracking_uri: str, checkpoints: list[Artifact]
) -> None:
    registry = Registry(server)
    assert set(together("register", server, checkpoints[0].uri, count=4)) == {1}
    assert [one.digest for one in registry.versions()] == [checkpoints[0].digest]
    for each in checkpoints:
        registry.register(each)
    numbers = [one.number for one in registry.versions()]
    assert len(numbers) == 8
    told = together("promote", server, "own", " ".join(map(str, numbers)), count=4)
    assert sorted(told)[1:] == ["outdated"] * 3
    (promotion,) = registry.history()
    assert promotion.version in numbers
    assert registry.alias() == promotion.version
    assert Registry(tracking_uri).history() == [promotion]
