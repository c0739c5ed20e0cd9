"""The whole evaluation of a phantom cohort, held against what is known of every phantom.

Phantoms' reports state each of their findings and nothing else, so rules read the conditions without a
mistake, and the temporal category of each study was drawn before its report was written.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.evaluation.worlds import World
from unirg.artifact import Artifact
from unirg.cohort.reader import Cohort
from unirg.cohort.stage import StageConfig, stage
from unirg.evaluation import suites
from unirg.evaluation.candidates import reference
from unirg.evaluation.evaluate import EvaluateConfig, evaluate
from unirg.evaluation.report.render import ReportConfig, report
from unirg.evaluation.suites import SUITES
from unirg.metrics.findings_terms import CONDITIONS
from unirg.study import Study

PAPER = {"1d", "2a", "2b", "2c", "2d", "2e", "2f", "3a", "3b", "3c", "4a", "4b", "4c", "4d"}
"""Figures of the paper that show results."""
PHANTOM = {"first": "first_study", "new": "new_development", "none": "no_change"}
MEASURED = "bleu2"


@dataclass(frozen=True)
class Known:
    """An evaluation, and what is true of its studies."""

    found: Mapping[str, Any]
    page: str
    studies: list[Study]
    """Those of the test split, in the order of `said`."""
    said: list[Study]
    """Whose report the policy "half" gives of each."""
    findings: Mapping[str, set[str]]
    category: Mapping[str, str]
    scores: Mapping[tuple[str, str], float]
    """(system, study_id) -> `MEASURED`."""

    def group(self, suite: str, setting: str = "report") -> Any:
        groups = self.found[suite]["groups"]
        (one,) = [g for g in groups if (g["split"], g["setting"]) == ("test", setting)]
        return one


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory, judge_url: str) -> Known:
    world = World(tmp_path_factory.mktemp("phantoms") / "store")
    store = str(world.store)
    made = stage(StageConfig(studies=900, size=64, workers=1, hold_out=("summit",)), store)
    cohort = Cohort.open(made)
    everyone = [study for study in cohort.studies() if study.split in ("test", "zero_shot")]
    rng = np.random.default_rng(0)
    others = [
        everyone[other] if rng.random() < 0.5 else each
        for each, other in zip(everyone, rng.permutation(len(everyone)), strict=True)
    ]
    said = {
        "exact": {each.study_id: reference(each, "report") for each in everyone},
        "half": {
            each.study_id: reference(other, "report") for each, other in zip(everyone, others, strict=True)
        },
    }
    validated = [
        {
            **{"step": step, "validation/radcliq_v1": 2 - step / 9, "validation/errors": 3 - step / 9},
            **{"validation/bleu2": step / 9, "validation/studies": 60, "validation/missing": 0},
        }
        for step in (1, 3, 5)
    ]
    checkpoints = {name: world.checkpoint(name, more=validated) for name in said}
    predictions: dict[str, Artifact] = {
        name: world.predictions(name, made, texts, model=checkpoints[name]) for name, texts in said.items()
    }
    settings = EvaluateConfig(
        resamples=200,
        scores=(MEASURED,),
        composite={MEASURED: 1.0},
        prior_pairs=(("exact", "half"),),
        judge_model="offline-judge",
        judge_url=judge_url,
        min_group=10,
    )
    made_of = evaluate(settings, made, predictions, checkpoints, store)
    page = report(ReportConfig(cases=1), made_of, made, predictions, checkpoints, store)
    table = cohort.truth()
    assert table is not None
    truth = {row["study_id"]: row for row in table.to_pylist()}
    rows = pq.read_table(made_of.path("scores.parquet")).to_pylist()
    tested = [at for at, each in enumerate(everyone) if each.split == "test"]
    return Known(
        suites.read(made_of),
        page.path("report.html").read_text(),
        [everyone[at] for at in tested],
        [others[at] for at in tested],
        {key: {each["condition"] for each in row["findings"]} for key, row in truth.items()},
        {key: PHANTOM.get(row["temporal_category"], row["temporal_category"]) for key, row in truth.items()},
        {(row["system"], row["study_id"]): row[f"report_{MEASURED}"] for row in rows},
    )


def test_all_suites_and_every_figure_of_the_paper_appear(known: Known) -> None:
    assert set(known.found) == {*SUITES, "not_run"}
    assert known.found["not_run"] == []
    tags = re.findall(r"Figure ([^<]+) of the paper", known.page)
    assert {each for tag in tags for each in re.findall(r"\d[a-f]", tag)} >= PAPER


def test_each_condition_is_counted_as_the_truth_has_it(known: Known) -> None:
    group = known.group("conditions")
    exact, half = (group["systems"][name]["positive"]["conditions"] for name in ("exact", "half"))
    shown = 0
    for name in (name for name in CONDITIONS if name != "No Finding"):
        there = np.array([name in known.findings[each.study_id] for each in known.studies])
        claimed = np.array([name in known.findings[each.study_id] for each in known.said])
        assert exact[name]["support"] == exact[name]["claimed"] == there.sum()
        assert half[name]["claimed"] == claimed.sum()
        if "too_small" in exact[name]:
            continue
        shown += 1
        assert [exact[name][measure]["mean"] for measure in ("precision", "recall", "f1")] == [1, 1, 1]
        hit = (there & claimed).sum()
        wanted = [hit / claimed.sum(), hit / there.sum(), 2 * hit / (claimed.sum() + there.sum())]
        measured = [half[name][measure]["mean"] for measure in ("precision", "recall", "f1")]
        assert measured == pytest.approx(wanted, abs=1e-6)
    assert shown >= 2


def test_each_temporal_category_holds_the_studies_and_means_of_the_truth(known: Known) -> None:
    cells = {cell["cell"]: cell for cell in known.group("longitudinal")["cells"] if cell["by"] == "category"}
    counted = Counter(known.category[each.study_id] for each in known.studies)
    assert {name: cell["studies"] for name, cell in cells.items()} == {name: counted[name] for name in cells}
    assert sum(counted.values()) == len(known.studies)
    large = {name: cell for name, cell in cells.items() if "too_small" not in cell}
    assert len(large) >= 3
    for name, cell in large.items():
        for system in ("exact", "half", "copy-prior"):
            scores = [
                known.scores[system, each.study_id]
                for each in known.studies
                if known.category[each.study_id] == name
            ]
            assert cell["values"][system][MEASURED]["mean"] == pytest.approx(np.mean(scores), abs=1e-6)


def test_the_labeller_of_change_agrees_with_the_truth(known: Known) -> None:
    labels = known.found["longitudinal"]["labels"]
    assert labels["missing"] == {}
    assert labels["agreement"]["studies"] > 30
    assert labels["agreement"]["agree"] == labels["agreement"]["studies"]


def test_encounters_are_counted_from_the_patients_studies(known: Known) -> None:
    cells = {cell["cell"]: cell for cell in known.group("longitudinal")["cells"] if cell["by"] == "encounter"}
    counted = Counter(min(each.encounter or 0, 5) for each in known.studies)
    assert {name: cell["studies"] for name, cell in cells.items()} == {
        name: counted[int(name[0])] for name in cells
    }
