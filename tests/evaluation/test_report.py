"""The report: one file that loads nothing, shows everything it was given as text, and repeats to the byte."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tests.evaluation import browser
from tests.evaluation.worlds import World
from unirg.artifact import Artifact
from unirg.errors import UserError
from unirg.evaluation.evaluate import EvaluateConfig, evaluate
from unirg.evaluation.report import plots
from unirg.evaluation.report.render import ReportConfig, report
from unirg.evaluation.report.shown import signed

HOSTILE = {
    "script": "<script>alert(1)</script>",
    "markup": "</style></svg><img src=x onerror=alert(2)>",
    "template": "{{ 7*7 }} {% raw %}",
    "formula": '=HYPERLINK("http://x", 1) $\\frac{',
    "direction": "abc\N{RIGHT-TO-LEFT OVERRIDE}fed\N{RIGHT-TO-LEFT MARK}\N{ZERO WIDTH SPACE}\x1b[0m",
}

VALIDATED = [
    {"step": 2, "validation/loss": 1.5, "validation/radcliq_v1": 1.25}
    | {"validation/studies": 1024, "validation/missing": 3, "validation/seconds": 7.5},
    {"step": 4, "alarm/entropy": 0.015, "entropy": 0.01},
    {"step": 5, "validation/loss": float("nan"), "validation/radcliq_v1": 0.75}
    | {"validation/studies": 1024, "validation/missing": 0, "validation/seconds": 7.5},
]
"""Entries of a trainer's log: two validations with an alarm between them."""


