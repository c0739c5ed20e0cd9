"""What an evaluation leaves in the metrics store."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.evaluation.worlds import FINDINGS, World
from unirg.evaluation.evaluate import EvaluateConfig, evaluate
from unirg.lifecycle import audit, store


def test_a_system_becomes_a_run_with_its_aggregates_and_its_training(world: World, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    world.fill(10)
    world.studies = [study for study in world.studies if study.split != "zero_shot"]
    world.add("zero", "zero_shot", "effusion", place="harbour")
    cohort = world.cohort()
    sft = world.checkpoint("sft")
    predictions = {"SFT": world.predictions("sft", cohort, world.answers(1.0), model=sft)}
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    config = EvaluateConfig(resamples=100, tracking_uri=uri)
    done = evaluate(config, cohort, predictions, {"SFT": sft}, str(world.store))
    # A run that was killed between the commit and the record is healed by the next.
    assert evaluate(config, cohort, predictions, {"SFT": sft}, str(world.store)) == done
    made = store.find(uri, done.manifest.action_key)
    assert made is not None
    client = MlflowClient(uri)
    runs = {run.info.run_name: run for run in client.search_runs([made.experiment_id])}
    assert len(runs) == 4
    assert runs["SFT"].data.metrics["test/report/bleu2"] == 1
    assert runs["SFT"].data.metrics["test/report/bleu2_n"] == 20
    assert runs["SFT"].data.metrics["zero_shot/report/bleu2_n"] == 1
    assert "test/report/errors" not in runs["SFT"].data.metrics  # there was no judge: no number, not zero
    assert runs["SFT"].data.params["train.learning_rate"] == "0.001"
    assert runs["SFT"].data.tags["digest.train"] == sft.digest
    assert len(client.get_metric_history(runs["SFT"].info.run_id, "train/loss")) == 5
    parent = client.get_run(made.run_id)
    assert parent.data.tags["digest.cohort"] == cohort.digest
    assert parent.data.params["resamples"] == "100"
    # Beside it lies the audit's head, which has the evaluation in it.
    (anchored,) = audit.anchors(str(world.store), uri)
    assert anchored == audit.head(str(world.store))


def test_no_text_of_a_report_is_in_the_metrics_store(world: World, tmp_path: Path, judge_url: str) -> None:
    cohort = world.fill(4).cohort()
    predictions = {"SFT": world.predictions("sft", cohort, world.answers(0.5))}
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    config = EvaluateConfig(judge_model="offline-judge", judge_url=judge_url, tracking_uri=uri)
    evaluate(config, cohort, predictions, {}, str(world.store))
    stored = (tmp_path / "mlflow.db").read_bytes()
    for findings, impression in FINDINGS.values():
        assert findings.encode() not in stored
        assert impression.encode() not in stored


def test_alarms_and_what_the_suites_lead_with_are_in_the_metrics_store(world: World, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    cohort = world.fill(12).cohort()
    said = world.answers(1.0)
    doubled = world.predictions("sft", cohort, said | {key: "Findings: Clear." for key in said}, repeat=2)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    done = evaluate(
        EvaluateConfig(resamples=100, tracking_uri=uri), cohort, {"SFT": doubled}, {}, str(world.store)
    )
    made = store.find(uri, done.manifest.action_key)
    assert made is not None
    client = MlflowClient(uri)
    runs = {run.info.run_name: run.data.metrics for run in client.search_runs([made.experiment_id])}
    assert runs["SFT"]["alarms/sanity"] >= 2  # one text for all, and two rows a study
    assert runs["copy-prior"]["alarms/sanity"] == 0
    assert client.get_run(made.run_id).data.metrics["alarms/sanity"] == runs["SFT"]["alarms/sanity"]
    assert "alarms/errors" not in runs["SFT"]  # it did not run: no number, not zero
    assert runs["SFT"]["sanity/test/phantom/repeated"] == pytest.approx(23 / 24, abs=1e-6)
    assert runs["SFT"]["sanity/test/phantom/top"] == 1
    assert 0 <= runs["SFT"]["conditions/test/phantom/micro_f1_14"] < 1
