"""The listener in a cluster: a Deployment of one pod and a Service, made or changed to what is wanted.

What they were made of is kept as a digest in an annotation, since a cluster fills in fields of its own: the
same settings change nothing. One pod, and the old one ends before a new one begins, so that one decides
whether a run is active; it begins with a run, which finds what came while there was none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from pipelines.webhook import GRACE_S
from unirg.cluster import Cluster, ClusterError, Conflict
from unirg.config import Config, canonical_json
from unirg.objects import (
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
)
from unirg.storage import sha256

DEPLOYMENT = Kind("apps/v1", "deployments", "Deployment")
SERVICE = Kind("v1", "services", "Service")
DIGEST = "unirg.io/settings"
"""Annotation: the digest of what an object was made of."""
SCHEDULE = "unirg.io/schedule"
"""Label: the schedule that an object is of."""
PORT = 8080
TOKENS = "/var/run/secrets/unirg"
KFP_TOKENS = "/var/run/secrets/kubeflow/pipelines"
ROUNDS = 10
Outcome = Literal["found", "created", "replaced"]


class ListenerConfig(Config):
    """Where and with what a listener runs."""

    image: str = Field(min_length=1, max_length=500)
    """The toolbox's image, by digest or version."""
    token: Annotated[str, StringConstraints(pattern=r"^[a-z0-9.-]+/[-._a-zA-Z0-9]+$")]
    """The bearer token that senders must show, as secret/key. A changed secret needs no restart."""
    namespace: str = ""
    """Where it runs; empty: the kubeconfig context's, or the calling pod's own."""
    context: str = ""
    """The kubeconfig's context; empty: its current one, or the calling pod's cluster."""
    service_account: Name | Literal[""] = ""
    """Its identity towards KFP; empty: the namespace's default. Its token for the Kubernetes API is not
    mounted."""
    kfp_audience: str = "pipelines.kubeflow.org"
    """Whom its token for KFP is for (KFP's documentation); empty: it has none, as where KFP asks nobody."""
    certificates: Name | Literal[""] = ""
    """A ConfigMap with `ca.crt`, for KFP under a hospital's own authority."""
    cpu: Quantity = "100m"
    """CPUs that it asks for."""
    memory: Quantity = "512Mi"
    """Its memory, request and limit; compiling the pipeline takes most of it."""
    node_selector: dict[LabelName, Label] = {}
    """Labels that a node must have."""
    tolerations: tuple[Toleration, ...] = ()
    """Taints that it accepts."""
    pull_secrets: tuple[Name, ...] = ()
    """Secrets for the image's registry."""
    environment: dict[Variable, str] = {}
    """Its variables, such as UNIRG_IMAGE, of which the pipeline's pods are made; no secrets."""
    user: int = Field(default=1000, ge=1)
    """The user and group id of the process."""


def name_of(schedule: str) -> str:
    return f"{schedule}-listener"


def objects(config: ListenerConfig, schedule: str, arguments: Sequence[str]) -> list[tuple[Kind, Object]]:
    """The listener's objects.

    Args:
        schedule: its name, of at most 50 characters.
        arguments: of `unirg pipeline listen`, but for address, port and token.
    """
    chosen = {"app.kubernetes.io/name": "unirg", SCHEDULE: schedule}
    service = {
        "type": "ClusterIP",
        "selector": chosen,
        "ports": [{"name": "http", "port": 80, "targetPort": "http", "protocol": "TCP"}],
    }
    deployment = {
        "replicas": 1,
        "strategy": {"type": "Recreate"},
        "revisionHistoryLimit": 2,
        "selector": {"matchLabels": chosen},
        "template": {
            "metadata": {"labels": OURS | chosen},
            "spec": _pod(config, schedule, arguments),
        },
    }
    return [_object(SERVICE, schedule, service), _object(DEPLOYMENT, schedule, deployment)]


def _object(kind: Kind, schedule: str, spec: Object) -> tuple[Kind, Object]:
    metadata = {
        "name": name_of(schedule),
        "labels": OURS | {SCHEDULE: schedule},
        "annotations": {DIGEST: sha256(canonical_json(spec))},
    }
    return kind, {"apiVersion": kind.api, "kind": kind.kind, "metadata": metadata, "spec": spec}


