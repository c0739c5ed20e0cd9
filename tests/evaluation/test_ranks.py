"""Ranks as a leaderboard has them."""

from __future__ import annotations

from itertools import pairwise

import pytest

from unirg.evaluation import ranks


def test_means_that_are_equal_as_shown_share_a_rank_and_the_next_one_is_left_out() -> None:
    keys = {name: ranks.of_mean(mean, True) for name, mean in {"a": 0.2, "b": 0.5001, "c": 0.5004}.items()}
    found = ranks.ranks(keys, ["a", "b", "c", "d"])
    assert found == {
        "a": {"rank": 3, "tied": []},
        "b": {"rank": 1, "tied": ["c"]},
        "c": {"rank": 1, "tied": ["b"]},
        "d": None,
    }


def test_a_lower_mean_ranks_first_where_lower_is_better() -> None:
    keys = {name: ranks.of_mean(mean, False) for name, mean in {"a": 2.0, "b": -1.0}.items()}
    assert ranks.ranks(keys, ["a", "b"])["b"] == {"rank": 1, "tied": []}


def test_a_lower_radcliq_ranks_first_on_both_sides_of_the_pole_of_its_reciprocal() -> None:
    means = [-1.44, -1, -0.01, 0, 0.01, 0.5, 1, 1.5, 2.45]
    keys = [ranks.of_inverse(mean) for mean in means]
    assert all(better < worse for better, worse in pairwise(keys))


def test_ties_of_the_reciprocal_are_of_the_figure_shown() -> None:
    # MedGemma and MedVersa on ReXGradient, both 1.008 on ReXrank's findings board of 2025-09.
    assert ranks.of_inverse(1 / 1.0081) == ranks.of_inverse(1 / 1.0078)
    assert ranks.of_inverse(1 / 1.0081) != ranks.of_inverse(1 / 1.0071)


def test_the_order_is_by_mean_rank_and_leaves_who_lacks_one_to_the_end() -> None:
    first = ranks.ranks({"a": (False, 1), "b": (False, 2), "c": (False, 3)}, "abc")
    second = ranks.ranks({"a": (False, 2), "b": (False, 1)}, "abc")
    assert ranks.order([first, second], "abc") == [
        {"system": "a", "rank": 1, "tied": ["b"]},
        {"system": "b", "rank": 1, "tied": ["a"]},
        {"system": "c", "rank": None, "tied": []},
    ]


@pytest.mark.parametrize("names", [[], ["a"]])
def test_without_any_metric_nobody_is_ranked(names: list[str]) -> None:
    assert ranks.order([], names) == [{"system": name, "rank": None, "tied": []} for name in names]
