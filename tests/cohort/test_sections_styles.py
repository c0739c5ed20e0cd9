"""Sections of reports whose headings are missing, in lower case or followed by a dash."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from unirg.cohort.sections import Sections, sections

FULL = Sections("Lungs are clear.", "Normal.", "Cough.", "None.", "Smoker.", "PA and lateral.")
ORDER = ("indication", "technique", "history", "comparison", "findings", "impression")


@pytest.mark.parametrize("name", ["INDICATION", "HISTORY", "REASON FOR EXAM"])
def test_sentences_below_the_reason_for_an_exam_are_findings_not_what_the_model_is_told(name: str) -> None:
    found = sections(f" {name}:  Cough.\n \n Two views.  Consolidation.\n \n IMPRESSION:  Pneumonia.\n")
    context = {"history" if name == "HISTORY" else "indication": "Cough."}
    assert found == Sections("Two views.  Consolidation.", "Pneumonia.", **context)
    text = f"{name}: Cough.\n\nfever since Monday\n\nIMPRESSION: Normal."
    assert sections(text) == Sections(
        impression="Normal.", **{kind: "Cough.\n\nfever since Monday" for kind in context}
    )


@pytest.mark.parametrize("heading", ["{}: ", "{} - ", "{}- ", "{} \u2013 ", " {} -- "])
@pytest.mark.parametrize("case", [str.lower, str.upper, str.title])
def test_lower_case_and_a_dash_head_sections_where_nothing_else_does(
    heading: str, case: Callable[[str], str]
) -> None:
    lines = (heading.format(case(name)) + (getattr(FULL, name) or "") for name in ORDER)
    assert sections("\n".join(lines)) == FULL


@pytest.mark.parametrize(
    "text",
    ["Seen for\nhistory: cough.\nClear.", "History - cough.\nClear.", "Clear; no\nfindings-based score."],
)
def test_other_styles_of_headings_are_text_without_findings_or_impression(text: str) -> None:
    assert sections(text) == Sections(text)
    assert sections(f"FINDINGS: {text}\nimpression: none.").impression is None
