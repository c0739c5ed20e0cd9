"""ROUGE-L against golden values of rouge_score 0.1.2, a plain dynamic programme, and its laws."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unirg.metrics.rouge import rouge_l

# Computed by rouge_score.RougeScorer(["rougeL"]), no stemming.
ROUGE_SCORE = [
    ("the lungs are clear.", "The lungs are clear. No effusion.", 0.8),
    (
        "Heart size is normal. Lungs are clear. No pleural effusion.",
        "The heart is normal in size. The lungs are clear. There is no pleural effusion or pneumothorax.",
        0.6666666666666667,
    ),
    ("No focal consolidation.\nNo effusion.", "No focal consolidation. No effusion.", 1.0),
    ("lungs lungs lungs", "the lungs", 0.4),
    ("No acute disease", "Small left pleural effusion.", 0.0),
    (
        "There is a small left pleural effusion. The heart is mildly enlarged.",
        "There is a moderate right pleural effusion. The heart is mildly enlarged. No pneumothorax.",
        0.7692307692307692,
    ),
]


@pytest.mark.parametrize(("candidate", "reference", "expected"), ROUGE_SCORE)
def test_scores_equal_those_of_the_package_rouge_score(
    candidate: str, reference: str, expected: float
) -> None:
    assert rouge_l(candidate, reference) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("blank", ["", " ", "...", "\n", "肺"])
def test_a_text_without_words_scores_zero(blank: str) -> None:
    assert rouge_l(blank, "The lungs are clear.") == 0
    assert rouge_l("The lungs are clear.", blank) == 0
    assert rouge_l(blank, blank) == 0


def _plain(candidate: str, reference: str) -> float:
    """The textbook dynamic programme, as the oracle for the bit-parallel one."""
    a, b = (re.findall(r"[a-z0-9]+", text.lower()) for text in (candidate, reference))
    row = [0] * (len(b) + 1)
    for word in a:
        above = row
        row = [0]
        for j, other in enumerate(b):
            row.append(above[j] + 1 if word == other else max(above[j + 1], row[j]))
    return 2 * row[-1] / (len(a) + len(b)) if a and b else 0.0


TEXTS = st.lists(st.sampled_from("abcd"), max_size=150).map(" ".join)


@given(TEXTS, TEXTS)
def test_the_bit_parallel_subsequence_equals_the_textbook_one(candidate: str, reference: str) -> None:
    assert rouge_l(candidate, reference) == pytest.approx(_plain(candidate, reference), abs=1e-12)


@given(TEXTS, TEXTS)
def test_it_is_symmetric_and_within_zero_and_one(candidate: str, reference: str) -> None:
    score = rouge_l(candidate, reference)
    assert 0 <= score <= 1
    assert score == rouge_l(reference, candidate)


@given(TEXTS.filter(bool))
def test_a_text_scores_one_against_itself(text: str) -> None:
    assert rouge_l(text, text) == 1
