"""The metrics store: MLflow runs, written so that recording twice gives one run.

    pipeline run     begin, end: found by the run's id, open while the pipeline works, begun again by a rerun
    +- stage         record_stage: found by the artifact's action key, written once in an experiment
       +- system     of an evaluation: written with it, by `unirg.evaluation.tracking`

A keyed run is marked FINISHED last, so one in any other state was left by a killed process: it is deleted
with its children and written again. What is logged are numbers, configuration, URIs and digests; large data
stay where they are. Of writers that race on SQLite or PostgreSQL one writes and the others find it. Through
an MLflow server they may both write, and the earliest finished run is the one that is found, or one fails
as the other took its half-written run for a killed one's, and finds that other's when it is repeated.
"""

from __future__ import annotations

import math
import re
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

from unirg.artifact import Artifact
from unirg.errors import UserError
from unirg.lifecycle.database import SQLITE, opened, shown

if TYPE_CHECKING:
    from mlflow import MlflowClient

T = TypeVar("T")

KEY = "unirg.action_key"
PIPELINE = "unirg.pipeline_run"
_PARENT = "mlflow.parentRunId"
_PAGE = 1000
_RUN_ID = re.compile(r"[\w.:-]{1,200}")
_PER_BATCH = {"metrics": 1000, "params": 100, "tags": 100}
"""MLflow's limits for one `log_batch`."""
_LONGEST = {"key": 250, "param": 6000, "tag": 8000}
"""MLflow's limits in characters; longer texts are cut."""


@dataclass(frozen=True)
class Run:
    """What one MLflow run holds."""

    name: str
    params: Mapping[str, Any] = field(default_factory=dict)
    """Configuration; nested mappings become dotted keys."""
    tags: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    history: Sequence[Mapping[str, Any]] = ()
    """A trainer's log: one mapping a logged step, with "step" in it; its finite numbers become metrics."""


@dataclass(frozen=True)
class Recorded:
    """Where a run lies in the metrics store."""

    tracking_uri: str
    experiment_id: str
    run_id: str

    @property
    def page(self) -> str:
        """Path of the run's page in MLflow's UI."""
        return f"/#/experiments/{self.experiment_id}/runs/{self.run_id}"

    def ui_command(self, port: int = 5000) -> str:
        """The shell command that opens MLflow's UI on this store.

        One worker without job execution: the defaults take 2.2 GB and twice the time to start.
        """
        program = Path(sys.executable).with_name("mlflow")
        serve = [str(program), "ui", "--backend-store-uri", shown(self.tracking_uri), "--workers", "1"]
        settings = "MLFLOW_DISABLE_TELEMETRY=true MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false"
        return f"{settings} {shlex.join([*serve, '--port', str(port)])}"


@dataclass(frozen=True)
class Listed:
    """A run as the metrics store lists it."""

    experiment: str
    run_id: str
    parent_id: str
    """Empty where it has none."""
    name: str
    status: str
    """MLflow's: RUNNING, FINISHED, FAILED, KILLED."""
    started: datetime
    """UTC."""
    tags: Mapping[str, str]


def record(
    tracking_uri: str,
    key: str,
    run: Run,
    children: Sequence[Run] = (),
    experiment: str = "unirg",
    parent: Recorded | None = None,
) -> Recorded:
    """Write a run with its children, once for each key and experiment.

    Args:
        parent: the run of the same experiment that it becomes a child of, unless it is another's already.

    Raises:
        UserError: the tracking URI cannot be opened.
    """
    with opened(tracking_uri) as (client, uri):
        experiment_id = _experiment(client, uri, experiment)
        below = {_PARENT: parent.run_id} if parent else {}
        for found in _keyed(client, experiment_id, KEY, key):
            run_id = str(found.info.run_id)
            if found.info.status == "FINISHED":
                if below and _PARENT not in found.data.tags:
                    client.set_tag(run_id, _PARENT, below[_PARENT])
                return Recorded(uri, experiment_id, run_id)
            for child in _runs(client, experiment_id, f"tags.`{_PARENT}` = '{run_id}'"):
                client.delete_run(child.info.run_id)
            # The parent goes last: a deletion that is killed is found and finished by the next run.
            client.delete_run(run_id)
        run_id = _begin(client, experiment_id, run, {KEY: key, **below})
        for child in children:
            child_id = _begin(client, experiment_id, child, {_PARENT: run_id})
            client.set_terminated(child_id, "FINISHED")
        client.set_terminated(run_id, "FINISHED")
        return Recorded(uri, experiment_id, run_id)


