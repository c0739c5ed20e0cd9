"""What is told of a TrainJob that failed: the pod that caused it, how it ended, what to do, no report."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.controller import Controller
from tests.kubernetes import Server
from unirg import cluster, telemetry
from unirg.cluster import Cluster
from unirg.errors import UserError
from unirg.objects import Object
from unirg.training import launch, trainjob

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
            r"with exit code 75 \(EvictionByEvictionAPI\): the cluster took the pod back: raise max_restarts",
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


@pytest.mark.parametrize(
    ("codes", "cause"),
    [
        ([75, 1], 1),  # one was told to end, and saved
        ([143, 75, 3], 3),
        ([1, 137], 137),  # one missed its peer, which the kernel had killed
        ([75, 143], 75),  # the first by the clock, where nothing else tells
    ],
)
def test_pods_that_ended_because_another_did_are_not_the_cause(
    api: Cluster, controller: Controller, codes: list[int], cause: int
) -> None:
    for rank, code in enumerate(codes):
        ended = {"exitCode": code, "reason": "Error", "finishedAt": f"2026-01-01T00:00:0{rank}Z"}
        controller.state(controller.pod(NAME, rank), "Failed", {"terminated": ended})
    assert f"-{codes.index(cause)} ended with exit code {cause} (Error)" in str(failure(api))


@pytest.mark.parametrize(
    "reason",
    ["EvictionByEvictionAPI", "PreemptionByScheduler", "DeletionByPodGC", "DeletionByTaintManager"],
)
def test_a_pod_that_the_cluster_took_is_not_the_training_s_fault(reason: str) -> None:
    assert "raise max_restarts" in trainjob.remedy(1, reason)


def test_lines_of_progress_are_quoted_and_a_report_s_are_not(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for what, unit in itertools.product(("sft", "grpo (kl 0.03)", "validation"), ("steps", "studies")):
        told = telemetry.Progress(what, 9, unit, done=2, every_s=0)
        told.advance(note="loss 1.000")
        told.finish()
    ours = capsys.readouterr().err.splitlines()
    assert len(ours) == 18
    theirs = [
        "base of the right lung: 2 nodules seen",
        "base: 3 studies compared",
        "validation of the line's tip: 2 cm above the carina",
        "sft: tissue swelling",
        "unirg: rank 1 ended with exit code 2",  # it is told already
    ]
    quoted = "".join(launch._quoted([line]) for line in [*theirs, *ours])
    assert quoted == "".join(f"; its last lines:\n  {line}" for line in ours)
