"""What phantom institutions write: all of what is visible, nothing else, annotated to the character."""

from __future__ import annotations

import re
from collections import defaultdict
from functools import cache
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unirg.cohort.corpora.phantom import Phantom
from unirg.cohort.corpora.phantom.findings import CATHETER, CONDITIONS, LEVELS, PACEMAKER, TUBE, Finding
from unirg.cohort.corpora.phantom.markup import Passage, join, render
from unirg.cohort.corpora.phantom.reporting import TOPICS, URGENCY, write
from unirg.cohort.corpora.phantom.wording import WORDINGS
from unirg.study import Study

Row = dict[str, Any]
PRESENT, ABSENT = "Observation::definitely present", "Observation::definitely absent"
NAMES = {
    "effusion": "Pleural Effusion",
    "effusions": "Pleural Effusion",
    "pneumothorax": "Pneumothorax",
    "consolidation": "Consolidation",
    "edema": "Edema",
    "atelectasis": "Atelectasis",
    "cardiomegaly": "Cardiomegaly",
    "enlarged": "Cardiomegaly",
    "nodule": "Lung Lesion",
    "mass": "Lung Lesion",
    "fracture": "Fracture",
    PACEMAKER: "Support Devices",
    CATHETER: "Support Devices",
    TUBE: "Support Devices",
}


@cache
def corpus() -> list[tuple[Study, Row]]:
    source = Phantom(1500, seed=5)
    return list(zip(source.records(), source.truth().to_pylist(), strict=True))


def any_finding() -> st.SearchStrategy[Finding]:
    sides, changes = st.sampled_from(["left", "right"]), st.sampled_from(["new", "increased", "unchanged"])
    zones = st.sampled_from(["upper", "mid", "lower"])

    def build(condition: str) -> st.SearchStrategy[Finding]:
        levels = st.integers(0, max(1, len(LEVELS[condition])) - 1)
        match condition:
            case "Cardiomegaly" | "Edema":
                return st.builds(Finding, st.just(condition), level=levels, change=changes)
            case "Lung Lesion":
                return levels.flatmap(
                    lambda level: st.builds(
                        Finding,
                        st.just(condition),
                        kind=st.just(("nodule", "mass")[level]),
                        level=st.just(level),
                        side=sides,
                        zone=zones,
                        change=changes,
                    )
                )
            case "Support Devices":
                kinds = st.sampled_from([PACEMAKER, CATHETER, TUBE])
                return st.builds(Finding, st.just(condition), kind=kinds, side=sides, change=changes)
            case "Pleural Effusion":
                wide = st.sampled_from(["left", "right", "bilateral"])
                return st.builds(Finding, st.just(condition), level=levels, side=wide, change=changes)
            case _:
                return st.builds(
                    Finding, st.just(condition), level=levels, side=sides, zone=zones, change=changes
                )

    return st.sampled_from(CONDITIONS).flatmap(build)


def check(passage: Passage) -> None:
    assert not re.search(r"[\[\]{}<>@~]|  |^\s|\s$| [.,]|\.\.", passage.text)
    assert passage.text.isascii()
    assert passage.text.endswith(".")
    for entity in passage.entities:
        assert passage.text[entity.start : entity.end] == entity.text != ""
    for relation in passage.relations:
        assert 0 <= relation.source < len(passage.entities)
        assert 0 <= relation.target < len(passage.entities)
        assert relation.source != relation.target


@given(
    st.sampled_from(sorted(WORDINGS)),
    st.lists(any_finding(), max_size=4),
    # A broken rib stays broken; everything else can go.
    st.lists(any_finding().filter(lambda f: f.condition != "Fracture"), max_size=2),
    st.booleans(),
    st.floats(0, 1, exclude_max=True),
)
def test_every_institution_can_word_every_finding(
    institution: str, findings: list[Finding], resolved: list[Finding], has_prior: bool, habit: float
) -> None:
    report = write(institution, tuple(findings), tuple(resolved), has_prior=has_prior, habit=habit)
    sections = [section for section in (report.findings, report.impression) if section]
    assert sections
    for section in sections:
        check(section)


@pytest.mark.parametrize("institution", sorted(WORDINGS))
def test_every_word_that_names_a_finding_is_annotated(institution: str) -> None:
    both = [(study, row) for study, row in corpus() if study.institution == institution]
    for study, row in both:
        for section in ("findings", "impression"):
            text = str(getattr(study, section) or "").lower()
            spans = {(e["start"], e["end"]) for e in row["entities"] if e["section"] == section}
            for name in NAMES:
                for match in re.finditer(rf"\b{name}\b", text):
                    assert match.span() in spans


def test_every_span_holds_its_text() -> None:
    for study, row in corpus():
        assert row["entities"]
        for entity in row["entities"]:
            section = getattr(study, entity["section"])
            assert section[entity["start"] : entity["end"]] == entity["text"] != ""


