"""The metrics store on SQLite and PostgreSQL: one run a key, whatever happens in between."""

from __future__ import annotations

import math
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.lifecycle.stores import cohort, made
from tests.lifecycle.writers import killed, together
from tests.postgres_server import Server
from unirg.errors import UserError
from unirg.lifecycle import store
from unirg.lifecycle.database import opened, shown
from unirg.lifecycle.store import Run, begin, end, find, record, record_stage, runs, tag

PARENT = Run("evaluation", {"seed": 0, "weights": {"bleu2": 0.5}}, {"digest.cohort": "abc"})
CHILDREN = [
    Run("sft", {"lr": 1e-3}, metrics={"test/report/bleu2": 0.5}, history=[{"step": 1, "loss": 2.0}]),
    Run("copy-prior", metrics={"test/report/bleu2": 0.25}),
]


def active(uri: str, experiment: str = "unirg") -> list[Any]:
    """Every run of an experiment that MLflow's UI shows."""
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    return list(client.search_runs([client.get_experiment_by_name(experiment).experiment_id]))


def test_a_parent_and_its_children_hold_parameters_metrics_and_history(tracking_uri: str) -> None:
    from mlflow import MlflowClient

    made = record(tracking_uri, "key", PARENT, CHILDREN)
    client = MlflowClient(tracking_uri)
    parent = client.get_run(made.run_id)
    assert parent.data.params == {"seed": "0", "weights.bleu2": "0.5"}
    assert parent.data.tags["digest.cohort"] == "abc"
    assert parent.info.status == "FINISHED"
    children = {run.info.run_name: run for run in active(tracking_uri) if run.info.run_id != made.run_id}
    assert {run.data.tags["mlflow.parentRunId"] for run in children.values()} == {made.run_id}
    assert children["copy-prior"].data.metrics == {"test/report/bleu2": 0.25}
    (point,) = client.get_metric_history(children["sft"].info.run_id, "train/loss")
    assert (point.step, point.value) == (1, 2.0)


def test_recording_twice_gives_one_run(tracking_uri: str) -> None:
    assert find(tracking_uri, "key") is None
    first = record(tracking_uri, "key", PARENT, CHILDREN)
    assert record(tracking_uri, "key", PARENT, CHILDREN) == first == find(tracking_uri, "key")
    assert len(active(tracking_uri)) == 3
    assert record(tracking_uri, "other key", PARENT, CHILDREN).run_id != first.run_id


def test_a_run_killed_at_any_step_is_replaced_by_a_whole_one(tracking_uri: str) -> None:
    kills = killed("record", tracking_uri, "key", "experiment {step}")
    assert kills == 13
    for step in range(kills):
        found = active(tracking_uri, f"experiment {step}")
        assert sorted(run.info.run_name for run in found) == ["first", "parent", "second"], step
        assert {run.info.status for run in found} == {"FINISHED"}, step
        (parent,) = (run for run in found if run.info.run_name == "parent")
        assert parent.data.tags["t"] == "u"
        assert sorted(run.data.metrics["x"] for run in found if run is not parent) == [0.25, 0.5], step
        below = {run.data.tags["mlflow.parentRunId"] for run in found if run is not parent}
        assert below == {parent.info.run_id}, step


def test_eight_processes_that_record_the_same_key_in_an_empty_database_leave_one_run(
    empty_database: str,
) -> None:
    assert len(set(together("record", empty_database, "key"))) == 1
    assert len(active(empty_database)) == 3


def test_eight_processes_that_record_keys_of_their_own_lose_none(tracking_uri: str) -> None:
    ids = together("record", tracking_uri, "own")
    assert len(set(ids)) == 8
    assert Counter(run.info.run_name for run in active(tracking_uri)) == {
        "parent": 8,
        "first": 8,
        "second": 8,
    }
    assert [find(tracking_uri, f"key {number}").run_id for number in range(8)] == ids  # type: ignore[union-attr]


def test_more_than_mlflow_takes_at_once_is_logged_in_parts_and_long_texts_are_cut(tracking_uri: str) -> None:
    from mlflow import MlflowClient

    params = {f"p{i}": "x" * 7000 for i in range(130)} | {"k" * 300: 1, "odd (name)": 2}
    history = [{"step": i, "loss": 1 / i, "reward": math.nan, "note": "text"} for i in range(1, 1300)]
    made = record(tracking_uri, "key", Run("big", params, {"long": "y" * 9000}, {"système/é": 1.0}, history))
    client = MlflowClient(tracking_uri)
    run = client.get_run(made.run_id)
    assert len(run.data.params) == 132
    assert len(run.data.params["p0"]) == 6000
    assert run.data.params["odd _name_"] == "2"
    assert len(run.data.tags["long"]) == 8000
    assert set(run.data.metrics) == {"train/loss", "système/é"}
    assert client.get_metric_history(made.run_id, "train/loss")[-1].step == 1299


