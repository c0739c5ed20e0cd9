"""Kubernetes objects: what they are, how to read their state, and the words of configuration for them.

Nothing here asks an API; `cluster` does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal
from urllib.parse import quote

from pydantic import StringConstraints

from unirg.config import Config

Object = dict[str, Any]
"""A Kubernetes object as the API gives it."""

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$")]
Label = Annotated[str, StringConstraints(pattern=r"^([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?$")]
LabelName = Annotated[
    str, StringConstraints(pattern=r"^([a-z0-9.-]+/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$")
]
Quantity = Annotated[str, StringConstraints(pattern=r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$")]
Variable = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]

ARTIFACT = "unirg.io/artifact"
"""Annotation: the URI of the artifact that an object makes or serves."""
OURS = {"app.kubernetes.io/name": "unirg", "app.kubernetes.io/managed-by": "unirg"}
"""Labels of every object that we make."""


class Toleration(Config):
    """A taint that the pods accept, in Kubernetes' terms."""

    key: LabelName
    """The taint's key."""
    operator: Literal["Exists", "Equal"] = "Exists"
    """Whether the taint's value matters."""
    value: Label = ""
    """The taint's value, with `Equal`."""
    effect: Literal["", "NoSchedule", "PreferNoSchedule", "NoExecute"] = ""
    """Empty: every effect."""

    def manifest(self) -> Object:
        return {name: value for name, value in self.model_dump().items() if value}


@dataclass(frozen=True)
class Kind:
    """A kind of object by its place in the API."""

    api: str
    """`v1`, or `group/version`."""
    plural: str
    kind: str

    def path(self, namespace: str, *rest: str) -> str:
        root = f"/apis/{self.api}" if "/" in self.api else f"/api/{self.api}"
        names = ("namespaces", namespace, self.plural, *rest)
        return "/".join([root, *(quote(name, safe="") for name in names)])

    def __str__(self) -> str:
        return self.kind


POD = Kind("v1", "pods", "Pod")


def uid(thing: Object) -> str:
    """What tells an object from a later one of the same name."""
    return str(thing["metadata"]["uid"])


def annotation(thing: Object, name: str) -> str:
    """An annotation of the object; empty where it has none of that name."""
    return str((thing["metadata"].get("annotations") or {}).get(name, ""))


def condition(thing: Object, name: str) -> Object:
    """A condition of the object's status: its status, reason, message; empty where it was never set."""
    found = thing.get("status", {}).get("conditions", [])
    return next((one for one in found if one["type"] == name), {})


def holds(thing: Object, name: str) -> bool:
    """Whether a condition is true."""
    return bool(condition(thing, name).get("status") == "True")


def terminated(pod: Object, container: str) -> Object:
    """How a container ended (`exitCode`, `reason`, `finishedAt`, `message`); empty where it has not."""
    states = pod.get("status", {}).get("containerStatuses", [])
    found = (one.get("state", {}).get("terminated") for one in states if one["name"] == container)
    return next(found, None) or {}


def waits_for(pod: Object) -> str:
    """Why a pod has not begun, if it is more than a matter of seconds; empty otherwise."""
    scheduled, name = condition(pod, "PodScheduled"), pod["metadata"]["name"]
    if scheduled.get("status") == "False":
        return f"Pod {name} waits for a node ({scheduled.get('reason')}): {scheduled.get('message')}"
    status = pod.get("status", {})
    for one in [*status.get("initContainerStatuses", []), *status.get("containerStatuses", [])]:
        waiting = one.get("state", {}).get("waiting") or {}
        if waiting.get("reason") not in (None, "ContainerCreating", "PodInitializing"):
            return f"Pod {name} does not begin ({waiting['reason']}): {waiting.get('message')}"
    return ""
