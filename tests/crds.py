"""The schemas of the projects' own custom resource definitions, held as strictly as an API server does."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

CRDS = Path(__file__).parents[2] / "shared" / "crds"
FILES = {
    "trainjobs": "trainer/trainer.kubeflow.org_trainjobs.yaml",
    "trainingruntimes": "trainer/trainer.kubeflow.org_trainingruntimes.yaml",
    "inferenceservices": "kserve/serving.kserve.io_inferenceservices.yaml",
    "clustertrainingruntimes": "trainer/trainer.kubeflow.org_clustertrainingruntimes.yaml",
}
METADATA = {
    *("name", "namespace", "labels", "annotations", "finalizers", "ownerReferences", "generateName"),
    *("uid", "resourceVersion", "generation", "creationTimestamp", "managedFields"),
    *("deletionTimestamp", "deletionGracePeriodSeconds"),
}
TYPES: dict[str, type | tuple[type, ...]] = {
    "object": dict,
    "array": list,
    "string": str,
    "boolean": bool,
    "integer": int,
    "number": (int, float),
}
NAME = r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?"
LABEL = r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?"

# Rules in CEL, each as the same in Python. One that is not here raises when an object reaches it.
RULES: dict[str, Callable[[Any, Any], bool]] = {
    "self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')": lambda new, old: (
        re.fullmatch("[a-z]([-a-z0-9]*[a-z0-9])?", new["metadata"]["name"]) is not None
    ),
    "size(self.metadata.name) <= 63": lambda new, old: len(new["metadata"]["name"]) <= 63,
    "self in ['trainer.kubeflow.org/trainjob-controller', 'kueue.x-k8s.io/multikueue']": lambda new, old: (
        new in ("trainer.kubeflow.org/trainjob-controller", "kueue.x-k8s.io/multikueue")
    ),
    "[has(self.torch), has(self.mpi), has(self.jax), has(self.xgboost),has(self.flux)]"
    ".filter(x, x).size() <= 1": lambda new, old: (
        len({"torch", "mpi", "jax", "xgboost", "flux"} & new.keys()) <= 1
    ),
    "!(has(self.startupPolicy) && self.startupPolicy.startupPolicyOrder == 'InOrder' "
    "&& self.replicatedJobs.exists(x, has(x.dependsOn)))": lambda new, old: "startupPolicy" not in new,
    "self >= 1": lambda new, old: new >= 1,
}
IMMUTABLE = "self == oldSelf"


@functools.cache
def definition(plural: str) -> dict[str, Any]:
    """A custom resource definition; the test is skipped where they are not at hand."""
    path = CRDS / FILES[plural]
    if not path.is_file():
        pytest.skip(f"no custom resource definitions at {CRDS}")
    return dict(yaml.load(path.read_text(), yaml.CSafeLoader))


def known(plural: str, group: str, version: str) -> bool:
    """Whether such a resource is served."""
    if plural not in FILES:
        return False
    spec = definition(plural)["spec"]
    return spec["group"] == group and any(
        one["name"] == version and one["served"] for one in spec["versions"]
    )


def schema(plural: str) -> dict[str, Any]:
    """The schema of the stored version."""
    stored = next(one for one in definition(plural)["spec"]["versions"] if one["storage"])
    return dict(stored["schema"]["openAPIV3Schema"])


def problems(plural: str, thing: dict[str, Any], old: dict[str, Any] | None = None) -> list[str]:
    """What an API server would refuse an object for, with strict field validation."""
    spec = definition(plural)["spec"]
    api = f"{spec['group']}/{next(one['name'] for one in spec['versions'] if one['storage'])}"
    wrong = [
        f"{name}: is not {value}"
        for name, value in (("apiVersion", api), ("kind", spec["names"]["kind"]))
        if thing.get(name) != value
    ]
    return [*wrong, *_metadata(thing["metadata"]), *_wrong(schema(plural), thing, old, "")]


def prune(plural: str, thing: dict[str, Any]) -> None:
    """Drop the fields that the schema does not know, as an API server does that is not asked to be strict."""
    for name in thing["metadata"].keys() - METADATA:
        del thing["metadata"][name]
    _prune(schema(plural), thing, "")


def _prune(schema: dict[str, Any], value: Any, at: str) -> None:
    if isinstance(value, dict):
        fields, others = schema.get("properties", {}), schema.get("additionalProperties")
        for name in list(value):
            here = f"{at}.{name}".lstrip(".")
            if here == "metadata":
                continue
            if name in fields or isinstance(others, dict):
                _prune(fields.get(name, others), value[name], here)
            elif not others and not schema.get("x-kubernetes-preserve-unknown-fields"):
                del value[name]
    elif isinstance(value, list):
        for one in value:
            _prune(schema.get("items", {}), one, at)


def _metadata(given: dict[str, Any]) -> Iterator[str]:
    yield from (f"unknown field metadata.{name}" for name in given.keys() - METADATA)
    if not re.fullmatch(NAME, given["name"]):
        yield f"metadata.name: {given['name']} is no DNS-1123 subdomain"
    for name, value in given.get("labels", {}).items():
        if not re.fullmatch(rf"({NAME}/)?{LABEL}", name) or not re.fullmatch(LABEL, value):
            yield f"metadata.labels: {name}={value}"
    for name, value in given.get("annotations", {}).items():
        if not isinstance(value, str):
            yield f"metadata.annotations.{name}: {value!r} is no string"


def _wrong(schema: dict[str, Any], value: Any, old: Any, at: str) -> Iterator[str]:
    if value is None and schema.get("nullable"):
        return
    if schema.get("x-kubernetes-int-or-string"):
        if type(value) not in (int, str):
            yield f"{at}: {value!r} is neither number nor string"
            return
    elif "type" in schema:
        wanted = TYPES[schema["type"]]
        if not isinstance(value, wanted) or (isinstance(value, bool) and schema["type"] != "boolean"):
            yield f"{at}: {value!r} is no {schema['type']}"
            return
    yield from _bounds(schema, value, at)
    for rule in schema.get("x-kubernetes-validations", []):
        if rule["rule"] == IMMUTABLE:
            kept = old is None or value == old
        else:
            kept = RULES[" ".join(rule["rule"].split())](value, old)
        if not kept:
            yield f"{at}: {rule.get('message', rule['rule'])}"
    if isinstance(value, dict):
        yield from _fields(schema, value, old if isinstance(old, dict) else {}, at)
    if isinstance(value, list):
        keys = schema.get("x-kubernetes-list-map-keys", [])
        identities = [tuple(one.get(key) for key in keys) for one in value] if keys else []
        if len(set(identities)) < len(identities):
            yield f"{at}: duplicates by {', '.join(keys)}"
        for number, one in enumerate(value):
            yield from _wrong(schema.get("items", {}), one, None, f"{at}[{number}]")


def _fields(schema: dict[str, Any], value: dict[str, Any], old: dict[str, Any], at: str) -> Iterator[str]:
    fields, others = schema.get("properties", {}), schema.get("additionalProperties")
    for name in schema.get("required", []):
        if name not in value:
            yield f"{at}.{name}: required"
    for name, part in value.items():
        here = f"{at}.{name}".lstrip(".")
        if here == "metadata":
            continue
        if name in fields:
            yield from _wrong(fields[name], part, old.get(name), here)
        elif isinstance(others, dict):
            yield from _wrong(others, part, old.get(name), here)
        elif not others and not schema.get("x-kubernetes-preserve-unknown-fields"):
            yield f'unknown field "{here}"'


def _bounds(schema: dict[str, Any], value: Any, at: str) -> Iterator[str]:
    checks: list[tuple[str, Callable[[Any], bool]]] = [
        ("enum", lambda limit: value in limit),
        ("minimum", lambda limit: value >= limit),
        ("maximum", lambda limit: value <= limit),
        ("minLength", lambda limit: len(value) >= limit),
        ("maxLength", lambda limit: len(value) <= limit),
        ("minItems", lambda limit: len(value) >= limit),
        ("maxItems", lambda limit: len(value) <= limit),
        ("minProperties", lambda limit: len(value) >= limit),
        ("maxProperties", lambda limit: len(value) <= limit),
        ("pattern", lambda limit: not isinstance(value, str) or re.search(limit, value) is not None),
    ]
    for name, holds in checks:
        if name in schema and not holds(schema[name]):
            yield f"{at}: {value!r} is against {name} {schema[name]}"


def fill_defaults(plural: str, thing: dict[str, Any]) -> None:
    """Set the fields that have a default, as an API server does before it stores an object."""
    _fill(schema(plural), thing)


def _fill(schema: dict[str, Any], value: Any) -> None:
    if isinstance(value, dict):
        for name, part in schema.get("properties", {}).items():
            if name not in value and "default" in part:
                value[name] = part["default"]
            if name in value:
                _fill(part, value[name])
    elif isinstance(value, list):
        for one in value:
            _fill(schema.get("items", {}), one)