def _pod(config: ListenerConfig, schedule: str, arguments: Sequence[str]) -> Object:
    secret, _, entry = config.token.partition("/")
    own = {"HOME": "/tmp", "PYTHONDONTWRITEBYTECODE": "1"}
    volumes: list[Object] = [
        {"name": "scratch", "emptyDir": {"sizeLimit": "256Mi"}},
        {"name": "token", "secret": {"secretName": secret, "items": [{"key": entry, "path": "token"}]}},
    ]
    mounts: list[Object] = [
        {"name": "scratch", "mountPath": "/tmp"},
        {"name": "token", "mountPath": TOKENS, "readOnly": True},
    ]
    if config.kfp_audience:
        token = {"path": "token", "audience": config.kfp_audience, "expirationSeconds": 3600}
        volumes.append({"name": "kfp", "projected": {"sources": [{"serviceAccountToken": token}]}})
        mounts.append({"name": "kfp", "mountPath": KFP_TOKENS, "readOnly": True})
    if config.certificates:
        volumes.append({"name": "certificates", "configMap": {"name": config.certificates}})
        mounts.append({"name": "certificates", "mountPath": "/etc/unirg", "readOnly": True})
        own["SSL_CERT_FILE"] = "/etc/unirg/ca.crt"
    given = [*arguments, "--address", "0.0.0.0", "--port", str(PORT), "--token-file", f"{TOKENS}/token"]
    container = {
        "name": "listener",
        "image": config.image,
        "command": ["python", "-m", "unirg.cli", "pipeline", "listen"],
        # Kubernetes would put a variable's value in the place of $(NAME).
        "args": [word.replace("$(", "$$(") for word in (*given, "--catch-up")],
        "env": [{"name": name, "value": value} for name, value in (own | config.environment).items()],
        "ports": [{"name": "http", "containerPort": PORT, "protocol": "TCP"}],
        "resources": {
            "requests": {"cpu": config.cpu, "memory": config.memory},
            "limits": {"memory": config.memory},
        },
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        },
        "startupProbe": _probe("/healthz", period=2, failures=60),
        "livenessProbe": _probe("/healthz", period=20, failures=3),
        "readinessProbe": _probe("/readyz", period=5, failures=2),
        "volumeMounts": mounts,
    }
    pod: Object = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": int(GRACE_S) + 30,
        "securityContext": {
            **{name: config.user for name in ("runAsUser", "runAsGroup", "fsGroup")},
            "runAsNonRoot": True,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        "volumes": volumes,
    }
    if config.service_account:
        pod["serviceAccountName"] = config.service_account
    if config.node_selector:
        pod["nodeSelector"] = dict(config.node_selector)
    if config.tolerations:
        pod["tolerations"] = [one.manifest() for one in config.tolerations]
    if config.pull_secrets:
        pod["imagePullSecrets"] = [{"name": name} for name in config.pull_secrets]
    return pod


def _probe(path: str, period: int, failures: int) -> Object:
    return {
        "httpGet": {"path": path, "port": "http"},
        "periodSeconds": period,
        "failureThreshold": failures,
        "timeoutSeconds": 5,
    }


def apply(where: Cluster, config: ListenerConfig, schedule: str, arguments: Sequence[str]) -> Outcome:
    """Make the listener, or change it to these settings; it is not waited for.

    Raises:
        ClusterError: an object of that name is not ours, or must not be made.
    """
    done = [_put(where, kind, wanted) for kind, wanted in objects(config, schedule, arguments)]
    return "replaced" if "replaced" in done else "created" if "created" in done else "found"


def remove(where: Cluster, schedule: str) -> bool:
    """Take the listener down; whether there was one.

    Raises:
        ClusterError: an object of that name is not ours.
    """
    there = False
    for kind in (DEPLOYMENT, SERVICE):
        found = where.get(kind, name_of(schedule))
        if found is not None:
            _is_ours(kind, found)
            where.delete(kind, found)
            there = True
    return there


def _put(where: Cluster, kind: Kind, wanted: Object) -> Outcome:
    for _ in range(ROUNDS):
        found = where.get(kind, wanted["metadata"]["name"])
        try:
            if found is None:
                where.create(kind, wanted)
                return "created"
            _is_ours(kind, found)
            if annotation(found, DIGEST) == annotation(wanted, DIGEST):
                return "found"
            metadata = found["metadata"]
            for part in ("labels", "annotations"):
                metadata = metadata | {part: (metadata.get(part) or {}) | wanted["metadata"][part]}
            # What the cluster chose, such as a Service's address, must stay.
            where.replace(kind, found | {"metadata": metadata, "spec": found["spec"] | wanted["spec"]})
            return "replaced"
        except Conflict:  # somebody was quicker, or an answer was lost
            continue
    raise ClusterError(
        f"{kind} {wanted['metadata']['name']} keeps changing: see who else sets it, and run this again"
    )


def _is_ours(kind: Kind, found: Object) -> None:
    if SCHEDULE not in (found["metadata"].get("labels") or {}):
        raise ClusterError(
            f"{kind} {found['metadata']['name']} is there and is not of `unirg pipeline schedule`: give "
            "another --name"
        )