def find(tracking_uri: str, key: str, experiment: str = "unirg") -> Recorded | None:
    """The finished run of a key, if it was recorded."""
    with opened(tracking_uri) as (client, uri):
        found = client.get_experiment_by_name(experiment)
        runs = _keyed(client, found.experiment_id, KEY, key) if found else []
        finished = [run.info.run_id for run in runs if run.info.status == "FINISHED"]
        return Recorded(uri, found.experiment_id, finished[0]) if finished else None


def begin(tracking_uri: str, run_id: str, run: Run, experiment: str) -> Recorded:
    """Open the run of a pipeline, or the one that an earlier attempt with this id opened.

    What an earlier attempt logged stays; a FAILED or KILLED run is RUNNING again, a FINISHED one is left so.

    Args:
        run_id: the pipeline's own id of its run.
        experiment: the pipeline's name.

    Raises:
        UserError: the tracking URI cannot be opened, or the id is none.
    """
    if not _RUN_ID.fullmatch(run_id):
        raise UserError(f"{run_id!r} is no id of a pipeline run: use letters, digits and .:_- (at most 200)")
    with opened(tracking_uri) as (client, uri):
        experiment_id = _experiment(client, uri, experiment)
        earlier = _keyed(client, experiment_id, PIPELINE, run_id)
        if not earlier:
            made = _begin(client, experiment_id, run, {PIPELINE: run_id})
            return Recorded(uri, experiment_id, made)
        data, made = earlier[0].data, str(earlier[0].info.run_id)
        left = Run(
            run.name,
            {name: value for name, value in _flat(run.params) if _name(name) not in data.params},
            {name: value for name, value in run.tags.items() if _name(name) not in data.tags},
            {name: value for name, value in run.metrics.items() if _name(name) not in data.metrics},
        )
        _log(client, made, left)
        if earlier[0].info.status in ("FAILED", "KILLED"):
            client.update_run(made, status="RUNNING")
        return Recorded(uri, experiment_id, made)


def record_stage(
    pipeline: Recorded,
    made: Artifact,
    metrics: Mapping[str, float] | None = None,
    history: Sequence[Mapping[str, Any]] = (),
    name: str = "",
) -> Recorded:
    """Record a stage's artifact as a child of a pipeline's run, and name it there by URI and digest.

    The child is written once: a second pipeline run of the experiment that finds the stage done names the
    child of the first. An evaluation has its child from the stage itself, where that records it in this
    experiment.

    Args:
        metrics: headline numbers, beside the artifact's own counts.
        history: a trainer's log, as in `Run`.
        name: tells two artifacts of one stage apart; else the stage's name.

    Raises:
        UserError: the metrics store failed.
    """
    manifest, name = made.manifest, name or made.manifest.stage
    tags = {"stage": manifest.stage, "digest": made.digest, "uri": made.uri}
    for source, used in manifest.inputs.items():
        tags |= {f"digest.{source}": used.digest} | ({f"uri.{source}": used.uri} if used.uri else {})
    tags |= {f"count.{what}": count for what, count in manifest.counts.items() if isinstance(count, str)}
    counts = {
        f"count/{what}": float(count) for what, count in manifest.counts.items() if not isinstance(count, str)
    }
    run = Run(name, manifest.config, tags, counts | dict(metrics or {}), history)
    experiment = _experiment_name(pipeline)
    child = record(pipeline.tracking_uri, manifest.action_key, run, (), experiment, pipeline)
    tag(pipeline, {f"digest.{name}": made.digest, f"uri.{name}": made.uri, f"run.{name}": child.run_id})
    return child


def tag(recorded: Recorded, tags: Mapping[str, str]) -> None:
    """Set tags of a run, over those of the same names."""
    with opened(recorded.tracking_uri) as (client, _):
        _log(client, recorded.run_id, Run("", tags=tags))


def end(pipeline: Recorded, status: str = "FINISHED", metrics: Mapping[str, float] | None = None) -> None:
    """Close a pipeline's run: FINISHED, FAILED or KILLED; its metrics first."""
    with opened(pipeline.tracking_uri) as (client, _):
        _log(client, pipeline.run_id, Run("", metrics=metrics or {}))
        client.set_terminated(pipeline.run_id, status)


