"""A model as an InferenceService of KServe on its vLLM runtime: what it is asked to be, and what it is.

A service holds a stable model and, while one is tried, a canary beside it (`spec.canary`, KServe 0.20: in the
deployment mode Standard `canaryTrafficPercent` is ignored without a word). Each lies in a slot of its own,
blue or green, which is part of the names of its pods and of its Kubernetes Service. So promotion moves no
pod, and a model can be asked by itself, past the gateway that splits requests.

vLLM sends no digest. So a model is called by a name that holds its digest's beginning: another one answers
404 to it, which ends a scoring run, and no report can be accounted to a model that did not write it. Its
plain name is there too, for users who want whatever is served.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated, Literal
from urllib.parse import urlsplit, urlunsplit

from pydantic import Field, StringConstraints, model_validator

from unirg.config import Config
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
    annotation,
    holds,
    waits_for,
)

INFERENCE_SERVICE = Kind("serving.kserve.io/v1beta1", "inferenceservices", "InferenceService")
DIGEST = "unirg.io/model-digest"
"""Annotation of a predictor and its pods: the digest of the checkpoint that it serves."""
SLOT = "unirg.io/slot"
"""Annotation of a predictor and its pods: the slot that it lies in."""
PREVIOUS = "unirg.io/previous"
"""Annotation of a service: the predictor that was stable before, as JSON."""
CHANGE = "unirg.io/change"
"""Annotation of a service: what was last promoted or taken back in it, as JSON: for the audit."""
SLOTS = ("blue", "green")
MOUNT = "/mnt/models"
"""Where KServe's storage initializer puts what `storageUri` names."""
OWN_WORDS = ("RuntimeDisabled", "NoSupportingRuntime", "RuntimeNotRecognized", "InvalidPredictorSpec")
"""KServe's reasons for a failure whose message is its own; the others' is a container's last output."""


class InferenceServiceConfig(Config):
    """Where and with what an InferenceService runs. Defaults are those of the sample in STACK.md."""

    service: Annotated[str, StringConstraints(pattern=r"^([a-z]([-a-z0-9]{0,34}[a-z0-9])?)?$")] = ""
    """The service's name; models that follow each other under one name are rolled out. Empty: a name of the
    model's own, for a service that nobody else uses."""
    namespace: str = ""
    """Where it runs; empty: the kubeconfig context's, or the calling pod's own."""
    context: str = ""
    """The kubeconfig's context; empty: its current one, or the calling pod's cluster."""
    keep: bool = False
    """Whether the end of a pipeline leaves it up, as it must a service that others use."""
    runtime: Name = "kserve-vllmserver"
    """The ServingRuntime or ClusterServingRuntime (KServe 0.20 and later ship this one)."""
    gpus: int = Field(default=1, ge=0)
    """GPUs of a replica; the model is split over them (tensor parallelism)."""
    gpu_resource: LabelName = "nvidia.com/gpu"
    """What the cluster calls a GPU."""
    cpus: Quantity = "8"
    """CPUs of a replica: vLLM prepares images on them."""
    memory: Quantity = "64Gi"
    """Memory of a replica, request and limit."""
    min_replicas: int = Field(default=1, ge=1)
    """Replicas at least."""
    max_replicas: int = Field(default=1, ge=1)
    """Replicas at most; more than `min_replicas` needs `prometheus`."""
    prometheus: Annotated[str, StringConstraints(pattern=r"^(https?://[^\s\"]+)?$")] = ""
    """Prometheus that scrapes vLLM, such as http://prometheus.monitoring:9090; KEDA scales by it."""
    queue: int = Field(default=4, ge=1)
    """Requests waiting for each replica above which KEDA adds one."""
    max_model_len: int = Field(default=8192, ge=1)
    """Tokens of prompt and report together."""
    images: int = Field(default=4, ge=1)
    """Images of a prompt at most."""
    gpu_memory: float = Field(default=0.92, gt=0, lt=1)
    """Share of the GPU's memory that vLLM takes."""
    arguments: tuple[Annotated[str, StringConstraints(pattern=r"^[^\s*?\[\]]+$")], ...] = ()
    """Further arguments of vLLM, without white space and *?[]: the runtime hands them through a shell."""
    environment: dict[Variable, str] = {}
    """Variables of the server; no secrets: everyone who sees the service sees them."""
    node_selector: dict[LabelName, Label] = {}
    """Labels that a node must have, such as its instance type."""
    tolerations: tuple[Toleration, ...] = (Toleration(key="nvidia.com/gpu", effect="NoSchedule"),)
    """Taints that the pods accept."""
    service_account: Name | Literal[""] = ""
    """The pods' identity towards object storage; empty: the namespace's default."""
    timeout_s: int = Field(default=600, ge=1)
    """Seconds that the gateway waits for an answer."""
    reach: Literal["service", "gateway"] = "service"
    """How it is asked: by the model's own Service, inside the cluster, or by the gateway's address, which a
    canary makes useless for scoring: it splits requests."""
    api_path: Literal["/v1", "/openai/v1"] = "/v1"
    """Where the runtime speaks the OpenAI protocol: vLLM at /v1, KServe's own servers at /openai/v1."""
    ready_timeout_s: float = Field(default=1800.0, gt=0)
    """Seconds until it must be ready: a node, an image, 16 GB of weights and vLLM's warming up."""

    @model_validator(mode="after")
    def _scaling_has_a_measure(self) -> InferenceServiceConfig:
        if self.max_replicas < self.min_replicas:
            raise ValueError(
                f"max_replicas = {self.max_replicas} is less than min_replicas = {self.min_replicas}"
            )
        if self.max_replicas > self.min_replicas and not self.prometheus:
            raise ValueError(
                f"max_replicas = {self.max_replicas} needs prometheus, the address of what measures vLLM's "
                "queue: name it, or set max_replicas to min_replicas"
            )
        return self


