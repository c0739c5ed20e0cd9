"""The metrics store on SQLite: one run a key, whatever happens in between."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from unirg.errors import UserError
from unirg.lifecycle import store
from unirg.lifecycle.store import Run, find, record

PARENT = Run("evaluation", {"seed": 0, "weights": {"bleu2": 0.5}}, {"digest.cohort": "abc"})
CHILDREN = [
    Run("sft", {"lr": 1e-3}, metrics={"test/report/bleu2": 0.5}, history=[{"step": 1, "loss": 2.0}]),
    Run("copy-prior", metrics={"test/report/bleu2": 0.25}),
]


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/runs/mlflow.db"


def active(uri: str) -> list[Any]:
    """Every run that MLflow's UI shows."""
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    return list(client.search_runs([client.get_experiment_by_name("unirg").experiment_id]))


def test_a_parent_and_its_children_hold_parameters_metrics_and_history(uri: str) -> None:
    from mlflow import MlflowClient

    made = record(uri, "key", PARENT, CHILDREN)
    client = MlflowClient(uri)
    parent = client.get_run(made.run_id)
    assert parent.data.params == {"seed": "0", "weights.bleu2": "0.5"}
    assert parent.data.tags["digest.cohort"] == "abc"
    assert parent.info.status == "FINISHED"
    children = {run.info.run_name: run for run in active(uri) if run.info.run_id != made.run_id}
    assert {run.data.tags["mlflow.parentRunId"] for run in children.values()} == {made.run_id}
    assert children["copy-prior"].data.metrics == {"test/report/bleu2": 0.25}
    (point,) = client.get_metric_history(children["sft"].info.run_id, "train/loss")
    assert (point.step, point.value) == (1, 2.0)


def test_recording_twice_gives_one_run(uri: str) -> None:
    assert find(uri, "key") is None
    first = record(uri, "key", PARENT, CHILDREN)
    assert record(uri, "key", PARENT, CHILDREN) == first == find(uri, "key")
    assert len(active(uri)) == 3
    assert record(uri, "other key", PARENT, CHILDREN).run_id != first.run_id


def test_a_run_killed_in_the_middle_is_replaced_by_a_whole_one(uri: str) -> None:
    # The process kills itself when it begins to write the second child.
    script = f"""
        import os, signal
        from tests.lifecycle.test_store import CHILDREN, PARENT
        from unirg.lifecycle import store
        begin = store._begin
        def killed(client, experiment_id, run, tags):
            if run.name == "copy-prior":
                os.kill(os.getpid(), signal.SIGKILL)
            return begin(client, experiment_id, run, tags)
        store._begin = killed
        store.record({uri!r}, "key", PARENT, CHILDREN)
    """
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], env=environment, timeout=120)
    assert done.returncode == -signal.SIGKILL
    assert len(active(uri)) == 2
    assert find(uri, "key") is None
    made = record(uri, "key", PARENT, CHILDREN)
    runs = active(uri)
    assert sorted(run.info.run_name for run in runs) == ["copy-prior", "evaluation", "sft"]
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert made == find(uri, "key")


def test_two_processes_that_record_the_same_key_leave_one_run(uri: str) -> None:
    script = f"""
        from tests.lifecycle.test_store import CHILDREN, PARENT
        from unirg.lifecycle import store
        print(store.record({uri!r}, "key", PARENT, CHILDREN).run_id)
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    both = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) for _ in range(2)]
    ids = {process.communicate(timeout=120)[0] for process in both}
    assert len(ids) == 1
    assert len(active(uri)) == 3


def test_more_than_mlflow_takes_at_once_is_logged_in_parts_and_long_texts_are_cut(uri: str) -> None:
    from mlflow import MlflowClient

    params = {f"p{i}": "x" * 7000 for i in range(130)} | {"k" * 300: 1, "odd (name)": 2}
    history = [{"step": i, "loss": 1 / i, "reward": math.nan, "note": "text"} for i in range(1, 1300)]
    made = record(uri, "key", Run("big", params, {"long": "y" * 9000}, {"système/é": 1.0}, history))
    client = MlflowClient(uri)
    run = client.get_run(made.run_id)
    assert len(run.data.params) == 132
    assert len(run.data.params["p0"]) == 6000
    assert run.data.params["odd _name_"] == "2"
    assert len(run.data.tags["long"]) == 8000
    assert set(run.data.metrics) == {"train/loss", "système/é"}
    assert client.get_metric_history(made.run_id, "train/loss")[-1].step == 1299


def test_nothing_is_written_where_the_process_stands(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    record(uri, "key", PARENT, CHILDREN)
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_relative_sqlite_path_is_remembered_as_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made = record("sqlite:///runs/my mlflow.db", "key", PARENT)
    assert made.tracking_uri == f"sqlite:///{tmp_path}/runs/my mlflow.db"
    assert f"--backend-store-uri '{made.tracking_uri}' --workers 1 --port 5000" in made.ui_command()
    assert "MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false " in made.ui_command()
    assert made.page == f"/#/experiments/{made.experiment_id}/runs/{made.run_id}"


def test_a_store_that_cannot_be_opened_is_a_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="check the URI"):
        record("nonsense://there", "key", PARENT)
    broken = tmp_path / "mlflow.db"
    broken.write_text("this is no database")
    with pytest.raises(UserError, match="check the URI"):
        record(f"sqlite:///{broken}", "key", PARENT)


def test_importing_the_store_does_not_import_mlflow() -> None:
    script = "import sys, unirg.lifecycle.store; sys.exit('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], cwd=Path(store.__file__).parents[2]).returncode == 0
