"""Kubernetes' own kinds, as far as the doubles need them: held to the models of the `kubernetes` package.

A model drops the fields that it does not know and raises where one is missing that must be there: what an
API server with strict field validation refuses.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from typing import Any

from kubernetes import client

KINDS = {
    "deployments": ("apps", "v1", "V1Deployment"),
    "services": ("", "v1", "V1Service"),
}
"""Plural: group, version and the model."""
IMMUTABLE = {"deployments": ("selector",), "services": ("clusterIP",)}
DEFAULTS: dict[str, dict[str, Any]] = {
    "deployments": {"progressDeadlineSeconds": 600, "revisionHistoryLimit": 10},
    "services": {"sessionAffinity": "None", "type": "ClusterIP"},
}
"""Some of what an API server fills in."""


@dataclass
class _Answer:
    data: str


def problems(plural: str, thing: dict[str, Any], old: dict[str, Any] | None) -> list[str]:
    """What an API server would refuse an object for."""
    api = client.ApiClient()
    given = {part: value for part, value in thing.items() if part != "status"}
    try:
        known = api.sanitize_for_serialization(api.deserialize(_Answer(json.dumps(given)), KINDS[plural][2]))
    except ValueError as error:
        return [str(error)]
    wrong = list(_unknown(given, known, ""))
    if plural == "deployments":
        labels, chosen = given["spec"]["template"]["metadata"]["labels"], given["spec"]["selector"]
        if not chosen["matchLabels"].items() <= labels.items():
            wrong.append("spec.template.metadata.labels: `selector` does not match template `labels`")
    if old is not None:
        wrong += [
            f"spec.{part}: field is immutable"
            for part in IMMUTABLE[plural]
            if given["spec"].get(part) != old["spec"].get(part)
        ]
    return wrong


def _unknown(given: Any, known: Any, at: str) -> list[str]:
    if isinstance(given, dict) and isinstance(known, dict):
        found = [f'unknown field "{at}{name}"' for name in given.keys() - known.keys()]
        for name in given.keys() & known.keys():
            found += _unknown(given[name], known[name], f"{at}{name}.")
        return found
    if isinstance(given, list) and isinstance(known, list):
        return [text for one, other in zip(given, known, strict=True) for text in _unknown(one, other, at)]
    return []


def fill_defaults(plural: str, thing: dict[str, Any]) -> None:
    thing["spec"] = DEFAULTS[plural] | thing["spec"]
    if plural == "services":
        thing["spec"].setdefault("clusterIP", f"10.96.{random.randrange(256)}.{random.randrange(1, 255)}")
