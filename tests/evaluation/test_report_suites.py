"""The suites on the page: alarms first, every figure of the paper, hostile texts as texts."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.evaluation import browser
from tests.evaluation.made_scores import made, study
from tests.evaluation.test_report import HOSTILE, Read
from unirg.evaluation import conditions as labels
from unirg.evaluation.aggregates import aggregate
from unirg.evaluation.dynamics import dynamics
from unirg.evaluation.errors import errors
from unirg.evaluation.leaderboard import Row
from unirg.evaluation.longitudinal import longitudinal
from unirg.evaluation.report import figures_subgroups, markdown, page, plots, told
from unirg.evaluation.report.shown import Shown
from unirg.evaluation.reports import reports
from unirg.evaluation.sanity import sanity
from unirg.evaluation.subgroups import subgroups
from unirg.evaluation.temporal import assign
from unirg.evaluation.zero_shot import zero_shot

BAD = " ".join(HOSTILE.values())
POLICY = f"rl {BAD}"
SMALL = {"split": "test", "corpus": "tiny", "setting": "report", "too_small": True, "board": None}
CARD = {
    "corpora": [{"corpus": BAD, "name": BAD, "licence": BAD, "public": False, "synthetic": False}],
    "hold_out": [BAD],
    "splits": [{"split": "test", "studies": 60, "patients": 30}],
    "places": [{"corpus": BAD, "institution": BAD, "studies": {"test": 60}}],
    "dropped": {BAD: 1},
}


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
        "errors": errors(scores, "offline-judge", **small),
        "conditions": labels.conditions(scores, *labels.labelled(scores, labels.lexicon), BAD, **small),
        "longitudinal": longitudinal(scores, assign(studies), [(POLICY, "sft")], **small),
        "zero_shot": zero_shot(scores, ["harbour"], {}, **small),
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
        **{"suites": suites, "provenance": [], "notes": [f"2 references have no heading {BAD}"]},
        "cards": {"data": CARD, "models": [], "unknown": [POLICY], "measures": {}},
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


def raised(*found: tuple[str, str, str, float | None]) -> dict[str, Any]:
    """Data with these alarms: suite, kind, system, value."""
    suites: dict[str, Any] = {}
    for suite, name, system, value in found:
        alarm = {"suite": suite, "alarm": name, "system": system, "value": value, "limit": 0.25}
        alarms = suites.setdefault(suite, {"alarms": []})["alarms"]
        alarms.append(alarm | {"sentence": f"{system} {value}."})
    return {"suites": suites}


def test_alarms_are_one_line_a_kind_from_the_gravest_with_the_worst_value() -> None:
    kinds = told.alarms(
        raised(
            ("reports", "coverage", "a", 0.9),
            ("dynamics", "of another version", "a", 1.0),
            ("sanity", "top", "a", 0.3),
            ("sanity", "top", "b", 0.875),
            ("sanity", "two_runs", "c", 12.0),
            ("subgroups", "regression", "d", 0.4),
        )
    )
    assert [kind.name for kind in kinds] == [
        "two_runs",
        "top",
        "regression",
        "coverage",
        "of another version",
    ]
    assert [kind.grave for kind in kinds] == [True, True, True, False, False]
    assert kinds[0].worst() == "12 studies twice"
    assert kinds[1].worst() == "at worst 88% beyond the radiologists' own"
    assert kinds[1].systems() == ["a", "b"]
    assert (kinds[4].meaning, kinds[4].worst()) == ("of another version", "")


def test_an_alarm_without_a_value_has_no_worst() -> None:
    (kind,) = told.alarms(raised(("sanity", "cut", "a", None)))
    assert kind.worst() == ""


def test_the_summary_says_who_is_best_and_what_speaks_against_it(
    collapsed: tuple[dict[str, Any], page.Page],
) -> None:
    _, made_page = collapsed
    first = Read(made_page.html).text.split("alarms of")[0]
    assert "Test set (60 studies of 30 patients): " in first
    assert "has the best mean rank of the evaluated policies (Errors per report " in first
    assert "copy-prior (Errors per report " in first
    assert f"Do not rely on {plots.visible(POLICY)} before you know why it raised" in first


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


@pytest.mark.parametrize("size", [browser.DESKTOP, browser.PHONE])
def test_no_hostile_text_runs_hides_or_shuts_somebody_out(
    collapsed: tuple[dict[str, Any], page.Page], size: tuple[int, int], tmp_path: Path
) -> None:
    _, made_page = collapsed
    path = tmp_path / "report.html"
    path.write_text(made_page.html, encoding="utf-8")
    with browser.tab(size) as tab:
        tab.open(path.as_uri())
        assert tab.complaints == []
        assert tab.requested == [path.as_uri()]
        assert tab.overflow() == 0
        assert tab.inaccessible() == []


def test_markdown_holds_the_alarms_and_no_markup_of_a_report(
    collapsed: tuple[dict[str, Any], page.Page],
) -> None:
    given, made_page = collapsed
    assert made_page.markdown.count("\n  - ") >= len(given["suites"]["sanity"]["alarms"])
    assert not re.search(r"(?<!\\)<", made_page.markdown)
    assert "Share of reports by number of errors" in made_page.markdown


def test_notes_are_told_beside_the_summary_in_both_forms(collapsed: tuple[dict[str, Any], page.Page]) -> None:
    given, made_page = collapsed
    (note,) = given["notes"]
    assert plots.visible(note) in Read(made_page.html).text.split("alarms of")[0]
    assert markdown.text(note) in made_page.markdown.split("## Alarms")[0]


def test_a_refused_system_is_named_where_its_suite_is_said_not_to_have_run() -> None:
    given = data(collapsed=False)
    refused = {"suite": "zero_shot", "system": "sft", "why": "it saw harbour", "how": "Train another."}
    given["suites"]["not_run"] = [refused]
    made_page = page.render("Report", given, [])
    text = Read(made_page.html).text
    assert "Not run: Zero-shot of sft (" in text
    assert "Zero-shot of sft was not run: it saw harbour. Train another." in text
    assert markdown.text("Zero-shot of sft was not run") in made_page.markdown


def test_held_out_is_said_only_where_a_cohort_and_a_lineage_show_it() -> None:
    given = data(collapsed=False)
    unknown = Read(page.render("Report", given, []).html).text
    assert "whether these policies have learned from them is not known: rl" in unknown
    assert "Held-out (" not in unknown
    checked = {"status": "checked", "sentence": "lineage checked"}
    given["suites"]["zero_shot"]["lineage"] |= {POLICY: checked, "sft": checked}
    known = Read(page.render("Report", given, []).html).text
    assert "beside the radiologist's, on studies kept out of training." in known
    assert "Held-out (60 studies of 30 patients)" in known
    given["suites"]["zero_shot"]["lineage"]["sft"] = {"status": "claimed", "sentence": "as claimed"}
    assert "is not known: sft." in Read(page.render("Report", given, []).html).text
    given["cards"]["data"] = None
    files = Read(page.render("Report", given, []).html).text
    assert "on the studies of prediction files; whether a system has learned" in files
    assert "Held-out" not in files


def test_markdown_has_every_table_that_the_page_has(collapsed: tuple[dict[str, Any], page.Page]) -> None:
    given, _ = collapsed
    lost = {"system": "sft", "setting": "report", "split": "test", "reason": "no prediction", "studies": 4}
    made_of = {"input": "cohort", "stage": "cohort", "version": 3, "digest": "d" * 64, "action_key": "a" * 64}
    given = given | {
        "unscored": [lost],
        "provenance": [made_of | {"counts": {}, "settings": {}, "software": {"numpy": "2.0"}}],
    }
    small = given["suites"]["reports"] | {"groups": [*given["suites"]["reports"]["groups"], SMALL]}
    given["suites"] = given["suites"] | {"reports": small}
    made_page = page.render("Report", given, [])
    captions = re.findall(r"<caption><span>(.*?)</span></caption>", made_page.html)
    apart = ("Leaderboard", "Public", "Phantom", "Studies by place")  # as boards and cards, in other words
    for caption in map(html.unescape, captions):
        if not caption.startswith(apart) and "minus second" not in caption:
            assert markdown.text(caption) in made_page.markdown
    for words in ("Commonest report", "no prediction", "d" * 16, "numpy 2.0", "Test set, tiny"):
        assert markdown.text(words) in made_page.markdown
    for each in given["suites"]["reports"]["absent"]:
        assert markdown.text(each["how"]) in made_page.markdown


def test_the_tables_have_the_metric_and_the_system_of_every_gap_that_raises_an_alarm() -> None:
    studies = [study(n, sex="FM"[n // 2 % 2]) for n in range(120)]
    women = np.array([each.sex == "F" for each in studies])
    rng = np.random.default_rng(0)
    names = ("one", "two", "three")
    plain = ("bertscore", "radgraph", "errors", "ratescore")
    columns = {n: {m: rng.normal(0.5, 0.1, len(studies)) for m in plain} for n in names}
    columns["three"]["ratescore"] = columns["three"]["ratescore"] - 0.3 * women
    scores = made(studies, columns)
    suite = subgroups(scores, [("three", "one")], resamples=300)
    told = {(each["alarm"], each["system"]) for each in suite["alarms"]}
    assert {("gap", "three"), ("regression", "three")} <= told
    given = data(collapsed=False)
    given |= {"systems": [{"name": n, "kind": "policy", "note": ""} for n in names]}
    given["suites"] = {"subgroups": suite, "not_run": []}
    shown = Shown(given, "a judge")
    each, change = figures_subgroups.figures(suite, shown)
    label = shown.heading("ratescore")
    (table,) = [table for table in each.tables if label in table.caption]
    assert "three" in table.heads
    assert label in change.tables[0].heads
    assert "Composite" not in change.svg  # nobody has a mean of it


def test_a_suite_that_was_not_run_says_why_and_how_to_have_it() -> None:
    given = data(collapsed=False)
    del given["suites"]["conditions"]
    text = Read(page.render("Report", given, []).html).text
    assert f"Conditions was not run: {plots.visible('why ' + BAD)}. {plots.visible('how ' + BAD)}" in text
