"""Manifests of a training: valid, complete, and named by what they are."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests import crds
from unirg import config
from unirg.errors import UserError
from unirg.objects import Toleration
from unirg.training import trainjob
from unirg.training.trainjob import TrainJobConfig

URI = "s3://unirg/store/sft/0123456789abcdef"
COMMAND = ["python", "-m", "unirg.training", "sft", "--store", "s3://unirg/store"]
SETTINGS = TrainJobConfig(image="registry.example/unirg-trainer:1", processes_per_node=2, gpus_per_node=2)
EVERYTHING = TrainJobConfig(
    image="registry.example/unirg-trainer@sha256:" + "a" * 64,
    namespace="unirg",
    queue="gpu",
    nodes=4,
    cache_claim="checkpoints",
    node_selector={"node.kubernetes.io/instance-type": "p5.48xlarge"},
    tolerations=(Toleration(key="pool", operator="Equal", value="train", effect="NoExecute"),),
    service_account="trainer",
    pull_secrets=("registry",),
    environment={"NCCL_DEBUG": "WARN"},
    secrets={"AWS_SECRET_ACCESS_KEY": "store/secret-key"},
    deadline_s=172800,
    max_restarts=7,
)


@pytest.mark.parametrize("settings", [SETTINGS, EVERYTHING, TrainJobConfig(image="x", gpus_per_node=0)])
@pytest.mark.parametrize("stage", ["sft", "grpo"])
def test_every_manifest_is_valid_by_trainer_s_own_schemas(settings: TrainJobConfig, stage: str) -> None:
    job, runtime = trainjob.job(settings, stage, URI, COMMAND), trainjob.runtime(settings)
    assert crds.problems("trainjobs", job) == []
    assert crds.problems("trainingruntimes", runtime) == []
    assert job["spec"]["runtimeRef"] == {"name": runtime["metadata"]["name"], "kind": "TrainingRuntime"}
    assert "ttl" not in f"{job}{runtime}".lower()


def test_the_configuration_reaches_the_manifests() -> None:
    job, runtime = trainjob.job(EVERYTHING, "sft", URI, COMMAND), trainjob.runtime(EVERYTHING)
    spec = job["spec"]
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "gpu"
    assert spec["trainer"]["numNodes"] == 4
    assert spec["trainer"]["numProcPerNode"] == 8
    assert spec["trainer"]["resourcesPerNode"]["limits"] == {"memory": "512Gi", "nvidia.com/gpu": "8"}
    assert spec["trainer"]["args"][-len(COMMAND) :] == COMMAND
    environment = {one["name"]: one for one in spec["trainer"]["env"]}
    assert environment["AWS_SECRET_ACCESS_KEY"]["valueFrom"] == {
        "secretKeyRef": {"name": "store", "key": "secret-key"}
    }
    assert environment["OMP_NUM_THREADS"]["value"] == "1"
    assert "DS_ACCELERATOR" not in environment
    jobs = runtime["spec"]["template"]["spec"]
    assert jobs["failurePolicy"]["maxRestarts"] == 7
    pod = jobs["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    assert pod["nodeSelector"] == EVERYTHING.node_selector
    assert pod["tolerations"] == [
        {"key": "pool", "operator": "Equal", "value": "train", "effect": "NoExecute"}
    ]
    volumes = {one["name"]: one for one in pod["volumes"]}
    assert volumes["shared-memory"]["emptyDir"] == {"medium": "Memory", "sizeLimit": "64Gi"}
    assert volumes["cache"]["persistentVolumeClaim"] == {"claimName": "checkpoints"}
    assert pod["terminationGracePeriodSeconds"] > int(spec["trainer"]["args"][1])


def test_a_job_without_gpus_says_so_to_deepspeed() -> None:
    job = trainjob.job(TrainJobConfig(image="x", gpus_per_node=0), "sft", URI, COMMAND)
    assert {"name": "DS_ACCELERATOR", "value": "cpu"} in job["spec"]["trainer"]["env"]
    assert "nvidia.com/gpu" not in str(job)


def test_names_are_those_of_content() -> None:
    assert trainjob.name_of("grpo", URI) == trainjob.name_of("grpo", URI)
    assert trainjob.name_of("grpo", URI) != trainjob.name_of("grpo", URI.replace("store", "another"))
    longest = trainjob.name_of("grpo", URI) + "-node-0-99999-abcde"
    assert re.fullmatch("[a-z]([-a-z0-9]*[a-z0-9])?", longest)
    assert len(longest) <= 63
    same = trainjob.runtime(SETTINGS.model_copy(update={"environment": {"A": "b"}, "nodes": 3}))
    other = trainjob.runtime(SETTINGS.model_copy(update={"max_restarts": 1}))
    assert trainjob.runtime(SETTINGS) == same
    assert other["metadata"]["name"] != same["metadata"]["name"]


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"processes_per_node": 9}, "more than gpus_per_node = 8"),
        ({"memory_per_node": "much"}, "memory_per_node"),
        ({"secrets": {"KEY": "no-key"}}, "secrets"),
        ({"queue": "Ünter"}, "queue"),
        ({"ttl": 5}, "unknown key ttl"),
    ],
)
def test_a_wrong_setting_is_named(wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError) as caught:
        config.load(TrainJobConfig, image="x", **wrong)
    assert told in str(caught.value)
