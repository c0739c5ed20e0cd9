"""What the suites share: places of a group, RadCliQ-v1 from its parts, records of means and differences."""

from __future__ import annotations

import numpy as np
import pytest

from tests.evaluation.tables import scored, spread, visits
from unirg.evaluation import groups
from unirg.evaluation.leaderboard import INVERSE
from unirg.evaluation.scores import ERRORS
from unirg.evaluation.statistics import bootstrap
from unirg.metrics.radcliq import radcliq_v1

PARTS = ["radgraph", "bertscore", "sembscore", "bleu2"]


def test_places_are_each_corpus_and_a_split_as_a_whole_where_it_has_several() -> None:
    studies = [
        *(visits(3, 1, "one") + visits(3, 1, "two")),
        *visits(3, 1, "three", split="zero_shot"),
    ]
    found = {
        (place["split"], place["corpus"]): rows.tolist()
        for place, rows in groups.groups(scored(studies, {}, []))
        if place["setting"] == "report"
    }
    assert found == {
        **{("test", None): [0, 1, 2, 3, 4, 5], ("test", "one"): [0, 1, 2], ("test", "two"): [3, 4, 5]},
        ("zero_shot", "three"): [6, 7, 8],
    }


def test_patients_of_two_corpora_are_two() -> None:
    scores = scored(visits(1, 2, "one") + visits(1, 1, "two"), {}, [])
    assert groups.patients(scores, [0, 1, 2]) == ["one/p0", "one/p0", "two/p0"]


def test_radcliq_is_formed_from_its_parts_and_missing_where_one_is() -> None:
    columns = dict.fromkeys(PARTS, np.array([0.5, 0.5]))
    columns["radgraph"] = np.array([0.5, np.nan])
    scores = scored(visits(2, 1), {"a": columns}, PARTS)
    values, metrics = groups.with_radcliq(scores)
    found = values["a", "report", "radcliq_v1"]
    assert found[0] == pytest.approx(float(radcliq_v1(0.5, 0.5, 0.5, 0.5)))
    assert np.isnan(found[1])
    assert groups.about(metrics)[INVERSE]["higher_is_better"] is True
    assert groups.about(metrics)["radcliq_v1"]["higher_is_better"] is False
    assert "radcliq_v1" not in groups.with_radcliq(scored(visits(2, 1), {"a": {}}, PARTS[:3]))[1]


def test_errors_by_category_are_left_out_and_the_sums_kept() -> None:
    kept = groups.without_categories(scored([], {}, ["bleu2"]).metrics)
    assert set(kept) == {"composite", "bleu2", "errors", "errors_significant"}
    assert set(ERRORS[:2]) == {"errors", "errors_significant"}


def test_a_difference_is_better_worse_or_neither() -> None:
    people = [f"p{number}" for number in range(40)]
    columns = np.column_stack([spread(0.5, 1, 40), spread(-0.5, 2, 40), spread(0.001, 3, 40)])
    found = bootstrap(columns, people, 300, 0)
    up, down, flat = (groups.difference(found, column) for column in range(3))
    assert [groups.better(one, True) for one in (up, down, flat)] == [True, False, None]
    assert [groups.better(one, False) for one in (up, down, flat)] == [False, True, None]
    assert groups.inverse(found, 0)["mean"] == pytest.approx(2)
    turned = groups.inverse(found, 2)
    assert (turned["low"], turned["high"]) == (None, None)


def test_what_is_not_finite_is_none_and_zero_has_no_sign() -> None:
    assert [groups.number(value) for value in (float("nan"), float("inf"), 0.1234567)] == [
        None,
        None,
        0.123457,
    ]
    assert str(groups.number(-1e-9)) == "0.0"
    empty = groups.record(bootstrap(np.full((3, 1), np.nan), ["a", "b", "c"], 100, 0), 0)
    assert empty == {"mean": None, "low": None, "high": None, "n": 0, "missing": 3}
