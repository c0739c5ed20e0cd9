"""Marks in a case: what differs by finding, and never a letter of the text lost."""

from __future__ import annotations

import pytest

from unirg.evaluation.report import differences

REFERENCE = "Small left pleural effusion. The heart is normal in size."
CANDIDATE = "No pleural effusion. There is a right pneumothorax. The heart is normal in size."


def marked(pieces: list[differences.Piece]) -> list[tuple[str, str]]:
    return [(piece.text, piece.kind) for piece in pieces if piece.kind]


def test_a_candidate_shows_what_contradicts_its_reference_and_what_it_adds() -> None:
    assert marked(differences.candidate(CANDIDATE, REFERENCE)) == [
        ("No pleural effusion.", "denied"),
        ("There is a right pneumothorax.", "added"),
    ]


def test_a_reference_shows_what_the_candidate_leaves_out() -> None:
    assert marked(differences.reference(REFERENCE, CANDIDATE)) == [("Small left pleural effusion.", "missed")]


def test_equal_texts_have_no_marks() -> None:
    assert marked(differences.candidate(REFERENCE, REFERENCE)) == []
    assert marked(differences.reference(REFERENCE, REFERENCE)) == []


@pytest.mark.parametrize(
    "text",
    ["", "...", "A 1.5 cm nodule; no effusion.\n\nEdema", "<script>alert(1)</script>. Edema.", "  a\n"],
)
def test_the_pieces_together_are_the_text(text: str) -> None:
    assert "".join(piece.text for piece in differences.candidate(text, "Clear lungs.")) == text
    assert "".join(piece.text for piece in differences.reference(text, "Clear lungs.")) == text
