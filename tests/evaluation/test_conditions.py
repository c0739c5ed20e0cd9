"""Condition F1: phantoms' truth, the public definition, rules for uncertain labels, intervals by patient."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.evaluation.made_scores import alarms, archive, group, made, study
from unirg.cohort.corpora.phantom import Phantom
from unirg.evaluation.candidates import SETTINGS
from unirg.evaluation.conditions import (
    MIN_SUPPORT,
    SILENT_SUPPORT,
    UNREAD,
    Labels,
    conditions,
    labelled,
    lexicon,
    of_truth,
)
from unirg.metrics.conditions import BLANK, FIVE, NEGATIVE, POSITIVE, UNCERTAIN, condition_f1
from unirg.metrics.findings_terms import CONDITIONS

EFFUSION, FRACTURE = CONDITIONS.index("Pleural Effusion"), CONDITIONS.index("Fracture")
STUDIES = archive(120)


def drawn(seed: int, size: int = 120, shares: Any = (0.4, 0.3, 0.2, 0.1)) -> Labels:
    return np.random.default_rng(seed).choice(4, size=(size, 14), p=shares)


def run(references: Labels, systems: dict[str, Labels], **options: Any) -> dict[str, Any]:
    scores = made(STUDIES[: len(references)], {name: {} for name in systems}, **options)
    candidates = {(name, setting): labels for name, labels in systems.items() for setting in SETTINGS}
    return conditions(scores, dict.fromkeys(SETTINGS, references), candidates, "a test", resamples=300)


def headline(result: dict[str, Any], system: str = "a", rule: str = "positive") -> Any:
    return group(result)["systems"][system][rule]


def phantoms() -> tuple[Any, Labels]:
    corpus = Phantom(300, 0)
    records = [each.model_copy(update={"split": "test"}) for each in corpus.records()]
    return made(records, {"a": {}}), of_truth(corpus.truth(), [each.study_id for each in records])


def test_phantom_truth_as_labels_and_perfect_candidates_give_one_everywhere() -> None:
    scores, truth = phantoms()
    result = conditions(
        scores,
        dict.fromkeys(SETTINGS, truth),
        {("a", setting): truth for setting in SETTINGS},
        "phantom truth",
        resamples=300,
    )
    for found in result["groups"]:
        own = found["systems"]["a"]["positive"]
        shown = [each for each in own["conditions"].values() if "too_small" not in each]
        assert len(shown) >= 5
        for average in own["averages"].values():
            shown += [average["micro"], average["macro_supported"]]
        for each in shown:
            for measure in ("precision", "recall", "f1"):
                assert [each[measure][key] for key in ("mean", "low", "high")] == [1, 1, 1]
    assert alarms(result) == []
    counts = {name: int((truth[:, at] == POSITIVE).sum()) for at, name in enumerate(CONDITIONS)}
    assert {name: each["support"] for name, each in headline(result)["conditions"].items()} == counts


def test_the_lexicon_reads_phantom_reports_as_their_truth() -> None:
    scores, truth = phantoms()
    references, _ = labelled(scores, lexicon)
    assert ((references["report"] == POSITIVE) == (truth == POSITIVE)).all()


def test_a_perfect_system_read_by_the_lexicon_agrees_with_the_truth_of_phantoms() -> None:
    scores, truth = phantoms()
    references, candidates = labelled(scores, lexicon)
    result = conditions(scores, references, candidates, "findings lexicon", resamples=300)
    found = headline(result)
    assert found["averages"]["14"]["macro_supported"]["f1"]["mean"] == 1
    assert found["conditions"]["Edema"]["support"] == (truth[:, CONDITIONS.index("Edema")] == POSITIVE).sum()


@pytest.mark.parametrize("rule", ["positive", "negative"])
@pytest.mark.parametrize("seed", range(3))
def test_the_numbers_are_those_of_the_public_definition(seed: int, rule: Any) -> None:
    said, expected = drawn(seed), drawn(seed + 10)
    found = headline(run(expected, {"a": said}), rule=rule)
    for name, members in (("14", CONDITIONS), ("5", FIVE)):
        public = condition_f1(said, expected, members, rule)
        for condition, wanted in public.conditions.items():
            shown = found["conditions"][condition]
            assert shown["support"] == wanted.support
            for measure in ("precision", "recall", "f1"):
                assert shown[measure]["mean"] == pytest.approx(getattr(wanted, measure), abs=1e-6)
        for average in ("micro", "macro", "macro_supported"):
            for measure in ("precision", "recall", "f1"):
                shown = found["averages"][name][average][measure]
                assert shown["mean"] == pytest.approx(getattr(getattr(public, average), measure), abs=1e-6)
                assert shown["low"] < shown["mean"] < shown["high"]


def test_a_condition_with_little_support_is_too_small_and_keeps_its_counts() -> None:
    expected = np.full((120, 14), BLANK)
    expected[: MIN_SUPPORT - 1, FRACTURE] = POSITIVE
    expected[:40, EFFUSION] = POSITIVE
    found = headline(run(expected, {"a": expected}))["conditions"]
    assert found["Fracture"] == {"support": MIN_SUPPORT - 1, "claimed": MIN_SUPPORT - 1, "too_small": True}
    assert found["Pleural Effusion"]["f1"]["mean"] == 1


def test_support_from_few_patients_is_too_small_too() -> None:
    some = [study(n, patient_id="one" if n < 20 else f"p{n}") for n in range(60)]
    expected = np.full((60, 14), BLANK)
    expected[:20, FRACTURE] = POSITIVE
    result = conditions(
        made(some, {"a": {}}),
        {"report": expected},
        {("a", "report"): expected},
        "a test",
        resamples=300,
    )
    assert headline(result)["conditions"]["Fracture"] == {"support": 20, "claimed": 20, "too_small": True}


def test_blank_and_negative_count_alike_and_uncertain_by_the_rule() -> None:
    expected = np.full((120, 14), NEGATIVE)
    expected[:30, EFFUSION] = POSITIVE
    said = np.full((120, 14), BLANK)
    said[:30, EFFUSION] = UNCERTAIN
    result = run(expected, {"a": said})
    assert headline(result)["conditions"]["Pleural Effusion"]["f1"]["mean"] == 1
    strict = headline(result, rule="negative")["conditions"]["Pleural Effusion"]
    assert (strict["claimed"], strict["f1"]["mean"], strict["precision"]["mean"]) == (0, 0, None)
    assert result["headline"] == "positive"
    assert "uncertain" in result["rules"]["negative"]


def test_studies_without_a_candidate_are_missing_and_neither_right_nor_wrong() -> None:
    expected, said = drawn(1), drawn(2)
    holes = said.copy()
    holes[::3] = UNREAD
    result = run(expected, {"a": holes})
    system = group(result)["systems"]["a"]
    assert (system["read"], system["missing"]) == (80, 40)
    kept = np.arange(120) % 3 > 0
    public = condition_f1(said[kept], expected[kept]).conditions["Edema"]
    assert system["positive"]["conditions"]["Edema"]["f1"]["mean"] == pytest.approx(public.f1, abs=1e-6)


@settings(max_examples=15)
@given(st.integers(0, 2**16), st.permutations(range(60)))
def test_neither_the_order_of_studies_nor_a_swap_of_sides_changes_f1(seed: int, order: list[int]) -> None:
    said, expected = drawn(seed, 60), drawn(seed + 1, 60)
    scores = made([STUDIES[at] for at in order], {"a": {}})
    plain = headline(run(expected, {"a": said}))
    mixed = headline(
        conditions(scores, {"report": expected[order]}, {("a", "report"): said[order]}, "t", resamples=100)
    )
    turned = headline(run(said, {"a": expected}))
    for name in CONDITIONS:
        if "too_small" in plain["conditions"][name]:
            continue
        one = plain["conditions"][name]["f1"]
        assert mixed["conditions"][name]["f1"]["mean"] == one["mean"]
        assert 0 <= one["low"] <= one["mean"] <= one["high"] <= 1
        if "too_small" not in turned["conditions"][name]:
            assert turned["conditions"][name]["f1"]["mean"] == one["mean"]
            precision = turned["conditions"][name]["precision"]["mean"]
            assert precision == plain["conditions"][name]["recall"]["mean"]


def test_the_interval_of_f1_is_of_patients_and_not_of_studies() -> None:
    """Each study of a patient says the same, so ten studies a patient tell no more than one does."""
    rng = np.random.default_rng(0)
    once, right = rng.random((40, 14)) < 0.5, rng.random((40, 14)) < 0.7
    widths = []
    for times in (1, 10):
        expected = np.where(np.repeat(once, times, axis=0), POSITIVE, BLANK)
        said = np.where(np.repeat(once == right, times, axis=0), POSITIVE, BLANK)
        some = [study(n, patient_id=f"p{n // times}") for n in range(40 * times)]
        result = conditions(
            made(some, {"a": {}}), {"report": expected}, {("a", "report"): said}, "t", resamples=1000
        )
        found = headline(result)
        for shown in (found["conditions"]["Edema"]["f1"], found["averages"]["14"]["macro"]["f1"]):
            widths.append(shown["high"] - shown["low"])
    assert widths[2:] == pytest.approx(widths[:2], rel=0.02)


def test_the_macro_interval_is_that_of_patients_drawn_anew() -> None:
    said, expected = drawn(1), drawn(2)
    shown = headline(run(expected, {"a": said}))["averages"]["14"]["macro"]["f1"]
    rng = np.random.default_rng(0)
    found = []
    for _ in range(1000):
        pairs = rng.integers(0, 60, 60)
        rows = np.concatenate([2 * pairs, 2 * pairs + 1])
        found.append(condition_f1(said[rows], expected[rows]).macro.f1)
    low, high = np.quantile(found, [0.025, 0.975])
    assert shown["high"] - shown["low"] == pytest.approx(high - low, rel=0.2)


def test_a_condition_that_is_never_stated_raises_an_alarm() -> None:
    expected = np.full((120, 14), BLANK)
    expected[:SILENT_SUPPORT, EFFUSION] = POSITIVE
    silent = np.full((120, 14), BLANK)
    assert alarms(run(expected, {"a": silent, "b": expected})) == [("never_stated", "a")]
    assert alarms(run(expected, {"a": silent}, kinds={"a": "baseline"})) == []
    expected[0, EFFUSION] = BLANK
    assert alarms(run(expected, {"a": silent})) == []


def test_a_small_group_is_too_small() -> None:
    labels = drawn(1, 12)
    assert group(run(labels, {"a": labels}))["too_small"] is True


@pytest.mark.parametrize("wrong", [4, -2])
def test_a_label_that_is_none_is_refused(wrong: int) -> None:
    labels = drawn(1)
    labels[3] = wrong
    with pytest.raises(ValueError, match="no class"):
        run(labels, {"a": drawn(2)})


def test_labels_of_other_studies_or_in_part_are_refused() -> None:
    labels = drawn(1)
    labels[3, 3] = UNREAD
    with pytest.raises(ValueError, match="in part"):
        run(drawn(2), {"a": labels})
    with pytest.raises(ValueError, match="shape"):
        run(drawn(2), {"a": labels[:50]})


def test_each_distinct_text_is_labelled_once_and_only_where_there_is_a_reference() -> None:
    some = [*archive(4), study(9, findings=None, impression=None)]
    scores = made(some, {"a": {}, "b": {}}, texts={"a": {each.study_id: "Edema." for each in some}})
    asked: list[str] = []

    def label(texts: Any) -> Labels:
        asked.extend(texts)
        return lexicon(texts)

    references, candidates = labelled(scores, label)
    assert len(asked) == len(set(asked)) == 9
    assert (references["report"][4] == UNREAD).all()
    assert (candidates["a", "report"][4] == UNREAD).all()
    assert (candidates["a", "report"][:4, CONDITIONS.index("Edema")] == POSITIVE).all()
