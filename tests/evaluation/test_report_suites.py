"""The suites on the page: alarms first, every figure of the paper, hostile texts as texts."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest

from tests.evaluation.made_scores import made, study
from tests.evaluation.test_report import HOSTILE, Read
from unirg.evaluation import conditions as labels
from unirg.evaluation.aggregates import aggregate
from unirg.evaluation.dynamics import dynamics
from unirg.evaluation.errors import errors
from unirg.evaluation.leaderboard import Row
from unirg.evaluation.longitudinal import longitudinal
from unirg.evaluation.report import page, plots, told
from unirg.evaluation.reports import reports
from unirg.evaluation.sanity import sanity
from unirg.evaluation.subgroups import subgroups
from unirg.evaluation.temporal import assign
from unirg.evaluation.zero_shot import zero_shot

BAD = " ".join(HOSTILE.values())
POLICY = f"rl {BAD}"


def data(collapsed: bool) -> dict[str, Any]:
    """What the page is made of: two policies and copy-prior over a test set and an unseen place."""
    effusion = {"findings": "Small left pleural effusion.", "impression": "Effusion."}
    studies = []
    for n in range(60):
        prior = f"phantom-test-{n - 1}" if n % 2 else None
        texts = effusion if n % 3 else {}
        studies.append(study(n, sex="FM"[n % 2], encounter=1 + n % 2, prior_study_id=prior, **texts))
        studies.append(study(n, split="zero_shot", institution="harbour", sex="F", **texts))
    rng = np.random.default_rng(0)
    columns = {
        name: {"bertscore": rng.normal(0.4, 0.1, 120), "errors": rng.integers(0, 6, 120)}
        | {"errors_significant": np.zeros(120)}
        for name in (POLICY, "sft", "copy-prior")
    }
    same = {each.study_id: f"Findings: Normal. {BAD}" for each in studies}
    scores = made(studies, columns, {POLICY: same} if collapsed else None, {"copy-prior": "baseline"})
    for key in {key[:2] for key in scores.values}:
        scores.reasons[key] = [None] * len(studies)
    small: dict[str, Any] = {"resamples": 100}
    board = Row("phantom", "report", f"Board {BAD}", "Somewhere", "2025", {"bertscore": 0.5}, "2025-09")
    log = [
        {"step": step, "loss": 1 / step, "validation/radcliq_v1": 1.0, "validation/errors": 2 - step / 9}
        | {"validation/bleu2": 0.1, "validation/studies": 60, "validation/missing": 0}
        for step in (1, 2, 3)
    ]
    histories = {POLICY: log, "sft": log}
    suites: dict[str, Any] = {
        "reports": reports(scores, [], **small),
        "errors": errors(scores, "offline judge", **small),
        "conditions": labels.conditions(scores, *labels.labelled(scores, labels.lexicon), BAD, **small),
        "longitudinal": longitudinal(scores, assign(studies), [(POLICY, "sft")], **small),
        "zero_shot": zero_shot(scores, {}, **small),
        "subgroups": subgroups(scores, [(POLICY, "sft")], ["bertscore", "errors"], **small),
        "dynamics": dynamics(histories, {"sft": POLICY}, None, scores, **small),
        "sanity": sanity(scores, **small),
        "not_run": [{"suite": "conditions", "why": f"why {BAD}", "how": f"how {BAD}"}],
    }
    public = suites["reports"]["public"]["boards"]
    rows = {"rank": 1, "model": board.model, "institution": board.institution, "year": board.year}
    public["phantom/report"] = {
        **{"corpus": "phantom", "title": "Phantom", "setting": "report", "studies": 9},
        "rows": [{**rows, "metrics": dict(board.metrics), "agrees": None}],
    }
    found = aggregate(scores, [], 100, 0)
    return found | {
        **{"judge": "offline-judge", "composite": {}, "scorers": None, "identity": {}, "resamples": 100},
        **{
            "suites": suites,
            "training": [],
            "validations": [],
            "alarms": [],
            "dropped": {},
            "provenance": [],
        },
    }


@pytest.fixture(scope="module")
def collapsed() -> tuple[dict[str, Any], page.Page]:
    given = json.loads(json.dumps(data(collapsed=True), allow_nan=False))
    return given, page.render("Report", given, [])


def test_every_alarm_stands_before_any_number_of_a_table(collapsed: tuple[dict[str, Any], page.Page]) -> None:
    given, made_page = collapsed
    first = Read(made_page.html).text.split("Leaderboard")[0]
    raised = [alarm for suite in told.SUITES for alarm in given["suites"][suite]["alarms"]]
    assert {"top", "section"} <= {alarm["alarm"] for alarm in raised}
    for alarm in raised:
        assert plots.visible(alarm["sentence"]) in first
        assert (alarm["suite"], alarm["alarm"]) in told.MEANINGS


def test_the_figures_of_the_paper_are_drawn(collapsed: tuple[dict[str, Any], page.Page]) -> None:
    _, made_page = collapsed
    drawn = set(re.findall(r"Figure ([\w, ]+) of the paper", made_page.html))
    assert drawn == {"1d, 2a", "2b", "2c", "2d", "2e", "2f", "3a", "3b", "3c", "4a", "4b", "4c", "4d"}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_names_and_texts_of_the_suites_show_as_text(
    collapsed: tuple[dict[str, Any], page.Page], kind: str
) -> None:
    _, made_page = collapsed
    read = Read(made_page.html)
    assert read.text.count(plots.visible(HOSTILE[kind])) >= 10
    assert not {"script", "iframe", "form"} & set(read.tags)
    assert read.handlers == []
    assert "\N{RIGHT-TO-LEFT OVERRIDE}" not in made_page.html + made_page.markdown
    assert len(read.ids) == len(set(read.ids))


def test_markdown_holds_the_alarms_and_no_markup_of_a_report(
    collapsed: tuple[dict[str, Any], page.Page],
) -> None:
    given, made_page = collapsed
    assert made_page.markdown.count("\n  - ") >= len(given["suites"]["sanity"]["alarms"])
    assert not re.search(r"(?<!\\)<", made_page.markdown)
    assert "Share of reports by number of errors" in made_page.markdown


def test_a_suite_that_was_not_run_says_why_and_how_to_have_it() -> None:
    given = data(collapsed=False)
    del given["suites"]["conditions"]
    text = Read(page.render("Report", given, []).html).text
    assert f"Conditions was not run: {plots.visible('why ' + BAD)}. {plots.visible('how ' + BAD)}" in text
