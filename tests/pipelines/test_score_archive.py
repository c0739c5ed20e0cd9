"""The pipeline that scores an archive, by KFP's local runner: with a local server and with a cluster's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.compile import compile_all
from tests import toy
from tests.conftest import S3
from tests.kubernetes import Server
from tests.scoring.stub_server import Behaviour, served
from tests.serving.kserve import KServe, make_checkpoint
from unirg.artifact import open_artifact

ROOT = Path(__file__).parents[2]
RUN = """
import json, sys, warnings
warnings.filterwarnings("ignore")
from kfp import local
from pipelines.score_archive import score_archive
given = json.loads(sys.argv[1])
local.init(local.SubprocessRunner(use_venv=False), pipeline_root=given.pop("root"), raise_on_error=True)
score_archive(**given)
"""
SCORING = ["splits=[test]", "limit=3", "max_tokens=8", "patience_s=1", "truncated=keep"]


def run(folder: Path, environment: dict[str, str], **given: Any) -> subprocess.CompletedProcess[str]:
    """The pipeline in a process of its own: KFP's runner takes over the console and the log."""
    given |= {"root": str(folder / "kfp"), "score_recipe": "toy/score"}
    given.setdefault("score_overrides", SCORING)
    own = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-c", RUN, json.dumps(given)],
        cwd=folder,
        env=os.environ | own | environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> str:
    return toy.make_cohort(str(tmp_path_factory.mktemp("archive") / "store"), 6).uri


def test_an_archive_is_scored_by_a_server_that_ends_with_the_scoring(tmp_path: Path, cohort: str) -> None:
    store = str(tmp_path / "store")
    checkpoint = toy.make_checkpoint(store)
    done = run(tmp_path, {}, store=store, checkpoint=checkpoint.uri, archive=cohort, serve_recipe="toy/serve")
    assert done.returncode == 0, done.stdout + done.stderr
    (predictions,) = Path(store, "score").iterdir()
    made = open_artifact(str(predictions), "score")
    assert made.manifest.counts["studies"] == 3
    assert made.manifest.inputs["model"].digest == checkpoint.digest


def test_the_service_in_the_cluster_is_taken_down_when_scoring_fails(
    tmp_path: Path, cohort: str, moto_s3: S3
) -> None:
    remote = f"s3://{moto_s3.bucket()}/store"
    store, checkpoint = str(tmp_path / "store"), make_checkpoint(remote)
    nobody = Behaviour(digest="", always={"unavailable": [""]})
    with Server().running() as server, served(nobody, tmp_path / "asked") as stub:
        kubeconfig = server.kubeconfig(tmp_path / "config")
        kserve = KServe(kubeconfig)
        kserve.url = stub.url.removesuffix("/v1")
        with kserve.at_work():
            done = run(
                tmp_path,
                moto_s3.environment | {"KUBECONFIG": str(kubeconfig)},
                store=store,
                checkpoint=checkpoint.uri,
                archive=cohort,
                serve_recipe=str(recipe(tmp_path)),
            )
        assert done.returncode != 0, done.stdout + done.stderr
        assert "'score'" in done.stdout + done.stderr
        assert server.count("POST /apis/serving.kserve.io/v1beta1") == 1
        assert server.count("DELETE /apis/serving.kserve.io/v1beta1") == 1
        assert kserve.services() == []
    assert (tmp_path / "asked").read_text()
    assert not list(Path(store).glob("score/*/manifest.json"))


def recipe(folder: Path) -> Path:
    """A service that is asked by the gateway's address, which leads to the stub."""
    path = folder / "serve.yaml"
    path.write_text(yaml.safe_dump({"cluster": {"reach": "gateway", "ready_timeout_s": 60}}))
    return path


def test_the_endpoint_is_stopped_after_the_tasks_that_use_it_whatever_became_of_them(tmp_path: Path) -> None:
    (path,) = (one for one in compile_all(tmp_path) if one.stem == "score_archive")
    spec = next(yaml.safe_load_all(path.read_text()))
    found = spec["root"]["dag"]["tasks"]
    stop = found["stop"]
    assert stop["triggerPolicy"] == {"strategy": "ALL_UPSTREAM_TASKS_COMPLETED"}
    (group,) = stop["dependentTasks"]
    inside = spec["components"][found[group]["componentRef"]["name"]]["dag"]["tasks"]
    assert inside.keys() == {"serve", "score", "record"}
    assert "dependentTasks" not in found["archive"]  # staged before anything is served
    # It is told of the endpoint by the same inputs as `serve`, as no task's output reaches it.
    names = stop["inputs"]["parameters"].keys() - {"status"}
    assert names == inside["serve"]["inputs"]["parameters"].keys()