def test_every_relation_joins_two_entities_of_one_sentence() -> None:
    kinds = set()
    for study, row in corpus():
        for relation in row["relations"]:
            source, target = (row["entities"][relation[end]] for end in ("source", "target"))
            assert source["section"] == target["section"]
            low, high = sorted((source["start"], target["start"]))
            assert ". " not in getattr(study, source["section"])[low:high]
            kinds.add(relation["type"])
    assert kinds == {"modify", "located_at", "suggestive_of"}


def test_labels_are_radgraphs() -> None:
    assert {e["label"] for _, row in corpus() for e in row["entities"]} == {
        "Anatomy::definitely present",
        PRESENT,
        ABSENT,
        "Observation::uncertain",
    }


def named(row: Row, section: str, label: str) -> set[str]:
    return {
        NAMES[e["text"].lower()]
        for e in row["entities"]
        if e["section"] == section and e["label"] == label and e["text"].lower() in NAMES
    }


def test_the_findings_name_exactly_what_is_visible() -> None:
    for study, row in corpus():
        if study.findings:
            visible = {f["condition"] for f in row["findings"]} - {"No Finding"}
            assert named(row, "findings", PRESENT) == visible
            # A device that was removed is absent while another may be there.
            assert not named(row, "findings", ABSENT) & (visible - {"Support Devices"})


def test_the_impression_names_nothing_that_is_not_visible() -> None:
    for study, row in corpus():
        if study.impression:
            visible = {f["condition"] for f in row["findings"]} - {"No Finding"}
            said = named(row, "impression", PRESENT)
            assert said <= visible
            assert said or not visible


def test_severity_side_and_change_of_each_finding_are_said() -> None:
    for study, row in corpus():
        if study.findings:
            for finding in row["findings"]:
                for part in ("severity", "zone", "change"):
                    word = finding[part]
                    if word and not (finding["condition"] == "Atelectasis" and part == "zone"):
                        assert word in study.findings.lower()
                if finding["side"]:
                    assert finding["side"] in study.findings.lower()


def test_a_first_study_speaks_of_no_change_and_a_later_one_does() -> None:
    change = re.compile(r"\b(new|increased|decreased|unchanged|resolved|removed|prior|previous\w*|earlier)\b")
    spoken = []
    for study, row in corpus():
        text = f"{study.findings} {study.impression}".lower()
        if row["temporal_category"] == "first":
            assert not change.search(text)
        else:
            spoken.append(bool(change.search(text)))
    assert sum(spoken) / len(spoken) > 0.95


def test_reports_have_the_length_and_the_sections_of_their_institution() -> None:
    words: dict[str, list[int]] = {"findings": [], "impression": []}
    sections: dict[str, set[tuple[bool, bool]]] = defaultdict(set)
    for study, _ in corpus():
        sections[study.institution].add((study.findings is not None, study.impression is not None))
        for section, lengths in words.items():
            if getattr(study, section):
                lengths.append(len(getattr(study, section).split()))
    assert 20 <= min(words["findings"]) <= max(words["findings"]) <= 110
    assert 2 <= min(words["impression"]) <= max(words["impression"]) <= 25
    assert sections["north"] == {(True, True), (True, False)}
    assert sections["harbor"] == {(True, True), (False, True)}


def test_each_institution_writes_in_its_own_way() -> None:
    normal = {institution: write(institution, (), (), has_prior=False, habit=0.0) for institution in WORDINGS}
    assert len({str(report.findings) for report in normal.values()}) == len(WORDINGS)
    assert len({str(report.impression) for report in normal.values()}) == len(WORDINGS)


def test_topics_and_urgency_cover_every_condition_once() -> None:
    assert sorted(c for group in TOPICS.values() for c in group) == sorted(CONDITIONS) == sorted(URGENCY)
    for wording in WORDINGS.values():
        assert sorted(wording.topics) == sorted(TOPICS)
        assert sum(wording.habits) == pytest.approx(1)


def test_an_entity_without_words_vanishes_with_its_space() -> None:
    passage = render("A [{side}](A >o) [sign](O:o).", {"side": ""})
    assert passage.text == "A sign."
    assert [(e.text, e.start, e.end) for e in passage.entities] == [("sign", 2, 6)]
    assert passage.relations == ()


def test_joining_moves_spans_and_renumbers_relations() -> None:
    one = render("[small](O >o) [sign](O:o).")
    passage = join([one, one])
    assert [(r.source, r.target) for r in passage.relations] == [(0, 1), (2, 3)]
    assert [passage.text[e.start : e.end] for e in passage.entities] == ["small", "sign"] * 2


@pytest.mark.parametrize("template", ["[a](O >x).", "{missing}"])
def test_a_template_that_names_what_is_not_there_fails(template: str) -> None:
    with pytest.raises(KeyError):
        render(template)
