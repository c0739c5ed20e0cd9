"""What a training is in a cluster: a TrainJob of Kubeflow Trainer v2 and the runtime that it runs on.

The runtime holds what every training shares (volumes, security, restarts) and is named by the digest of its
content: made once, never changed, so no administrator need install or update it. The TrainJob holds what
this training is, and is named by the URI of the artifact that it makes: a launcher that is started again
finds it, and the same training into another store is another job. Neither has a time to live: Trainer makes
a job again whose JobSet was cleaned up (kubeflow/trainer 3737).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, StringConstraints, model_validator

from unirg.config import Config, canonical_json
from unirg.objects import (
    ARTIFACT,
    OURS,
    Kind,
    Label,
    LabelName,
    Name,
    Object,
    Quantity,
    Toleration,
    Variable,
)
from unirg.storage import sha256
from unirg.training.torchrun import FAILURE_FILE

TRAINJOB = Kind("trainer.kubeflow.org/v1alpha1", "trainjobs", "TrainJob")
RUNTIME = Kind("trainer.kubeflow.org/v1alpha1", "trainingruntimes", "TrainingRuntime")
NODE = "node"
"""Trainer's name for the replicated job and the container that train."""
MARGIN_S = 30
"""Between the end of the ranks' grace and that of the pod's."""
CACHE = "/cache"
MISTAKE = 2
"""Exit code of a user's mistake: another attempt fails alike."""
DISRUPTIONS = {
    *("DeletionByPodGC", "DeletionByTaintManager", "EvictionByEvictionAPI"),
    *("Preempting", "PreemptionByScheduler"),
}
"""Kubernetes' reasons for taking a pod off its node, for which the pod is not to blame."""


class TrainJobConfig(Config):
    """Where and with what a TrainJob runs. Nothing here changes weights: it belongs in operational fields."""

    image: str = Field(min_length=1, max_length=500)
    """The trainer's image, by digest or version."""
    namespace: str = ""
    """Where it runs; empty: the kubeconfig context's, or the launching pod's own."""
    context: str = ""
    """The kubeconfig's context; empty: its current one, or the launching pod's cluster."""
    queue: Label = ""
    """Kueue's LocalQueue; empty: it starts without one."""
    nodes: int = Field(default=1, ge=1)
    """Pods that train together, one a node."""
    processes_per_node: int = Field(default=8, ge=1)
    """Processes of a pod, one a GPU."""
    gpus_per_node: int = Field(default=8, ge=0)
    """GPUs of a pod; 0: it trains on CPUs."""
    gpu_resource: LabelName = "nvidia.com/gpu"
    """What the cluster calls a GPU."""
    cpus_per_node: Quantity = "64"
    """CPUs that a pod asks for (one H100 node of 8 GPUs in the sample of STACK.md)."""
    memory_per_node: Quantity = "512Gi"
    """Memory of a pod, request and limit; shared memory counts."""
    shared_memory: Quantity = "64Gi"
    """Size of /dev/shm, where NCCL and data workers meet; Kubernetes gives 64 MB without it."""
    cache_claim: Name | Literal[""] = ""
    """A PersistentVolumeClaim (ReadWriteMany for several nodes) for copies of artifacts and work in
    progress; empty: the node's disk, which a restarted pod finds empty."""
    scratch: Quantity = "500Gi"
    """Size of that place on the node's disk."""
    node_selector: dict[LabelName, Label] = {}
    """Labels that a node must have, such as its instance type."""
    tolerations: tuple[Toleration, ...] = (Toleration(key="nvidia.com/gpu", effect="NoSchedule"),)
    """Taints that the pods accept."""
    service_account: Name | Literal[""] = ""
    """The pods' identity towards object storage; empty: the namespace's default. Its token for the
    Kubernetes API is not mounted."""
    pull_secrets: tuple[Name, ...] = ()
    """Secrets for the image's registry."""
    environment: dict[Variable, str] = {}
    """Variables of every process; no secrets: everyone who sees the job sees them."""
    secrets: dict[Variable, Annotated[str, StringConstraints(pattern=r"^[a-z0-9.-]+/[-._a-zA-Z0-9]+$")]] = {}
    """Variables from secrets: NAME: secret/key."""
    user: int = Field(default=1000, ge=1)
    """The user and group id of the processes; the image must let it write to HOME."""
    max_restarts: int = Field(default=3, ge=0)
    """How often the job begins again, from its last checkpoint, when a process or a node fails."""
    grace_s: int = Field(default=300, ge=1)
    """Seconds for a checkpoint when a node is drained: 8B parameters and their optimiser state to a store."""
    deadline_s: int | None = Field(default=None, ge=1)
    """Seconds after which the cluster ends the job; None: never."""
    cancel_on_interrupt: bool = False
    """Whether Ctrl-C or SIGTERM of the launcher ends the job; else it goes on, for a new launcher to find."""

    @model_validator(mode="after")
    def _a_gpu_for_every_process(self) -> TrainJobConfig:
        if self.gpus_per_node and self.processes_per_node > self.gpus_per_node:
            raise ValueError(
                f"processes_per_node = {self.processes_per_node} is more than gpus_per_node = "
                f"{self.gpus_per_node}: NCCL wants a GPU for each"
            )
        return self


def name_of(stage: str, uri: str) -> str:
    """A TrainJob's name: the same for the same artifact, and short enough for its pods' host names."""
    return f"unirg-{stage}-{sha256(uri.encode())[:16]}"


