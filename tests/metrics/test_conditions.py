"""Condition F1 against scikit-learn's report, its three rules for uncertain labels, and its laws."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from sklearn.metrics import classification_report

from unirg.metrics.conditions import (
    BLANK,
    FIVE,
    NEGATIVE,
    POSITIVE,
    UNCERTAIN,
    Agreement,
    Uncertain,
    condition_f1,
)
from unirg.metrics.findings_terms import CONDITIONS

Labels = NDArray[np.int64]
PAIRS = st.integers(1, 12).flatmap(
    lambda studies: st.tuples(
        *[arrays.arrays(np.int64, (studies, 14), elements=st.integers(0, 3)) for _ in range(2)]
    )
)


def _same(ours: Agreement, theirs: dict[str, Any]) -> None:
    expected = (theirs["precision"], theirs["recall"], theirs["f1-score"], theirs["support"])
    assert (ours.precision, ours.recall, ours.f1, ours.support) == pytest.approx(expected, abs=1e-12)


@settings(max_examples=40)
@given(PAIRS, st.sampled_from([CONDITIONS, FIVE]), st.sampled_from(["positive", "negative"]))
def test_the_report_equals_that_of_scikit_learn(
    pair: tuple[Labels, Labels], conditions: tuple[str, ...], uncertain: Uncertain
) -> None:
    found = condition_f1(*pair, conditions, uncertain)
    columns = [CONDITIONS.index(condition) for condition in conditions]
    stated = [POSITIVE, UNCERTAIN] if uncertain == "positive" else [POSITIVE]
    candidates, references = (np.isin(side, stated)[:, columns].astype(int) for side in pair)
    report = classification_report(
        references, candidates, target_names=conditions, output_dict=True, zero_division=0
    )
    for condition in conditions:
        _same(found.conditions[condition], report[condition])
    _same(found.micro, report["micro avg"])
    _same(found.macro, report["macro avg"])


@given(PAIRS)
def test_an_ignored_uncertain_reference_counts_for_no_one(pair: tuple[Labels, Labels]) -> None:
    candidates, references = pair
    found = condition_f1(candidates, references, uncertain="ignore")
    for column, condition in enumerate(CONDITIONS):
        certain = references[:, column] != UNCERTAIN
        one = condition_f1(candidates[certain], references[certain], [condition])
        assert found.conditions[condition] == one.conditions[condition]


def _one(label: int) -> Labels:
    """A study that says this of Edema and nothing else."""
    return np.array([[label if condition == "Edema" else BLANK for condition in CONDITIONS]])


@pytest.mark.parametrize(
    ("uncertain", "f1", "support"), [("positive", 1.0, 1), ("negative", 0.0, 0), ("ignore", 0.0, 0)]
)
def test_an_uncertain_reference_counts_as_the_rule_says(
    uncertain: Uncertain, f1: float, support: int
) -> None:
    edema = condition_f1(_one(POSITIVE), _one(UNCERTAIN), uncertain=uncertain).conditions["Edema"]
    assert (edema.f1, edema.support) == (f1, support)


def test_a_hedging_candidate_does_not_change_the_support() -> None:
    for label in (BLANK, POSITIVE, NEGATIVE, UNCERTAIN):
        found = condition_f1(_one(label), _one(POSITIVE), uncertain="ignore")
        assert found.conditions["Edema"].support == 1


def test_a_condition_without_support_counts_zero_in_the_public_macro_average_alone() -> None:
    found = condition_f1(_one(POSITIVE), _one(POSITIVE), FIVE)
    assert found.conditions["Edema"] == Agreement(1, 1, 1, 1)
    assert found.conditions["Cardiomegaly"] == Agreement(0, 0, 0, 0)
    assert found.macro.f1 == pytest.approx(1 / 5)
    assert found.macro_supported == Agreement(1, 1, 1, 1)
    assert found.micro == Agreement(1, 1, 1, 1)


def test_no_studies_at_all_score_zero_with_no_support() -> None:
    found = condition_f1(np.empty((0, 14)), np.empty((0, 14)))
    assert found.micro == found.macro == found.macro_supported == Agreement(0, 0, 0, 0)


def test_labels_of_other_studies_or_classes_are_refused() -> None:
    with pytest.raises(ValueError, match="1 candidates and 2 references"):
        condition_f1(_one(POSITIVE), np.repeat(_one(POSITIVE), 2, axis=0))
    with pytest.raises(ValueError, match="classes 0 to 3"):
        condition_f1(_one(-1), _one(POSITIVE))