@dataclass(frozen=True)
class Served:
    """One model in a service: who it is, and what it runs with."""

    uri: str
    """Of the `serve` artifact."""
    service: str
    alias: str
    """The name under which whatever is served answers."""
    model_name: str
    """The name under which this model alone answers."""
    model_digest: str
    config: InferenceServiceConfig


def model_name(alias: str, digest: str) -> str:
    """The name that no other model answers to."""
    return f"{alias}-{digest[:12]}"


def predictor(served: Served, storage_uri: str, slot: str, namespace: str) -> Object:
    """What a slot is to hold, with the model directory at a URI."""
    config = served.config
    limits: dict[str, str] = {"memory": config.memory}
    if config.gpus:
        limits[config.gpu_resource] = str(config.gpus)
    made: Object = {
        "name": slot,
        "annotations": {ARTIFACT: served.uri, DIGEST: served.model_digest, SLOT: slot},
        "labels": OURS,
        "automountServiceAccountToken": False,
        "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}},
        "timeout": config.timeout_s,
        "nodeSelector": dict(config.node_selector),
        "tolerations": [one.manifest() for one in config.tolerations],
        "model": {
            "name": "kserve-container",  # what the runtime calls it; a canary's schema demands it
            "modelFormat": {"name": "vLLM"},
            "runtime": config.runtime,
            "storageUri": storage_uri,
            "args": _arguments(served),
            "env": [{"name": name, "value": value} for name, value in config.environment.items()],
            "resources": {"requests": {"cpu": config.cpus} | limits, "limits": limits},
        },
        "minReplicas": config.min_replicas,
        "maxReplicas": config.max_replicas,
    }
    if config.service_account:
        made["serviceAccountName"] = config.service_account
    if config.max_replicas > config.min_replicas:
        made["autoScaling"] = {"metrics": [_queue(served, slot, namespace)]}
    return made


def _arguments(served: Served) -> list[str]:
    config = served.config
    return [
        f"--model={MOUNT}",
        *("--served-model-name", served.model_name, served.alias),
        f"--tensor-parallel-size={max(config.gpus, 1)}",
        f"--max-model-len={config.max_model_len}",
        f'--limit-mm-per-prompt={{"image":{config.images}}}',
        f"--gpu-memory-utilization={config.gpu_memory:g}",
        "--enable-prefix-caching",
        *config.arguments,
    ]


def _queue(served: Served, slot: str, namespace: str) -> Object:
    pods = f'namespace="{namespace}",pod=~"{host(served.service, slot)}-.*"'
    metric = {
        "backend": "prometheus",
        "serverAddress": served.config.prometheus,
        "query": f"sum(vllm:num_requests_waiting{{{pods}}})",
    }
    target = {"type": "AverageValue", "averageValue": str(served.config.queue)}
    return {"type": "External", "external": {"metric": metric, "target": target}}


def moved(made: Object, name: str, slot: str) -> Object:
    """A predictor of a service as it is in another slot."""
    hosts = host(name, made["name"]), host(name, slot)
    scaling = json.loads(json.dumps(made.get("autoScaling")).replace(*hosts))  # its query names the pods
    own = {"name": slot, "annotations": made["annotations"] | {SLOT: slot}}
    return made | own | ({"autoScaling": scaling} if scaling else {})


def canary(made: Object, percent: int) -> Object:
    """A predictor as a canary: KServe refuses scaling of its own, and gives it replicas by its share."""
    scaling = ("minReplicas", "maxReplicas", "autoScaling")
    return {"trafficPercent": percent, "predictor": {k: v for k, v in made.items() if k not in scaling}}


def service(name: str, made: Object) -> Object:
    """The InferenceService with one predictor, which takes everything."""
    metadata: Object = {"name": name, "labels": dict(OURS), "annotations": {}}
    thing = {"apiVersion": INFERENCE_SERVICE.api, "kind": INFERENCE_SERVICE.kind, "metadata": metadata}
    return with_stable(thing | {"spec": {}}, made)


def with_stable(thing: Object, made: Object) -> Object:
    """A service as it is to be with another stable predictor."""
    own = {
        "serving.kserve.io/deploymentMode": "Standard",
        "serving.kserve.io/autoscalerClass": "keda" if "autoScaling" in made else "none",
    }
    metadata = thing["metadata"] | {"annotations": (thing["metadata"].get("annotations") or {}) | own}
    return thing | {"metadata": metadata, "spec": thing["spec"] | {"predictor": made}}