def job(config: TrainJobConfig, stage: str, uri: str, command: Sequence[str]) -> Object:
    """The TrainJob that makes the artifact at a URI by a command under torchrun."""
    resources: dict[str, str] = {"cpu": config.cpus_per_node, "memory": config.memory_per_node}
    limits = {"memory": config.memory_per_node}
    if config.gpus_per_node:
        resources[config.gpu_resource] = limits[config.gpu_resource] = str(config.gpus_per_node)
    labels = OURS | {"unirg.io/stage": stage}
    if config.queue:
        labels["kueue.x-k8s.io/queue-name"] = config.queue
    spec: Object = {
        "runtimeRef": {"name": runtime(config)["metadata"]["name"], "kind": RUNTIME.kind},
        "trainer": {
            "image": config.image,
            "numNodes": config.nodes,
            "numProcPerNode": config.processes_per_node,  # else it is guessed from CPUs where no GPU is
            "command": ["python", "-m", "unirg.training.torchrun"],
            "args": ["--shutdown-timeout", str(config.grace_s), "--", *command],
            "env": _environment(config),
            "resourcesPerNode": {"requests": resources, "limits": limits},
        },
    }
    if config.deadline_s:
        spec["activeDeadlineSeconds"] = config.deadline_s
    metadata = {"name": name_of(stage, uri), "labels": labels, "annotations": {ARTIFACT: uri}}
    return {"apiVersion": TRAINJOB.api, "kind": TRAINJOB.kind, "metadata": metadata, "spec": spec}


def _environment(config: TrainJobConfig) -> list[Object]:
    own = {
        "OMP_NUM_THREADS": "1",
        "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1",  # a rank that lost another ends instead of waiting
        "UNIRG_CACHE": CACHE,
        FAILURE_FILE: "/dev/termination-log",
    }
    if not config.gpus_per_node:
        own["DS_ACCELERATOR"] = "cpu"
    given: list[Object] = [
        {"name": name, "value": value} for name, value in (own | config.environment).items()
    ]
    for name, source in config.secrets.items():
        secret, _, entry = source.partition("/")
        given.append({"name": name, "valueFrom": {"secretKeyRef": {"name": secret, "key": entry}}})
    return given


def runtime(config: TrainJobConfig) -> Object:
    """The TrainingRuntime that a TrainJob of this configuration runs on."""
    pod: Object = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": config.grace_s + MARGIN_S,
        "automountServiceAccountToken": False,
        "securityContext": {
            **{name: config.user for name in ("runAsUser", "runAsGroup", "fsGroup")},
            "runAsNonRoot": True,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "nodeSelector": dict(config.node_selector),
        "tolerations": [one.manifest() for one in config.tolerations],
        "containers": [
            {
                "name": NODE,
                "image": config.image,
                "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
                "volumeMounts": [
                    {"name": "shared-memory", "mountPath": "/dev/shm"},
                    {"name": "cache", "mountPath": CACHE},
                ],
            }
        ],
        "volumes": [
            {"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": config.shared_memory}},
            {"name": "cache", "persistentVolumeClaim": {"claimName": config.cache_claim}}
            if config.cache_claim
            else {"name": "cache", "emptyDir": {"sizeLimit": config.scratch}},
        ],
    }
    if config.service_account:
        pod["serviceAccountName"] = config.service_account
    if config.pull_secrets:
        pod["imagePullSecrets"] = [{"name": name} for name in config.pull_secrets]
    mistake = {"operator": "In", "values": [MISTAKE], "containerName": NODE}
    jobs = {
        "backoffLimit": 0,  # a pod alone cannot come back: all begin again together
        "podFailurePolicy": {"rules": [{"action": "FailJob", "onExitCodes": mistake}]},
        "template": {"metadata": {"annotations": {"sidecar.istio.io/inject": "false"}}, "spec": pod},
    }
    set_spec = {
        "failurePolicy": {
            "maxRestarts": config.max_restarts,
            "restartStrategy": "Recreate",
            "rules": [
                {"name": "mistake", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
            ],
        },
        "network": {"publishNotReadyAddresses": True},
        "replicatedJobs": [
            {
                "name": NODE,
                "template": {
                    "metadata": {"labels": {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}},
                    "spec": jobs,
                },
            }
        ],
    }
    spec = {"mlPolicy": {"numNodes": 1, "torch": {}}, "template": {"spec": set_spec}}
    name = f"unirg-{sha256(canonical_json(spec))[:12]}"
    labels = OURS | {"trainer.kubeflow.org/framework": "torch"}
    return {
        "apiVersion": RUNTIME.api,
        "kind": RUNTIME.kind,
        "metadata": {"name": name, "labels": labels},
        "spec": spec,
    }


def pods_of(name: str, rank: int | None = None) -> dict[str, str]:
    """Labels of a TrainJob's pods; rank: of one node's alone."""
    chosen = {"jobset.sigs.k8s.io/jobset-name": name, "jobset.sigs.k8s.io/replicatedjob-name": NODE}
    return chosen if rank is None else chosen | {"batch.kubernetes.io/job-completion-index": str(rank)}


def remedy(code: int | None, reason: str) -> str:
    """What to do about a pod that ended so."""
    if reason == "OOMKilled":
        return "raise memory_per_node, or lower micro_batch"
    if reason in ("Evicted", "TerminationByKubelet"):
        return "the node took the pod back: raise scratch or max_restarts, or ask for nodes that are not"
    if reason in DISRUPTIONS:
        return "the cluster took the pod back: raise max_restarts, or ask for nodes that it keeps"
    if reason == "DeadlineExceeded":
        return "raise deadline_s; a new job goes on from the last checkpoint"
    if code == MISTAKE:
        return "put right what its lines say; another attempt fails alike"
    if code == os.EX_TEMPFAIL:
        return "it was told to end more often than max_restarts allows: a new job goes on from its checkpoint"
    return "the same command starts a new job, which goes on from the last checkpoint"