def runs(tracking_uri: str, experiment: str = "") -> list[Listed]:
    """Every run of an experiment, or of all, newest first.

    Raises:
        UserError: there is no such metrics store or experiment.
    """
    with opened(tracking_uri, existing=True) as (client, _):
        names = {str(one.experiment_id): str(one.name) for one in client.search_experiments()}
        wanted = [key for key, name in names.items() if experiment in ("", name)]
        if not wanted:
            known = ", ".join(sorted(names.values()))
            raise UserError(f"there is no experiment {experiment} at {shown(tracking_uri)}: it has {known}")
        found, token = [], None
        while True:
            page = client.search_runs(
                wanted, max_results=_PAGE, order_by=["attributes.start_time DESC"], page_token=token
            )
            found += page
            token = page.token
            if not token:
                break
    return [
        Listed(
            names[str(run.info.experiment_id)],
            str(run.info.run_id),
            run.data.tags.get(_PARENT, ""),
            str(run.info.run_name),
            str(run.info.status),
            datetime.fromtimestamp(run.info.start_time / 1000, UTC),
            dict(run.data.tags),
        )
        for run in found
    ]


def _experiment(client: MlflowClient, uri: str, name: str) -> str:
    found = client.get_experiment_by_name(name)
    if found:
        return str(found.experiment_id)
    # Without a location MLflow would remember the current directory. Nothing of ours is written there.
    place = f"mlflow-artifacts:/{quote(name, safe='')}"
    if uri.startswith(SQLITE):
        place = Path(uri.removeprefix(SQLITE)).with_name("mlflow-artifacts").as_uri()
    return str(client.create_experiment(name, artifact_location=place))


def _experiment_name(recorded: Recorded) -> str:
    with opened(recorded.tracking_uri) as (client, _):
        return str(client.get_experiment(recorded.experiment_id).name)


def _keyed(client: MlflowClient, experiment_id: str, tag: str, key: str) -> list[Any]:
    """The runs with a key, the earliest first."""
    found = _runs(client, experiment_id, f"tags.`{tag}` = '{key}'")
    return sorted(found, key=lambda run: (run.info.start_time, run.info.run_id))


def _runs(client: MlflowClient, experiment_id: str, query: str) -> list[Any]:
    return list(client.search_runs([experiment_id], query, max_results=_PAGE))


def _begin(client: MlflowClient, experiment_id: str, run: Run, tags: Mapping[str, str]) -> str:
    """Create a run and log all of it; it stays RUNNING."""
    now = int(time.time() * 1000)
    # The tags that find a half-written run are there from the first moment.
    started = client.create_run(
        experiment_id, start_time=now, tags=dict(tags), run_name=run.name[: _LONGEST["key"]]
    )
    run_id = str(started.info.run_id)
    _log(client, run_id, run)
    return run_id


def _log(client: MlflowClient, run_id: str, run: Run) -> None:
    from mlflow.entities import Metric, Param, RunTag

    now = int(time.time() * 1000)
    points = [(name, value, 0) for name, value in run.metrics.items()]
    points += [point for row in run.history for point in _points(row)]
    metrics = [Metric(_name(name), value, now, step) for name, value, step in points]
    params = [Param(_name(key), str(value)[: _LONGEST["param"]]) for key, value in _flat(run.params)]
    labels = [RunTag(_name(key), value[: _LONGEST["tag"]]) for key, value in run.tags.items()]
    for part in _batches(metrics, _PER_BATCH["metrics"]):
        client.log_batch(run_id, metrics=part)
    for part in _batches(params, _PER_BATCH["params"]):
        client.log_batch(run_id, params=part)
    for part in _batches(labels, _PER_BATCH["tags"]):
        client.log_batch(run_id, tags=part)


def _points(row: Mapping[str, Any]) -> Iterator[tuple[str, float, int]]:
    for name, value in row.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if name != "step" and number and math.isfinite(value):
            yield f"train/{name}", float(value), int(row.get("step", 0))


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _name(text: str) -> str:
    """A key with the characters and the length that MLflow accepts."""
    return re.sub(r"[^\w./ :-]", "_", text)[: _LONGEST["key"]]


def _batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
