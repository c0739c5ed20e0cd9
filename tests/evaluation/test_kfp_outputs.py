"""What KFP's UI shows: numbers and matrices that are right and finite, a summary that quotes nobody."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from kfp import dsl

import components.evaluate
import components.report
from tests.evaluation.worlds import FINDINGS, WRONG, Made, World, bare
from unirg import artifact
from unirg.artifact import Artifact
from unirg.evaluation import aggregates, kfp_outputs, suites
from unirg.evaluation.conditions import lexicon
from unirg.evaluation.evaluate import EvaluateConfig, evaluate
from unirg.metrics.conditions import FIVE, POSITIVE
from unirg.metrics.findings_terms import CONDITIONS

ROOT = Path(__file__).parents[2]
HOSTILE = "<script>alert(1)</script> | `x` \N{RIGHT-TO-LEFT OVERRIDE}" + "long " * 60


class Shown(SimpleNamespace):
    """The outputs of the task, as KFP hands them to a component."""

    metrics: dsl.Metrics
    classified: dict[str, dsl.ClassificationMetrics]
    html: str
    markdown: str

    def matrix(self, name: str) -> list[list[int]]:
        return [row["row"] for row in self.classified[name].metadata["confusionMatrix"]["rows"]]


class Tags(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__()
        self.seen: set[str] = set()
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


def show(evaluation: Artifact, folder: Path) -> Shown:
    html, markdown = (kind(uri=str(folder / kind.__name__)) for kind in (dsl.HTML, dsl.Markdown))
    metrics, classified = dsl.Metrics(), {name: dsl.ClassificationMetrics() for name in ("all", *FIVE)}
    kfp_outputs.show_evaluation(evaluation, metrics, html, markdown, classified)
    texts = [Path(each.path).read_text() for each in (html, markdown)]
    return Shown(metrics=metrics, classified=classified, html=texts[0], markdown=texts[1])


def run(world: World, patients: int, **said: Mapping[str, str]) -> Artifact:
    cohort = world.fill(patients).cohort()
    texts = said or {"good": world.answers(1.0), "sft": world.answers(0.4)}
    given = {name: world.predictions(name, cohort, each) for name, each in texts.items()}
    settings = EvaluateConfig(resamples=100, systems=tuple(texts))
    return evaluate(settings, cohort, given, {}, str(world.store))


def test_a_matrix_counts_the_studies_of_the_last_policy(world: World, tmp_path: Path) -> None:
    shown = show(run(world, 40), tmp_path)
    said = world.answers(0.4)
    held_out = [study for study in world.studies if study.split == "test"]
    expected = lexicon([f"Findings: {s.findings} Impression: {s.impression}" for s in held_out]) == POSITIVE
    found = lexicon([said[study.study_id] for study in held_out]) == POSITIVE

    def counted(columns: Any) -> list[list[int]]:
        ours, truth = found[:, columns], expected[:, columns]
        return [
            [int((ours & truth).sum()), int((~ours & truth).sum())],
            [int((ours & ~truth).sum()), int((~ours & ~truth).sum())],
        ]

    assert shown.matrix("all") == counted(slice(None))
    for name in ("Cardiomegaly", "Pleural Effusion"):
        assert shown.matrix(name) == counted([CONDITIONS.index(name)])
        assert min(map(min, shown.matrix(name))) > 0  # so that no cell could stand for another
    specs = shown.classified["all"].metadata["confusionMatrix"]["annotationSpecs"]
    assert [each["displayName"] for each in specs] == ["stated", "not stated"]
    assert shown.classified["Edema"].metadata == {}  # no reference states it


def test_metrics_are_the_headlines_means_and_nothing_that_json_has_not(world: World, tmp_path: Path) -> None:
    done = run(world, 12)
    shown = show(done, tmp_path)
    data, found = aggregates.read(done), suites.read(done)
    metrics = shown.metrics.metadata
    json.dumps(metrics, allow_nan=False)
    assert metrics["alarms"] == len(suites.alarms(found)) > 0
    assert metrics["good/test/bleu2"] == 1
    assert metrics["sft/zero_shot/rouge_l"] == data["headline"]["sft"]["zero_shot"]["rouge_l"]["mean"]
    assert not [name for name in metrics if "errors" in name]  # nobody counted any: no number, not zero
    assert "no judge" in shown.html
    assert all(alarm["sentence"] in Tags(shown.html).text for alarm in suites.alarms(found))


def test_a_name_is_shown_as_text_and_no_report_is_quoted(world: World, tmp_path: Path) -> None:
    answers = world.fill(12).answers(0.4)
    world.studies.clear()
    shown = show(run(world, 12, **{HOSTILE + "1": answers, HOSTILE + "2": answers}), tmp_path)
    page = Tags(shown.html)
    assert not {"script", "img", "iframe", "link", "a"} & page.seen
    assert "<script>alert(1)</script> | `x` [U+202E]" in page.text
    assert "default-src 'none'" in shown.html
    assert not re.search(r"(?<!\\)[<`]", shown.markdown)
    assert r"\<script\>alert\(1\)" in shown.markdown
    names = [name for name in shown.metrics.metadata if name != "alarms"]
    assert max(map(len, names)) <= kfp_outputs.LONGEST
    assert len([name for name in names if "test/bleu2" in name]) == 4  # two of them, and two baselines
    everything = f"{shown.html}{shown.markdown}{shown.metrics.metadata}"
    assert not [words for texts in FINDINGS.values() for words in texts if words in everything]
    assert not [study.study_id for study in world.studies if study.study_id in everything]


def test_the_matrices_are_of_a_policy_that_has_reports_here(world: World, tmp_path: Path) -> None:
    good = world.fill(40).answers(1.0)
    world.studies.clear()
    none = {key: text for key, text in good.items() if key.startswith("zero")}
    shown = show(run(world, 40, good=good, unseen=none), tmp_path)
    assert sum(map(sum, shown.matrix("all"))) == 80 * 14
    assert "good, 80 studies" in shown.html


def test_a_refusal_names_no_place_of_a_store(world: World, tmp_path: Path) -> None:
    world.add("train900", "train", "normal", place="harbour")
    cohort = world.fill(12).cohort()
    with artifact.draft(str(world.store), "sft", 1, Made(name="saw it"), {"cohort": cohort}) as draft:
        saw = draft.commit({})
    said = {"saw it": world.predictions("x", cohort, world.answers(1.0), model=saw)}
    done = evaluate(EvaluateConfig(resamples=100), cohort, said, {}, str(world.store))
    shown = show(done, tmp_path)
    assert f"run sft {saw.uri.rpartition('/')[2]} learned from" in shown.html
    assert world.store.name not in (shown.html + shown.markdown)


def test_too_few_studies_leave_the_matrices_empty_and_the_summary_stands(
    world: World, tmp_path: Path
) -> None:
    shown = show(run(world, 4), tmp_path)
    assert [each.metadata for each in shown.classified.values()] == [{}] * 6
    assert "the largest group has 8 studies of 4 patients, and 20 of 10 are needed" in shown.html
    assert "## Not computed" in shown.markdown


def test_the_component_has_an_output_for_every_matrix() -> None:
    outputs = components.evaluate.evaluate.component_spec.outputs
    wanted = {name.lower().replace(" ", "_") for name in (f"{kfp_outputs.ALL}_conditions", *FIVE)}
    assert wanted == {name for name, each in outputs.items() if "ClassificationMetrics" in each.type}


@pytest.mark.parametrize("component", [components.evaluate.evaluate, components.report.report])
def test_a_file_of_references_can_be_given_and_need_not_be(component: Any) -> None:
    given = component.component_spec.inputs["references"]
    assert (given.type, given.default, given.optional) == ("String", "", True)


RUN = """
import json, sys, warnings
warnings.filterwarnings("ignore")
from kfp import dsl, local
import components.evaluate, components.report
given = json.loads(sys.argv[1])
local.init(local.SubprocessRunner(use_venv=False), pipeline_root=given.pop("root"), raise_on_error=True)

