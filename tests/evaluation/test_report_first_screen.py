"""The faults that the report must not let pass: each planted, evaluated, and on the first screen."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.evaluation import browser
from tests.evaluation.worlds import FINDINGS, World
from unirg.artifact import Artifact
from unirg.evaluation.evaluate import EvaluateConfig, evaluate
from unirg.evaluation.report.render import ReportConfig, report

PATIENTS = 60
CONDITIONS = list(FINDINGS)
OWN = ("clear", "stable", "unchanged", "mild", "left", "right", "tiny", "broad", "hazy", "dense")


def written(condition: str, words: str) -> str:
    findings, impression = FINDINGS[condition]
    return f"Findings: {findings} {words} Impression: {impression}"


def archive(world: World) -> dict[str, str]:
    """Patients of both sexes with four conditions and words of their own; study_id -> a sound report."""
    sound = {}
    for number in range(PATIENTS):
        words = f"Contour {OWN[number % 10]} and {OWN[number // 10]}."
        condition = CONDITIONS[number % 4]
        texts = {"findings": f"{FINDINGS[condition][0]} {words}", "sex": "FM"[number // 4 % 2]}
        world.add(f"p{number:03d}", "test", condition, **texts)
        world.add(f"t{number:03d}", "train", condition, **texts)
        # Sound is not perfect: every third report leaves the contour out.
        sound[f"p{number:03d}-0"] = written(condition, words if number % 3 else "")
    return sound


def evaluated(world: World, cohort: Artifact, given: Mapping[str, Artifact | str], **config: Any) -> str:
    """The report's URI."""
    settings = EvaluateConfig(resamples=300, systems=tuple(given), **config)
    done = evaluate(settings, cohort, given, {}, str(world.store))
    made = report(ReportConfig(cases=1), done, cohort, given, {}, str(world.store))
    return made.path("report.html").as_uri()


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Alarm -> URI of the report of an evaluation with that one fault."""
    folder = tmp_path_factory.mktemp("planted")
    world = World(folder / "store")
    sound = archive(world)
    cohort = world.cohort()
    women = {study.study_id for study in world.studies if study.sex == "F"}
    champion = world.predictions("champion", cohort, sound)
    swapped = {one: FINDINGS[other] for one, other in zip(CONDITIONS, CONDITIONS[::-1], strict=True)}
    wrong = {}
    for at, (key, text) in enumerate(sound.items()):
        findings, impression = swapped[CONDITIONS[at % 4]]
        words = text.partition("Contour")[2].partition("Impression")[0]
        lost = f"Findings: {findings} Shape {words} Impression: {impression}"
        wrong[key] = lost if key in women else text
    same = dict.fromkeys(sound, written("normal", ""))
    other = {key: written(CONDITIONS[at % 3], "Read again.") for at, key in enumerate(sound)}
    # As where somebody appended one run's file to another's.
    runs = [{"study_id": key, "candidate": text} for run in (sound, other) for key, text in run.items()]
    file = folder / "both.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in runs))
    given: dict[str, dict[str, Artifact | str]] = {
        "subgroups regression": {"old": champion, "new": world.predictions("new", cohort, wrong)},
        "sanity top": {"old": champion, "new": world.predictions("same", cohort, same)},
        "sanity two_runs": {"old": champion, "new": str(file)},
    }
    pairs = (("new", "old"),)
    return {name: evaluated(world, cohort, each, regression_pairs=pairs) for name, each in given.items()}


def alarm(kind: str) -> str:
    return f'[data-alarm="{kind}"] > summary'


@pytest.mark.parametrize("kind", ["subgroups regression", "sanity top", "sanity two_runs"])
def test_a_planted_fault_is_told_on_the_first_screen(planted: dict[str, str], kind: str) -> None:
    with browser.tab(browser.DESKTOP) as tab:
        tab.open(planted[kind])
        assert tab.bottom(alarm(kind)) <= browser.DESKTOP[1]
        assert "new" in tab.page.locator(alarm(kind)).inner_text()
        assert tab.page.locator(alarm(kind)).evaluate("line => line.parentElement.matches('.grave')")
    with browser.tab(browser.PHONE) as tab:
        tab.open(planted[kind])
        assert tab.bottom(alarm(kind)) <= 2 * browser.PHONE[1]


def test_a_fault_is_told_of_no_system_that_has_it_not(planted: dict[str, str]) -> None:
    told = {}
    with browser.tab() as tab:
        for kind, uri in planted.items():
            tab.open(uri)
            lines = tab.page.locator(".alarm.grave")
            told[kind] = {line.get_attribute("data-alarm") for line in lines.all()}
            assert all(" old" not in line.inner_text() for line in lines.all())
    assert told["sanity two_runs"] == {"sanity two_runs"}
    assert told["subgroups regression"].isdisjoint({"sanity two_runs", "sanity top"})
    assert "sanity two_runs" not in told["sanity top"]


def test_the_sentences_of_an_alarm_open_by_the_keyboard(planted: dict[str, str], tmp_path: Path) -> None:
    with browser.tab() as tab:
        tab.open(planted["sanity top"])
        sentence = tab.page.locator('[data-alarm="sanity top"] li').first
        assert not sentence.is_visible()
        tab.page.locator(alarm("sanity top")).focus()
        tab.page.keyboard.press("Enter")
        assert sentence.is_visible()
        assert "one and the same report" in sentence.inner_text()
