"""The metrics store: MLflow runs, written so that recording twice gives one run.

A parent run has a key (the action key of what it records) and is marked FINISHED last, so a parent in any
other state was left by a killed process: it is deleted with its children and written again. What is logged
are numbers, configuration and digests; large data stay where they are, by URI.
"""

from __future__ import annotations

import fcntl
import math
import os
import re
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from unirg.errors import UserError

if TYPE_CHECKING:
    from mlflow import MlflowClient

T = TypeVar("T")

KEY = "unirg.action_key"
_SQLITE = "sqlite:///"
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
        serve = [str(program), "ui", "--backend-store-uri", self.tracking_uri, "--workers", "1"]
        settings = "MLFLOW_DISABLE_TELEMETRY=true MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false"
        return f"{settings} {shlex.join([*serve, '--port', str(port)])}"


def record(
    tracking_uri: str, key: str, parent: Run, children: Sequence[Run] = (), experiment: str = "unirg"
) -> Recorded:
    """Write a parent run with its children, once for each key.

    Raises:
        UserError: the tracking URI cannot be opened.
    """
    with _client(tracking_uri) as (client, uri):
        experiment_id = _experiment(client, uri, experiment)
        for run in _runs(client, experiment_id, f"tags.`{KEY}` = '{key}'"):
            if run.info.status == "FINISHED":
                return Recorded(uri, experiment_id, run.info.run_id)
            for child in _runs(client, experiment_id, f"tags.`mlflow.parentRunId` = '{run.info.run_id}'"):
                client.delete_run(child.info.run_id)
            # The parent goes last: a deletion that is killed is found and finished by the next run.
            client.delete_run(run.info.run_id)
        parent_id = _begin(client, experiment_id, parent, {KEY: key})
        for child in children:
            child_id = _begin(client, experiment_id, child, {"mlflow.parentRunId": parent_id})
            client.set_terminated(child_id, "FINISHED")
        client.set_terminated(parent_id, "FINISHED")
        return Recorded(uri, experiment_id, parent_id)


def find(tracking_uri: str, key: str, experiment: str = "unirg") -> Recorded | None:
    """The finished run of a key, if it was recorded."""
    with _client(tracking_uri) as (client, uri):
        found = client.get_experiment_by_name(experiment)
        runs = _runs(client, found.experiment_id, f"tags.`{KEY}` = '{key}'") if found else []
        finished = [run.info.run_id for run in runs if run.info.status == "FINISHED"]
        return Recorded(uri, found.experiment_id, finished[0]) if finished else None


def tag(tracking_uri: str, run_id: str, tags: Mapping[str, str]) -> None:
    """Tag a run that is there.

    Raises:
        UserError: the metrics store cannot be opened, or has no such run.
    """
    with _client(tracking_uri) as (client, _):
        for name, value in tags.items():
            client.set_tag(run_id, name, value)


def tagged(tracking_uri: str, name: str, value: str) -> list[dict[str, str]]:
    """All tags of each run, of whatever experiment, that has this value of a tag.

    Args:
        value: without quotation marks.

    Raises:
        UserError: the metrics store cannot be opened.
    """
    found: list[dict[str, str]] = []
    with _client(tracking_uri) as (client, _):
        where = [experiment.experiment_id for experiment in client.search_experiments()]
        page = None
        while where:
            runs = client.search_runs(where, f"tags.`{name}` = '{value}'", max_results=1000, page_token=page)
            found += [dict(run.data.tags) for run in runs]
            page = runs.token
            if not page:
                break
    return found


@contextmanager
def _client(tracking_uri: str) -> Iterator[tuple[MlflowClient, str]]:
    """A client and the URI made absolute; on SQLite one process at a time, as its tables may need making."""
    # Read when MLflow is imported: no usage data leaves, and no chatter about tables on the terminal.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        if not tracking_uri.startswith(_SQLITE):
            yield MlflowClient(tracking_uri), tracking_uri
            return
        path = Path(tracking_uri.removeprefix(_SQLITE)).expanduser().absolute()
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.with_name(f".{path.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            uri = f"{_SQLITE}{path}"
            yield MlflowClient(uri), uri
    except (MlflowException, SQLAlchemyError) as error:
        kind = getattr(error, "error_code", type(error).__name__)
        raise UserError(
            f"the metrics store {tracking_uri} failed ({kind}): check the URI and the free space, or name "
            "a new SQLite file such as sqlite:///runs/mlflow.db"
        ) from error


def _experiment(client: MlflowClient, uri: str, name: str) -> str:
    found = client.get_experiment_by_name(name)
    if found:
        return str(found.experiment_id)
    # Without a location MLflow would remember the current directory.
    place = None
    if uri.startswith(_SQLITE):
        place = Path(uri.removeprefix(_SQLITE)).with_name("mlflow-artifacts").as_uri()
    return str(client.create_experiment(name, artifact_location=place))


def _runs(client: MlflowClient, experiment_id: str, query: str) -> list[Any]:
    return list(client.search_runs([experiment_id], query, max_results=1000))


def _begin(client: MlflowClient, experiment_id: str, run: Run, tags: Mapping[str, str]) -> str:
    """Create a run and log all of it; it stays RUNNING."""
    from mlflow.entities import Metric, Param, RunTag

    now = int(time.time() * 1000)
    # The tags that find a half-written run are there from the first moment.
    started = client.create_run(experiment_id, start_time=now, tags=dict(tags), run_name=run.name)
    points = [(name, value, 0) for name, value in run.metrics.items()]
    points += [point for row in run.history for point in _points(row)]
    metrics = [Metric(_name(name), value, now, step) for name, value, step in points]
    params = [Param(_name(key), str(value)[: _LONGEST["param"]]) for key, value in _flat(run.params)]
    labels = [RunTag(_name(key), value[: _LONGEST["tag"]]) for key, value in run.tags.items()]
    run_id = str(started.info.run_id)
    for part in _batches(metrics, _PER_BATCH["metrics"]):
        client.log_batch(run_id, metrics=part)
    for part in _batches(params, _PER_BATCH["params"]):
        client.log_batch(run_id, params=part)
    for part in _batches(labels, _PER_BATCH["tags"]):
        client.log_batch(run_id, tags=part)
    return run_id


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
