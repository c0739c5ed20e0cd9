"""Prompts: the paper's words, one place for each image, and texts that split as they were joined."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unirg import prompts
from unirg.study import Image, Study

PAPER = Path(__file__).parents[2] / "shared" / "facts" / "PAPER.md"
STUDY = Study(
    corpus="mimic_cxr",
    study_id="s1",
    patient_id="p1",
    institution="bidmc",
    indication="Chest pain.",
    comparison="None.",
    findings="Clear lungs.",
    impression="Normal.",
    images=(Image(view="lateral", data=b"lateral"), Image(view="frontal", projection="PA", data=b"now")),
)
PRIOR = STUDY.model_copy(
    update={
        "study_id": "s0",
        "findings": "Small effusion.",
        "impression": None,
        "images": (Image(view="frontal", data=b"before"),),
    }
)


def text_of(messages: list[dict[str, Any]]) -> str:
    (message,) = messages
    assert message["role"] == "user"
    return str(message["content"][-1]["text"])


@pytest.mark.skipif(not PAPER.exists(), reason="the paper's facts are not beside the repository")
@pytest.mark.parametrize("wanted", ["both", "findings"])
def test_the_templates_are_the_papers_word_for_word(wanted: Any) -> None:
    (template,) = re.findall(rf"- {wanted}: `(This is a radiology report .*?)`", PAPER.read_text())
    expected = template.replace("{input}", "Indication: Chest pain. Comparison: None.")
    assert text_of(prompts.messages(STUDY, wanted)) == expected


def test_the_template_for_an_impression_alone_has_the_same_form() -> None:
    said = text_of(prompts.messages(STUDY, "impression"))
    assert said == text_of(prompts.messages(STUDY, "findings")).replace("Findings", "Impression").replace(
        "findings", "impression"
    )


@pytest.mark.parametrize(
    ("indication", "comparison", "context"),
    [
        ("Cough", None, "Indication: Cough"),
        (None, "2 days ago", "Comparison: 2 days ago"),
        (None, None, ""),
        ("line one\n\tline  two", None, "Indication: line one line two"),
        ("braces {0} {context} {", None, "Indication: braces {0} {context} {"),
    ],
)
def test_the_context_is_what_there_is_in_one_line(
    indication: str | None, comparison: str | None, context: str
) -> None:
    study = STUDY.model_copy(update={"indication": indication, "comparison": comparison})
    assert f"Here is the context: {context} Given the image" in text_of(prompts.messages(study, "both"))


@pytest.mark.parametrize(
    ("findings", "impression", "wanted"),
    [("f", "i", "both"), ("f", None, "findings"), (None, "i", "impression"), (None, None, None)],
)
def test_the_template_follows_the_sections_of_the_reference(
    findings: str | None, impression: str | None, wanted: str | None
) -> None:
    study = STUDY.model_copy(update={"findings": findings, "impression": impression})
    assert prompts.sections(study) == wanted


def test_the_reference_is_never_in_the_prompt() -> None:
    for wanted in ("both", "findings", "impression"):
        said = text_of(prompts.messages(STUDY, wanted, PRIOR))
        assert "Clear lungs" not in said
        assert "Normal" not in said


def test_a_prior_comes_first_with_its_report() -> None:
    messages = prompts.messages(STUDY, "both", PRIOR)
    assert [part["type"] for part in messages[0]["content"]] == ["image", "image", "text"]
    assert "the prior study, with this report: Findings: Small effusion. " in text_of(messages)
    assert prompts.images(STUDY, PRIOR) == [b"before", b"now"]


def test_there_is_one_place_for_each_image() -> None:
    for prior in (None, PRIOR):
        content = prompts.messages(STUDY, "both", prior)[0]["content"]
        places = [part for part in content if part["type"] == "image"]
        assert len(places) == len(prompts.images(STUDY, prior))


@pytest.mark.parametrize("images", [(), (Image(view="frontal"),), (Image(view="lateral", data=b"x"),)])
def test_a_study_without_a_staged_frontal_image_is_not_shown(images: tuple[Image, ...]) -> None:
    unstaged = STUDY.model_copy(update={"images": images})
    for pair in ((unstaged, None), (STUDY, unstaged)):
        with pytest.raises(ValueError, match="without a staged frontal image"):
            prompts.images(*pair)


# Splitting and joining

words = st.text("abc .,:-\n\t", max_size=20)
sections = st.one_of(st.none(), words)


def normal(text: str | None) -> str | None:
    return " ".join((text or "").split()) or None


@given(sections, sections)
def test_sections_split_as_they_were_joined(findings: str | None, impression: str | None) -> None:
    joined = prompts.join_sections(normal(findings), normal(impression))
    assert prompts.split_sections(joined) == (normal(findings), normal(impression))


@given(st.text("ab FindgsImpreo:\n", max_size=60))
def test_no_word_of_a_candidate_goes_unread(text: str) -> None:
    read = " ".join(part for part in prompts.split_sections(text) if part)
    headings = r"Findings:|Impression:"
    assert re.sub(headings, " ", read).split() == re.sub(headings, " ", text).split()


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", (None, None)),
        ("Findings: a. Impression: b.", ("a.", "b.")),
        ("Impression: b.", (None, "b.")),
        ("no heading at all", ("no heading at all", None)),
        ("before Findings: a. Impression: b.", ("before Findings: a.", "b.")),
        ("Findings:", (None, None)),
        ("Findings: Impression:", (None, None)),
        ("Findings: a Impression: b Impression: c", ("a", "b Impression: c")),
    ],
)
def test_a_candidate_is_read_in_the_templates_form(text: str, parts: tuple[str | None, str | None]) -> None:
    assert prompts.split_sections(text) == parts


def test_the_report_is_joined_as_rexrank_does() -> None:
    assert prompts.report(STUDY) == "Findings: Clear lungs. Impression: Normal."
    assert prompts.report(PRIOR) == "Findings: Small effusion."


def test_the_wording_changes_on_purpose_only() -> None:
    """Its digest is part of the identity of all that is trained or scored: a new one repeats all of it."""
    assert prompts.VERSION == "254fc48b5ffd"
