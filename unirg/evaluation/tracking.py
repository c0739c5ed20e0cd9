"""An evaluation as runs of the metrics store: a parent, and a child for each system with its training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from unirg.artifact import Artifact
from unirg.evaluation import aggregates, suites
from unirg.evaluation.history import training_history
from unirg.lifecycle import audit, store
from unirg.lifecycle.store import Recorded, Run


def record(
    evaluation: Artifact,
    predictions: Mapping[str, Artifact | str],
    checkpoints: Mapping[str, Artifact],
    tracking_uri: str,
    experiment: str,
) -> Recorded:
    """Record an evaluation once: aggregates, configurations, digests, URIs, histories; the audit's head."""
    manifest = evaluation.manifest
    data, found = aggregates.read(evaluation), suites.read(evaluation)
    tags = _tags("evaluation", evaluation) | audit.tags(evaluation.store)
    for name, used in manifest.inputs.items():
        tags |= {f"digest.{name}": used.digest} | ({f"uri.{name}": used.uri} if used.uri else {})
    if data["judge"]:
        tags["judge"] = data["judge"]
    children = []
    for system in data["systems"]:
        name = system["name"]
        sources = {"score": predictions.get(name), "train": checkpoints.get(name)}
        made = {kind: source for kind, source in sources.items() if isinstance(source, Artifact)}
        own: dict[str, str] = {"kind": system["kind"], "note": system["note"]}
        for kind, source in made.items():
            own |= _tags(kind, source)
        params = {kind: source.manifest.config for kind, source in made.items()}
        history = training_history(checkpoints[name]) if name in checkpoints else []
        children.append(Run(name, params, own, _metrics(data, name) | _of_suites(found, name), history))
    parent = Run(f"evaluation {evaluation.digest[:12]}", manifest.config, tags, _alarms(found))
    return store.record(tracking_uri, manifest.action_key, parent, children, experiment)


def _tags(name: str, source: Artifact) -> dict[str, str]:
    return {f"digest.{name}": source.digest, f"uri.{name}": source.uri}


def _metrics(data: Mapping[str, Any], system: str) -> dict[str, float]:
    """`test/report/bleu2` with `_low`, `_high`, `_n`, `_missing`; institutions stay in the artifact."""
    found = {}
    for value in data["values"]:
        if value["system"] != system or value["institution"] is not None:
            continue
        where = "/".join(filter(None, (value["split"], value["corpus"], value["setting"], value["metric"])))
        for field, name in (("mean", where), *((f, f"{where}_{f}") for f in ("low", "high", "n", "missing"))):
            if value[field] is not None:
                found[name] = value[field]
    return found


def _alarms(found: Mapping[str, Any], system: str = "") -> dict[str, float]:
    """`alarms/<suite>` of the suites that ran: how many, of all systems or of one."""
    return {
        f"alarms/{name}": float(sum(not system or each["system"] == system for each in found[name]["alarms"]))
        for name in suites.SUITES
        if name in found
    }


def _of_suites(found: Mapping[str, Any], system: str) -> dict[str, float]:
    """What the other metrics do not tell, of whole reports: F1 of the conditions (micro and macro over 14 and
    5), the shares of repeated candidates and of candidates that are one; the rest stays in the artifact."""
    numbers: dict[str, float | None] = {}
    for suite in ("conditions", "sanity"):
        for group in found.get(suite, {}).get("groups", ()):
            one = group.get("systems", {}).get(system)
            if one is None or group["setting"] != "report":
                continue
            where = "/".join(filter(None, (suite, group["split"], group["corpus"])))
            if suite == "sanity":
                numbers |= {f"{where}/{name}": one["candidates"][name] for name in ("repeated", "top")}
                continue
            averages = one[found[suite]["headline"]]["averages"]
            numbers |= {
                f"{where}/{kind}_f1_{size}": averages[size][kind]["f1"]["mean"]
                for size in averages
                for kind in ("micro", "macro")
            }
    return _alarms(found, system) | {name: value for name, value in numbers.items() if value is not None}