def test_nothing_is_written_where_the_process_stands(
    tracking_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    record(tracking_uri, "key", PARENT, CHILDREN)
    assert list((tmp_path / "elsewhere").iterdir()) == []
    assert "elsewhere" not in active(tracking_uri)[0].info.artifact_uri


def test_a_relative_sqlite_path_is_remembered_as_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made = record("sqlite:///runs/my mlflow.db", "key", PARENT)
    assert made.tracking_uri == f"sqlite:///{tmp_path}/runs/my mlflow.db"
    assert f"--backend-store-uri '{made.tracking_uri}' --workers 1 --port 5000" in made.ui_command()
    assert "MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false " in made.ui_command()
    assert made.page == f"/#/experiments/{made.experiment_id}/runs/{made.run_id}"


def stages(where: str) -> dict[str, Any]:
    """A cohort with counts, and two models and an evaluation of it."""
    source = cohort(where, [("s10", "train"), ("s11", "train")], [("s20", "test")])
    base = made(where, "base", {"cohort": source})
    sft = made(where, "sft", {"cohort": source, "parent": base})
    return {"cohort": source, "base": base, "sft": sft}


def test_a_pipelines_stages_are_runs_below_its_own(tracking_uri: str, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    found = stages(str(tmp_path / "store"))
    pipeline = begin(tracking_uri, "run-1", Run("retrain", {"gate": {"alpha": 0.05}}), "retrain")
    children = {name: record_stage(pipeline, one) for name, one in found.items() if name != "sft"}
    children["sft"] = record_stage(
        pipeline, found["sft"], {"bleu2": 0.5}, [{"step": 1, "loss": 2.0}], "challenger"
    )
    client = MlflowClient(tracking_uri)
    assert client.get_run(pipeline.run_id).info.status == "RUNNING"
    end(pipeline, metrics={"studies": 3})
    parent = client.get_run(pipeline.run_id)
    assert (parent.info.status, parent.data.params) == ("FINISHED", {"gate.alpha": "0.05"})
    assert parent.data.metrics == {"studies": 3.0}
    assert parent.data.tags["uri.challenger"] == found["sft"].uri
    assert parent.data.tags["digest.cohort"] == found["cohort"].digest
    assert parent.data.tags["run.challenger"] == children["sft"].run_id
    sft = client.get_run(children["sft"].run_id)
    assert (sft.info.run_name, sft.data.params["source"]) == ("challenger", "toy")
    assert sft.data.metrics == {"bleu2": 0.5, "train/loss": 2.0}
    assert client.get_run(children["cohort"].run_id).data.metrics == {"count/studies": 3.0}
    told = {"stage": "sft", "digest": found["sft"].digest, "uri": found["sft"].uri}
    told |= {"digest.parent": found["base"].digest, "uri.parent": found["base"].uri}
    assert sft.data.tags.items() >= told.items()
    listed = runs(tracking_uri, "retrain")
    assert {one.parent_id for one in listed} == {"", pipeline.run_id}
    assert {one.name: one.tags.get("uri") for one in listed} == {
        "retrain": None,
        "cohort": found["cohort"].uri,
        "base": found["base"].uri,
        "challenger": found["sft"].uri,
    }


def test_a_pipeline_begun_again_goes_on_and_a_second_one_names_the_stages_of_the_first(
    tracking_uri: str, tmp_path: Path
) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri)
    base = stages(str(tmp_path / "store"))["base"]
    first = begin(tracking_uri, "run-1", Run("retrain", {"workers": 1}, {"event": "cron"}), "retrain")
    child = record_stage(first, base)
    end(first, "FAILED")
    assert begin(tracking_uri, "run-1", Run("retrain", {"workers": 2, "late": 1}), "retrain") == first
    again = client.get_run(first.run_id)
    assert (again.info.status, again.data.params) == ("RUNNING", {"workers": "1", "late": "1"})
    end(first)
    assert begin(tracking_uri, "run-1", Run("retrain"), "retrain") == first
    assert client.get_run(first.run_id).info.status == "FINISHED"
    second = begin(tracking_uri, "run-2", Run("retrain"), "retrain")
    assert second.run_id != first.run_id
    assert record_stage(second, base) == child
    assert client.get_run(second.run_id).data.tags["run.base"] == child.run_id
    assert client.get_run(child.run_id).data.tags["mlflow.parentRunId"] == first.run_id
    tag(second, {"audit.head": "12 abc"})
    assert client.get_run(second.run_id).data.tags["audit.head"] == "12 abc"


def test_a_run_that_was_recorded_alone_joins_the_pipeline_that_names_it(
    tracking_uri: str, tmp_path: Path
) -> None:
    from mlflow import MlflowClient

    base = stages(str(tmp_path / "store"))["base"]
    alone = record(tracking_uri, base.manifest.action_key, PARENT, CHILDREN, "retrain")
    pipeline = begin(tracking_uri, "run-1", Run("retrain"), "retrain")
    assert record_stage(pipeline, base) == alone
    assert MlflowClient(tracking_uri).get_run(alone.run_id).data.tags["mlflow.parentRunId"] == pipeline.run_id


def test_eight_processes_in_one_pipeline_run_write_each_stage_once(tracking_uri: str, tmp_path: Path) -> None:
    uris = [one.uri for one in stages(str(tmp_path / "store")).values()]
    (ids,) = {tuple(each) for each in together("stage", tracking_uri, " ".join(uris), "retrain")}
    found = active(tracking_uri, "retrain")
    assert sorted(ids) == sorted(run.info.run_id for run in found)
    assert Counter(run.info.run_name for run in found) == {"retrain": 1, "cohort": 1, "base": 1, "sft": 1}


def test_a_pipeline_killed_at_any_step_is_finished_by_its_repetition(
    tracking_uri: str, tmp_path: Path
) -> None:
    sft = stages(str(tmp_path / "store"))["sft"]
    kills = killed("stage", tracking_uri, sft.uri, "experiment {step}")
    assert kills == 9
    for step in range(kills):
        left = {run.info.run_name: run for run in active(tracking_uri, f"experiment {step}")}
        assert sorted(left) == ["retrain", "sft"], step
        assert {run.info.status for run in left.values()} == {"FINISHED"}, step
        parent, child = left["retrain"], left["sft"]
        assert parent.data.params == {"b": "3"}, step
        assert parent.data.tags["run.sft"] == child.info.run_id, step
        assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id, step
        assert child.data.tags["uri"] == sft.uri, step


def test_a_pipelines_id_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no id of a pipeline run"):
        begin(f"sqlite:///{tmp_path}/mlflow.db", "it's", Run("retrain"), "retrain")


def test_an_experiment_and_a_store_that_are_not_there_are_named(tracking_uri: str, tmp_path: Path) -> None:
    record(tracking_uri, "key", PARENT)
    with pytest.raises(UserError, match=r"no experiment retrain .*unirg"):
        runs(tracking_uri, "retrain")
    with pytest.raises(UserError, match=r"no metrics store at sqlite:///.*/none\.db"):
        runs(f"sqlite:///{tmp_path}/none.db")
    assert not (tmp_path / "none.db").exists()


def test_a_lock_that_postgresql_took_back_is_told(postgres: Server) -> None:
    with postgres.database() as uri, pytest.raises(UserError, match="failed") as raised, opened(uri):
        postgres.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_locks JOIN pg_database ON oid = database "
            f"WHERE locktype = 'advisory' AND datname = '{uri.rpartition('/')[2]}'"
        )
    assert postgres.password not in str(raised.value)


def test_a_password_is_in_no_message_and_in_no_command(postgres: Server) -> None:
    with postgres.database() as uri:
        made = record(uri, "key", PARENT)
        assert postgres.password not in made.ui_command()
        with pytest.raises(UserError) as raised:
            runs(uri, "none")
        assert postgres.password not in str(raised.value)
        with pytest.raises(UserError, match="failed") as raised:
            record(f"{uri}_gone", "key", PARENT)
        assert postgres.password not in str(raised.value)
    assert shown("postgresql://me:pass@word@host:5/db?sslmode=require") == (
        "postgresql://me@host:5/db?sslmode=require"
    )
    assert shown("sqlite:///runs/a@b.db") == "sqlite:///runs/a@b.db"


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
