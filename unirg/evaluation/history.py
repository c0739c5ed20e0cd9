"""A trainer's log as numbers: what the training curves and the metrics store show."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from unirg.artifact import Artifact
from unirg.checkpoint import LOG

VALIDATION, ALARM = "validation/", "alarm/"
"""Begin the keys of a validation's scores, and of an alarm's value."""
STUDIES, ASKED = f"{VALIDATION}studies", f"{VALIDATION}asked"


def training_history(checkpoint: Artifact) -> list[dict[str, Any]]:
    """The logged steps of a checkpoint's training, in their order; empty where it was not trained."""
    if LOG not in checkpoint.manifest.logs:
        return []
    lines = checkpoint.path(LOG).read_text().splitlines()
    return [json.loads(line) for line in lines if line.strip()]


def points(history: Iterable[Mapping[str, Any]], key: str) -> tuple[list[int], list[float]]:
    """(steps, values) of one key, where it was logged and is a finite number."""
    logged = [(row["step"], row[key]) for row in history if isinstance(row.get(key), int | float)]
    finite = [point for point in logged if math.isfinite(point[1])]
    return [step for step, _ in finite], [value for _, value in finite]


def validated(history: Sequence[Mapping[str, Any]]) -> dict[str, int] | None:
    """How many studies the last validation had, and how many scores all of them lack; None without any."""
    made = [row for row in history if STUDIES in row]
    if not made:
        return None
    return {"studies": made[-1][STUDIES], "missing": sum(row[f"{VALIDATION}missing"] for row in made)}


def alarms(history: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The alarms in their order: name, step, value (None where it is not finite)."""
    return [
        {
            "name": key.removeprefix(ALARM),
            "step": row["step"],
            "value": value if math.isfinite(value) else None,
        }
        for row in history
        for key, value in row.items()
        if key.startswith(ALARM)
    ]