class Read(HTMLParser):
    """Elements, attributes and visible text of a page; what is written in figures is apart, in `drawn`."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.handlers: list[str] = []
        self.parts: list[str] = []
        self.drawn = ""
        self._inside = 0
        self._style = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._inside += tag == "svg"
        self._style = tag == "style"
        for name, value in attrs:
            if name == "id":
                self.ids.append(str(value))
            if name in ("src", "href", "xlink:href", "action", "data", "srcset"):
                self.links.append(str(value))
            if name.startswith("on"):
                self.handlers.append(name)

    def handle_endtag(self, tag: str) -> None:
        self._inside -= tag == "svg"
        self._style = False

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.drawn += data
        elif not self._style:
            self.parts.append(data)

    @property
    def text(self) -> str:
        return "".join(self.parts)


def made(world: World, judge_url: str, hostile: bool = False) -> tuple[Artifact, dict[str, Any]]:
    """A report over two policies, and what it was made of."""
    bad = " ".join(HOSTILE.values()) if hostile else ""
    texts = {"findings": f"Clear lungs. {bad}", "indication": f"Cough {bad}"} if hostile else {}
    world.add("odd0", "test", "normal", "effusion", sex="F", **texts)
    cohort = world.fill().cohort()
    untrained = world.checkpoint("untrained", steps=0)
    sft = world.checkpoint("sft", more=VALIDATED, entropy_floor=0.02)
    names = ("untrained", f"sft {bad}".strip())
    answers = world.answers(0.7)
    wrong = {study_id: f"Findings: {bad or 'Normal.'}" for study_id in answers}
    lost = {"zero000-0": f"HTTP 500 {bad}"}
    answers.pop("zero000-0")
    inputs: dict[str, Any] = {
        "predictions": {
            names[0]: world.predictions("untrained", cohort, wrong, model=untrained),
            names[1]: world.predictions("sft", cohort, answers, lost, model=sft),
        },
        "checkpoints": {names[0]: untrained, names[1]: sft},
    }
    config = EvaluateConfig(
        resamples=200,
        systems=names,
        comparisons=((names[1], "most-frequent-report"), (names[1], "copy-prior")),
        judge_model="offline-judge",
        judge_url=judge_url,
    )
    inputs["evaluation"] = evaluate(config, cohort, **inputs, store=str(world.store))
    inputs["cohort"] = cohort
    title = f"Report {bad}" if hostile else "Report"
    return report(ReportConfig(title=title), **inputs, store=str(world.store)), inputs


Made = tuple[Artifact, dict[str, Any]]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, judge_url: str) -> Made:
    """A report over two policies."""
    return made(World(tmp_path_factory.mktemp("plain") / "store"), judge_url)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory, judge_url: str) -> Made:
    """The same with hostile texts wherever a text can come in."""
    return made(World(tmp_path_factory.mktemp("hostile") / "store"), judge_url, hostile=True)


def test_the_page_is_one_file_that_runs_and_loads_nothing(plain: Made) -> None:
    done, _ = plain
    html = done.path("report.html").read_text()
    read = Read(html)
    assert html.startswith("<!doctype html>")
    assert not {"script", "iframe", "object", "embed", "form", "base"} & set(read.tags)
    assert read.handlers == []
    assert all(link.startswith(("data:", "#")) for link in read.links)
    assert "@import" not in html
    assert not re.search(r"url\((?!#)", html)
    assert "default-src 'none'; style-src 'unsafe-inline'; img-src data:" in html
    assert len(read.ids) == len(set(read.ids))
    for link in read.links:
        assert not link.startswith("#") or link[1:] in read.ids


def test_the_page_says_what_it_is_for_and_who_counted_the_errors(plain: Made) -> None:
    done, _ = plain
    text = Read(done.path("report.html").read_text()).text
    assert "Research use, not for diagnosis." in text.split("Leaderboard")[0]
    columns = re.findall(r"(?:Errors per report|Composite reward)\s[\u2191\u2193] ?\(?(.{13})", text)
    assert len(columns) >= 8
    assert set(columns) == {"offline judge"}
    for part in ("Test set", "Zero-shot", "most-frequent-report", "copy-prior", "the interval"):
        assert part in text
    assert "no prediction: HTTP 500" in text


def numbers_in(found: Any) -> Iterator[str]:
    """Every number of a JSON, in each form that the page has for one."""
    if isinstance(found, dict):
        for key, value in found.items():
            yield from numbers_in([str(key), value])
    elif isinstance(found, list):
        for value in found:
            yield from numbers_in(value)
    elif isinstance(found, str):
        yield from re.findall(NUMBER, found)
    elif isinstance(found, int | float) and not isinstance(found, bool):
        for form in (".1f", ".2f", ".3f", ".3g", ".0%", ".1%", ",", ""):
            yield format(abs(found), form)


NUMBER = r"\d+(?:[.,]\d+)+%?"


def test_every_number_of_the_page_is_in_the_json(plain: Made) -> None:
    done, inputs = plain
    numbers = json.loads(done.path("report.json").read_text())
    shown = set(re.findall(NUMBER, " ".join(Read(done.path("report.html").read_text()).parts)))
    assert len(shown) > 100
    assert shown <= set(numbers_in(numbers))
    assert {entry["digest"] for entry in numbers["provenance"]} >= {inputs["cohort"].digest}
    assert "Small left pleural effusion" not in json.dumps(numbers | {"suites": {}})


def test_markdown_compares_systems_and_has_the_cards(plain: Made) -> None:
    done, inputs = plain
    markdown = done.path("report.md").read_text()
    data = json.loads(done.path("report.json").read_text())
    one = next(r for r in data["comparisons"] if r["split"] == "test" and r["setting"] == "report")
    (row,) = [line for line in markdown.splitlines() if re.match(r"\| .* minus most.*Test set", line)]
    assert signed(one["difference"], one["metric"]) in row
    assert re.search(r"[+\N{MINUS SIGN}]\d", row)
    for checkpoint in inputs["checkpoints"].values():
        assert checkpoint.digest[:16] in markdown
    assert re.search(r"- Held\\-out: \d+ studies of \d+ patients", markdown)


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_text_appears_as_text(hostile: Made, kind: str) -> None:
    done, _ = hostile
    html = done.path("report.html").read_text()
    read = Read(html)
    shown = plots.visible(HOSTILE[kind])
    # The title, the case's reference and indication, a candidate, a system's name, a reason.
    assert read.text.count(shown) >= 6
    assert not {"script", "iframe"} & set(read.tags)
    assert read.handlers == []
    assert "\N{RIGHT-TO-LEFT OVERRIDE}" not in html


def test_direction_and_control_marks_are_spelled_out() -> None:
    assert plots.visible(HOSTILE["direction"]) == "abc[U+202E]fed[U+200F][U+200B][U+001B][0m"
    assert plots.visible("first line\nsecond") == "first line\nsecond"


def test_the_same_inputs_give_the_same_bytes_whatever_the_addresses_and_their_order(
    plain: Made, judge_url: str, tmp_path: Path
) -> None:
    first, inputs = plain
    html = first.path("report.html").read_text()
    assert first.store not in html
    assert judge_url not in html + first.path("report.json").read_text()
    for name in ("predictions", "checkpoints"):
        inputs = inputs | {name: dict(reversed(inputs[name].items()))}
    again = report(ReportConfig(title="Report"), **inputs, store=str(tmp_path / "other"))
    assert again.digest == first.digest


def test_cases_show_the_images_and_every_system(plain: Made) -> None:
    done, _ = plain
    html = done.path("report.html").read_text()
    numbers = json.loads(done.path("report.json").read_text())
    kinds = [(case["split"], case["kind"]) for case in numbers["cases"]]
    order = ("worst", "disagreement", "median", "best")
    assert [*dict.fromkeys(kinds)] == [(s, k) for s in ("test", "zero_shot") for k in order]
    assert html.count('<article class="case') == len(kinds)
    assert 'alt="Current frontal chest radiograph"' in html
    assert 'alt="Prior frontal chest radiograph"' in html
    assert html.count("<h4>copy-prior</h4>") == len(kinds)
    worst, best = numbers["cases"][0], numbers["cases"][kinds.index(("test", "best"))]
    assert worst["scores"]["sft"]["composite"] < best["scores"]["sft"]["composite"]


def test_without_judge_comparisons_zero_shot_or_policies_the_page_still_stands(world: World) -> None:
    world.add("train0", "train", "normal")
    world.add("test0", "test", "effusion", "normal")
    cohort = world.cohort()
    done = evaluate(EvaluateConfig(resamples=100), cohort, {}, {}, str(world.store))
    text = Read(
        report(ReportConfig(), done, cohort, {}, {}, str(world.store)).path("report.html").read_text()
    ).text
    assert "No judge was configured" in text
    assert "no institution was held out" in text
    assert "No policy was ranked" in text
    assert "Too small to be shown as numbers: Held-out, phantom" in text


def test_inputs_that_are_not_those_of_the_evaluation_are_refused(plain: Made) -> None:
    done, inputs = plain
    store = done.store
    fewer = inputs | {"predictions": {"sft": inputs["predictions"]["sft"]}}
    with pytest.raises(UserError, match="predictions:untrained is not what"):
        report(ReportConfig(), **fewer, store=store)
    with pytest.raises(UserError, match="focus = stf is no policy"):
        report(ReportConfig(focus="stf"), **inputs, store=store)


def test_a_running_mean_keeps_constants_and_length() -> None:
    assert plots.running_mean([2.0] * 57).tolist() == [2.0] * 57
    assert plots.running_mean([1.0]).tolist() == [1.0]


def test_validation_scores_stand_against_their_steps(plain: Made) -> None:
    done, _ = plain
    numbers = json.loads(done.path("report.json").read_text())
    found = {curve["key"]: (curve["run"], curve["steps"], curve["values"])
             for curve in numbers["suites"]["dynamics"]["curves"]}  # fmt: skip
    assert found["validation/radcliq_v1"] == ("sft", [2, 5], [1.25, 0.75])
    assert found["validation/loss"] == ("sft", [2], [1.5])
    read = Read(done.path("report.html").read_text())
    assert "RadCliQ-v1 against training steps" in read.text
    assert "lower is better" in read.drawn
    assert "sft: validated on 1,024 studies each time, 3 scores missing in all." in read.text


def test_an_alarm_of_training_is_told_first(plain: Made) -> None:
    done, _ = plain
    first = Read(done.path("report.html").read_text()).text.split("Leaderboard")[0]
    assert "Training has collapsed: one report for all. sft" in first
    assert "As it was trained, sft has collapsed" in first


def test_cards_tell_the_data_and_how_each_model_was_made(plain: Made) -> None:
    done, inputs = plain
    cards = json.loads(done.path("report.json").read_text())["cards"]
    assert cards["data"]["corpora"] == [
        {"corpus": "phantom", "name": "Phantoms, drawn by UniRG: no patient", "licence": "Apache-2.0"}
        | {"public": True, "synthetic": True}
    ]
    assert cards["data"]["hold_out"] == ["harbour"]
    assert {split["split"]: (split["studies"], split["patients"]) for split in cards["data"]["splits"]} == {
        **{"test": (26, 13), "train": (24, 12), "zero_shot": (24, 12)}
    }
    models = {model["systems"][0]: model for model in cards["models"]}
    assert list(models) == ["untrained", "sft"]
    (stage,) = models["sft"]["stages"]
    assert stage == {
        **{"stage": "sft", "digest": inputs["checkpoints"]["sft"].digest, "steps": 5},
        "learning_rate": 1e-3,
    }
    text = Read(done.path("report.html").read_text()).text
    assert "Known limits: Training has collapsed: one report for all." in text
    assert "Phantoms, drawn by UniRG: no patient (phantom): synthetic" in text


@pytest.mark.parametrize("size", [browser.DESKTOP, browser.PHONE])
@pytest.mark.parametrize("name", ["plain", "hostile"])
def test_an_accessibility_checker_finds_nothing_grave(
    name: str, size: tuple[int, int], request: pytest.FixtureRequest
) -> None:
    done, _ = request.getfixturevalue(name)
    with browser.tab(size) as tab:
        tab.open(done.path("report.html").as_uri())
        assert tab.inaccessible() == []
        tab.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true })")
        assert tab.inaccessible() == []


def test_the_accessibility_checker_finds_what_is_there() -> None:
    with browser.tab() as tab:
        tab.page.set_content("<html><body><img src='data:,'><p style='color: #ddd'>pale</p></body></html>")
        assert {finding.split()[0] for finding in tab.inaccessible()} >= {"image-alt", "color-contrast"}


def order(tab: browser.Tab) -> list[int]:
    """The cases that are seen, by their place in the page's source, from the top."""
    shown = []
    for at, case in enumerate(tab.page.locator(".case").all()):
        if box := case.bounding_box():
            shown.append((box["y"], at))
    return [at for _, at in sorted(shown)]


