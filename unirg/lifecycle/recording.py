"""A pipeline's run in the metrics store: one run, with a child for each stage behind what it made."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from unirg import telemetry
from unirg.artifact import Artifact
from unirg.lifecycle import audit, provenance, store
from unirg.lifecycle.store import Recorded, Run

LEARNED = ("sft", "grpo")


@telemetry.verb("record")
def record(
    tracking_uri: str,
    pipeline: str,
    run: str,
    made: Iterable[Artifact],
    artifacts: str,
    tags: Mapping[str, str] | None = None,
    before: Iterable[Artifact] = (),
    name: str = "",
) -> Recorded:
    """Record a pipeline's run to its end, once for each id, and anchor the audit at it.

    Args:
        pipeline: its name: the experiment's.
        run: its id.
        made: what it made last; all that is behind these is recorded with them.
        artifacts: the store that they lie in.
        before: what was there when it began; that, and what is behind it, is of other runs.
        name: for people; else the id.

    Raises:
        UserError: the metrics store failed; the same call goes on.
    """
    from unirg.evaluation.history import training_history

    opened = store.begin(tracking_uri, run, Run(name or run, tags=dict(tags or {})), pipeline)
    names: dict[str, int] = {}
    for each in provenance.with_ancestors(artifacts, made, before):
        stage = each.manifest.stage
        names[stage] = names.get(stage, 0) + 1
        child = stage if names[stage] == 1 else f"{stage} {names[stage]}"
        history = training_history(each) if stage in LEARNED else ()
        store.record_stage(opened, each, history=history, name=child)
    if anchor := audit.tags(artifacts):
        store.tag(opened, anchor)
    store.end(opened)
    return opened
