"""A trainer's log as numbers: what the training curves and the metrics store show."""

from __future__ import annotations

import json
from typing import Any

from unirg.artifact import Artifact
from unirg.checkpoint import LOG


def training_history(checkpoint: Artifact) -> list[dict[str, Any]]:
    """The logged steps of a checkpoint's training, in their order; empty where it was not trained."""
    if LOG not in checkpoint.manifest.logs:
        return []
    lines = checkpoint.path(LOG).read_text().splitlines()
    return [json.loads(line) for line in lines if line.strip()]