def test_cases_are_sorted_and_narrowed_by_mouse_and_by_keyboard(plain: Made) -> None:
    done, _ = plain
    scored = [
        case["scores"]["sft"]["composite"]
        for case in json.loads(done.path("report.json").read_text())["cases"]
    ]
    with browser.tab() as tab:
        tab.open(done.path("report.html").as_uri())
        assert order(tab) == list(range(len(scored)))
        tab.page.get_by_label("worst first").click()
        worst = order(tab)
        assert [scored[at] for at in worst] == sorted(scored)
        assert worst != list(range(len(scored)))
        tab.page.keyboard.press("ArrowLeft")
        assert order(tab) == list(range(len(scored)))
        tab.page.get_by_label("sex: F", exact=False).first.click()
        women = order(tab)
        assert 0 < len(women) < len(scored)
        tab.page.get_by_label("everyone", exact=True).focus()
        tab.page.keyboard.press("Space")
        assert order(tab) == list(range(len(scored)))


def test_a_browser_shows_the_page_without_an_error_or_a_request(hostile: Made) -> None:
    done, _ = hostile
    uri = done.path("report.html").as_uri()
    with browser.tab() as tab:
        tab.open(uri)
        assert tab.evaluate("document.querySelectorAll('h2').length") == 15
        assert tab.evaluate("[...document.images].every(image => image.naturalWidth > 0)") is True
        assert tab.evaluate("document.scripts.length") == 0
        assert tab.complaints == []
        assert [url for url in tab.requested if not url.startswith("data:")] == [uri]