def tried(thing: Object) -> Object | None:
    """The canary's predictor, if a model is tried."""
    found = thing["spec"].get("canary") or []
    return dict(found[0]["predictor"]) if found else None


def artifact_of(made: Object) -> str:
    """The URI of the `serve` artifact that a predictor serves; empty where it is none of ours."""
    return str((made.get("annotations") or {}).get(ARTIFACT, ""))


def host(name: str, slot: str) -> str:
    """What KServe calls a slot's Deployment and Service, and how the names of its pods begin."""
    return f"{name}-{slot}-predictor"


def base_url(thing: Object, slot: str, config: InferenceServiceConfig) -> str:
    """Where a slot speaks the OpenAI protocol; empty where KServe has not said it yet."""
    status = thing.get("status", {})
    if config.reach == "gateway":
        found = str(status.get("url") or "")
        return found and found.rstrip("/") + config.api_path
    # KServe tells the address of a Service without a slot, which there is none of here.
    parts = urlsplit(str(status.get("address", {}).get("url") or ""))
    _, dot, domain = parts.netloc.partition(".")
    if not dot:
        return ""
    netloc = f"{host(thing['metadata']['name'], slot)}.{domain}"
    return urlunsplit((parts.scheme, netloc, config.api_path, "", ""))


@dataclass(frozen=True)
class State:
    """How far a slot is."""

    url: str
    """Where it answers, if it is ready; else empty."""
    told: str
    """What keeps it, or why it failed."""
    failed: bool = False


def state(thing: Object, slot: str, is_canary: bool, served: Served, pods: list[Object]) -> State:
    """How far a slot with this model is, by what KServe and the pods say."""
    status = thing.get("status", {})
    generation = thing["metadata"].get("generation", 0)
    if status.get("observedGeneration", generation) < generation:
        return State("", "KServe has not looked at it yet")
    mine: Object = next((one for one in status.get("canaryStatuses", []) if one["name"] == slot), {})
    model = (mine if is_canary else status).get("modelStatus", {})
    here = [pod for pod in pods if annotation(pod, SLOT) == slot]
    waiting = [text for pod in here if (text := waits_for(pod))]
    if model.get("transitionStatus") in ("InvalidSpec", "BlockedByFailedLoad"):
        return State("", "; ".join([_failure(model), *waiting]), failed=True)
    old = sum(
        annotation(pod, DIGEST) != served.model_digest and "deletionTimestamp" not in pod["metadata"]
        for pod in here
    )
    if old:
        waiting.append(f"{old} pods of the model before it are still there")
    needed = "Ready" if served.config.reach == "gateway" else "PredictorReady"
    up = bool(mine.get("ready")) if is_canary else holds(thing, needed)
    url = base_url(thing, slot, served.config)
    if up and url and not old:
        return State(url, "ready")
    unmet = [one for one in status.get("conditions", []) if one["status"] != "True"]
    texts = [f"{one['type']} is {one['status']}{_why(one)}" for one in unmet]
    if is_canary and not up:
        texts.append("the canary is not ready")
    return State("", "; ".join(texts + waiting) or "KServe has said nothing yet")


def _why(one: Object) -> str:
    why = ": ".join(str(one[name]) for name in ("reason", "message") if one.get(name))
    return f" ({why})" if why else ""


def _failure(model: Object) -> str:
    """Why a model did not load, without a word of a container's own: it may quote a request."""
    info = model.get("lastFailureInfo") or {}
    reason = info.get("reason") or model["transitionStatus"]
    text = str(reason)
    if "exitCode" in info:
        text += f", exit code {info['exitCode']}"
    if info.get("location"):
        text += f", in {info['location']}"
    return f"{text}: {info['message']}" if reason in OWN_WORDS and info.get("message") else text


def previous(thing: Object) -> Object | None:
    """The predictor that was stable before."""
    found = annotation(thing, PREVIOUS)
    return dict(json.loads(found)) if found else None


def changed(thing: Object, action: str, served: Served, other: Object | None) -> Object:
    """A service that knows what is done to it, the how manieth of its changes: so that whoever looks at it
    next can record it, if who did it was killed before.

    Args:
        other: the predictor that was stable before, or is again; None: the stable one stays.
    """
    told = {"number": (last_change(thing) or {"number": 0})["number"] + 1, "action": action}
    told |= {"endpoint": served.uri, "model": served.model_digest}
    told["other"] = ((other or {}).get("annotations") or {}).get(DIGEST, "")
    kept = thing["metadata"].get("annotations") or {}
    noted = {"annotations": kept | {CHANGE: json.dumps(told, sort_keys=True)}}
    return thing | {"metadata": thing["metadata"] | noted}


def last_change(thing: Object) -> Object | None:
    """What `changed` noted last."""
    found = annotation(thing, CHANGE)
    return dict(json.loads(found)) if found else None
