"""Measures of reports as texts: laws, and values that a reader can check."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unirg.evaluation.texts import NEAR, commonest, jaccard, near, plain, repeated, statistics, words

TEXTS = st.lists(st.sampled_from(["Clear lungs.", "clear  lungs.", "Edema.", "No edema, clear lungs.", ""]))


def test_case_and_white_space_make_no_other_report() -> None:
    assert plain("Clear  lungs.\n") == plain("clear lungs.")
    assert words("Clear lungs, (no edema).") == {"clear", "lungs", "no", "edema"}
    assert commonest(["Edema.", "Clear lungs.", "clear  lungs."], 2) == [("Clear lungs.", 2), ("Edema.", 1)]


@given(TEXTS)
def test_repetition_is_zero_where_all_differ_and_grows_with_each_repeat(texts: list[str]) -> None:
    distinct = list({plain(text): text for text in texts}.values())
    assert repeated(distinct) == 0
    assert 0 <= repeated(texts) < 1
    assert repeated([*texts, "Edema."] * 2) > repeated([*texts, "Edema."])


@given(TEXTS)
def test_near_copies_are_at_least_the_exact_ones(texts: list[str]) -> None:
    if texts:
        assert commonest(texts, 1)[0][1] / len(texts) - 1e-9 <= near(texts) <= 1


@given(st.frozensets(st.integers(0, 9)), st.frozensets(st.integers(0, 9)))
def test_likeness_is_even_and_one_for_the_same_alone(a: frozenset[str], b: frozenset[str]) -> None:
    assert jaccard(a, b) == jaccard(b, a)
    assert (jaccard(a, b) == 1) == (a == b)


def test_reports_that_differ_in_a_side_are_near_copies() -> None:
    report = (
        "There is a small {} pleural effusion and mild bibasilar atelectasis, the heart is normal in size."
    )
    texts = [report.format(side) for side in ("left", "right")] * 5
    assert jaccard(words(texts[0]), words(texts[1])) >= NEAR
    assert near(texts) == 1
    assert statistics(texts)["top"] == 0.5


def test_near_copies_are_found_in_a_long_list_that_is_searched_in_part() -> None:
    texts = [f"Report {n} of patient {n}." if n % 2 else "Clear lungs." for n in range(9001)]
    assert near(texts) == pytest.approx(0.5, abs=0.02)


def test_statistics_of_a_handful_of_reports() -> None:
    found = statistics(["Findings: Clear lungs. Impression: Normal.", "Findings: The heart is", "", "Edema."])
    assert found == {
        **{
            "repeated": 0,
            "top": 0.25,
            "near": 0.25,
            "empty": 0.25,
            "unfinished": 0.25,
        },
        **{"findings": 0.5, "impression": 0.25},
        "length": {"q1": 0.75, "median": 2.5, "q3": 4.25, "longest": 5},
    }
    assert statistics([])["length"] is None
    assert set(statistics([])) == set(found)