@pytest.mark.parametrize("name", ["plain", "hostile"])
def test_on_a_phone_only_the_tables_scroll_sideways(name: str, request: pytest.FixtureRequest) -> None:
    done, _ = request.getfixturevalue(name)
    with browser.tab(browser.PHONE) as tab:
        tab.open(done.path("report.html").as_uri())
        assert tab.overflow() == 0
        widths = tab.evaluate("[...document.querySelectorAll('.scroll')].map(each => each.scrollWidth)")
        assert max(widths) > browser.PHONE[0]


def test_an_interval_that_runs_to_a_pole_does_not_squeeze_the_others() -> None:
    sound = {"mean": 0.9, "low": 0.8, "high": 1.05}
    found = {"a": sound, "b": sound | {"mean": 1.0}, "c": {"mean": 1.2, "low": 0.9, "high": 90.0}}
    left, right = plots.limits(found.values()) or (0, 0)
    assert left < 0.8
    assert 1.2 < right < 3
    far = {"mean": 30.0, "low": None, "high": None}
    assert (plots.limits([*found.values(), far]) or (0, 99))[1] > 30
    alike = {"mean": 1.0, "low": 1.0, "high": 1.0}
    for none in ([{"mean": 1.0, "low": None, "high": None}, None], [alike, alike], [sound, alike]):
        assert plots.limits(none) is None

    def drawn(numbers: dict[str, Any]) -> str:
        systems = [{"name": name, "kind": "policy"} for name in numbers]
        panels, splits = [("bleu2", "BLEU-2", "")], [("test", "Held-out")]
        return plots.dots("f", "alt", systems, panels, splits, lambda name, *_: numbers[name])

    assert "beyond the axis" in drawn(found)
    assert ">80<" not in drawn(found)  # a tick of the axis
    assert "beyond the axis" not in drawn(found | {"c": sound})


def test_a_metric_below_zero_is_drawn_where_it_is() -> None:
    numbers = {"mean": -0.4, "low": -0.5, "high": -0.3}
    drawn = plots.dots(
        *("f", "alt", [{"name": "sft", "kind": "policy"}], [("bertscore", "BERTScore", "")]),
        *([("test", "Held-out")], lambda *_: numbers),
    )
    assert "\N{MINUS SIGN}0.4" in drawn  # a tick of the axis
