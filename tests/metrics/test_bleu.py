"""BLEU against golden values of fast-bleu 0.0.90 (what ReXrank runs), hand-computed values, and its laws."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unirg.metrics.bleu import bleu, tokens

WORDS = st.lists(st.sampled_from(["no", "left", "right", "effusion", "the", "heart."]), max_size=12).map(
    " ".join
)

# (candidate, reference, BLEU-2, BLEU-4), computed by fast_bleu.BLEU on ReXrank's tokens.
FAST_BLEU = [
    ("the lungs are clear.", "The lungs are clear. No effusion.", 0.5488116360940264, 0.5488116360940264),
    (
        "Heart size is normal. Lungs are clear. No pleural effusion.",
        "The heart is normal in size. The lungs are clear. There is no pleural effusion or pneumothorax.",
        0.4126996754041861,
        0.19944528261415115,
    ),
    ("clear", "clear", 0.3162277660168379, 0.17782794100389226),
    (
        "No focal consolidation.\nNo effusion.",
        "No focal consolidation. No effusion.",
        0.5985529678206387,
        0.21506254256566312,
    ),
    ("lungs lungs lungs", "the lungs", 0.12909944487358058, 0.11362193664674995),
    ("No acute disease", "Small left pleural effusion.", 0.0, 0.0),
    (
        "There is a small left pleural effusion. The heart is mildly enlarged.",
        "There is a moderate right pleural effusion. The heart is mildly enlarged. No pneumothorax.",
        0.6553779502796718,
        0.5647824431960844,
    ),
]


@pytest.mark.parametrize(("candidate", "reference", "bleu2", "bleu4"), FAST_BLEU)
def test_scores_equal_those_of_the_package_that_rexrank_runs(
    candidate: str, reference: str, bleu2: float, bleu4: float
) -> None:
    assert bleu(candidate, reference) == pytest.approx(bleu2, abs=1e-12)
    assert bleu(candidate, reference, n=4) == pytest.approx(bleu4, abs=1e-12)


def test_a_score_by_hand_clips_counts_smooths_and_penalises_brevity() -> None:
    # Unigrams: "left" counts once although said twice, so 2 of 3; bigrams: 1 of 2; 3 words against 5.
    expected = math.exp(1 - 5 / 3) * math.sqrt(2 / 3 * 1 / 2)
    assert bleu("left effusion left", "small left effusion is present") == pytest.approx(expected, abs=1e-12)


def test_an_order_without_a_match_counts_a_tenth_of_a_match() -> None:
    assert bleu("effusion left", "left effusion") == pytest.approx(math.sqrt(1 * 0.1), abs=1e-12)


@pytest.mark.parametrize("blank", ["", " ", "   "])
def test_an_empty_candidate_or_reference_scores_zero(blank: str) -> None:
    assert bleu(blank, "The lungs are clear.") == 0
    assert bleu("The lungs are clear.", blank) == 0
    assert bleu(blank, blank) == 0


def test_a_full_stop_is_a_token_and_a_newline_is_none() -> None:
    assert tokens("No EFFUSION.  Clear,\nlungs") == ["no", "effusion", ".", "clear,\nlungs"]


@given(WORDS, WORDS, st.sampled_from([2, 4]))
def test_a_score_stays_within_zero_and_one(candidate: str, reference: str, n: int) -> None:
    assert 0 <= bleu(candidate, reference, n) <= 1 + 1e-12


@given(WORDS, st.sampled_from([2, 4]))
def test_a_text_of_at_least_n_tokens_scores_one_against_itself(text: str, n: int) -> None:
    long_enough = len(tokens(text)) >= n
    assert (bleu(text, text, n) == pytest.approx(1)) == long_enough


@given(st.text(max_size=60), st.text(max_size=60))
def test_any_text_at_all_gets_a_finite_score(candidate: str, reference: str) -> None:
    assert math.isfinite(bleu(candidate, reference))
