"""What is told of a TrainJob that failed: the pod that caused it, how it ended, what to do, no report."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.controller import Controller
from tests.kubernetes import Server
from unirg import cluster
from unirg.cluster import Cluster, Object
from unirg.errors import UserError
from unirg.training import launch

NAME = "unirg-sft-0123456789abcdef"


@pytest.fixture
def server() -> Iterator[Server]:
    with Server().running() as running:
        yield running


@pytest.fixture
def api(server: Server, tmp_path: Path) -> Cluster:
    return cluster.connect(kubeconfig=str(server.kubeconfig(tmp_path / "config")))


@pytest.fixture
def controller(server: Server, tmp_path: Path) -> Controller:
    return Controller(server.kubeconfig(tmp_path / "config"))


def failure(api: Cluster) -> Exception:
    """What is told of the job once its pods have ended."""
    why = {"type": "Failed", "status": "True", "reason": "FailedJobs"}
    return launch._job_failed(api, {"metadata": {"name": NAME}, "status": {"conditions": [why]}})


@pytest.mark.parametrize(
    ("state", "status", "error", "told"),
    [
        (
            {
                "terminated": {
                    "exitCode": 137,
                    "reason": "OOMKilled",
                    "message": '{"rank": 3, "exit_code": -9}',
                }
            },
            {},
            launch.LaunchError,
            r"with exit code 137 \(OOMKilled\), by rank 3: raise memory_per_node",
        ),
        (
            {"terminated": {"exitCode": 137}},
            {"reason": "Evicted", "message": "The node was low on resource: ephemeral-storage."},
            launch.LaunchError,
            r"with exit code 137 \(Evicted\): the node took the pod back: raise scratch",
        ),
        (
            {"terminated": {"exitCode": 2, "reason": "Error"}},
            {},
            UserError,
            r"with exit code 2 \(Error\): put right what its lines say",
        ),
        (
            {"terminated": {"exitCode": 75, "reason": "Error"}},
            {
                "conditions": [
                    {"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI"}
                ]
            },
            launch.LaunchError,
            r"with exit code 75 \(EvictionByEvictionAPI\): it was told to end more often than max_restarts",
        ),
    ],
)
def test_a_failure_names_the_pod_that_caused_it_how_it_ended_and_the_remedy(
    server: Server,
    api: Cluster,
    controller: Controller,
    state: Object,
    status: Object,
    error: type,
    told: str,
) -> None:
    consequence, cause = controller.pod(NAME, 0), controller.pod(NAME, 1)
    ended = {"exitCode": 1, "reason": "Error", "finishedAt": "2026-01-01T00:00:00Z"}
    controller.state(consequence, "Failed", {"terminated": ended})
    state["terminated"]["finishedAt"] = "2026-01-01T00:00:05Z"  # clocks of nodes differ
    controller.state(cause, "Failed", state, **status)
    server.log(cause, "Findings: a report's words", "sft: 3 of 9 steps (33%)", "unirg: what was wrong")
    caught = failure(api)
    assert type(caught) is error
    text = str(caught)
    assert f"TrainJob {NAME} failed (FailedJobs): Pod {cause} ended" in text
    assert re.search(told, text)
    assert text.endswith("its last lines:\n  sft: 3 of 9 steps (33%)\n  unirg: what was wrong")