@dsl.pipeline
def both(store: str, predictions: dict, overrides: list) -> str:
    shared = {"store": store, "cohort": "", "predictions": predictions, "checkpoints": {}, "traceparent": ""}
    made = components.evaluate.evaluate(
        recipe="", overrides=overrides, judge_url="", weights="", tracking_uri="", **shared
    )
    evaluation = made.outputs["Output"]
    shown = components.report.report(recipe="", overrides=[], evaluation=evaluation, **shared)
    return shown.outputs["Output"]

both(**given)
"""


def test_kfps_local_runner_writes_outputs_that_its_ui_can_load(tmp_path: Path) -> None:
    given = {"root": str(tmp_path / "kfp"), "store": str(tmp_path / "store"), "predictions": bare(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", RUN, json.dumps(given | {"overrides": ["resamples=100"]})],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = {path.parts[-2]: json.loads(path.read_text()) for path in tmp_path.rglob("executor_output.json")}
    outputs = {
        task: {name: each["artifacts"][0] for name, each in of["artifacts"].items()}
        for task, of in found.items()
    }
    evaluated, reported = outputs["evaluate"], outputs["report"]
    assert evaluated["metrics"]["metadata"]["b/test/bleu2"] == 1
    rows = evaluated["all_conditions"]["metadata"]["confusionMatrix"]["rows"]
    assert sum(number for row in rows for number in row["row"]) == 30 * 14
    texts = {name: Path(evaluated[name]["uri"]).read_text() for name in ("html", "markdown")}
    assert texts["html"].startswith("<!doctype html>")
    assert texts["markdown"].startswith("# Evaluation")
    assert WRONG.split(":")[1].split(".")[0] not in "".join(texts.values())
    (folder,) = (tmp_path / "store" / "report").iterdir()
    made = artifact.open_artifact(str(folder), "report")
    for name, file in (("html", "report.html"), ("markdown", "report.md")):
        assert Path(reported[name]["uri"]).read_bytes() == made.path(file).read_bytes()
