"""Rewards: a number for every completion, or a stop that names the metric and the study."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.canary import CANARY, everything_shown
from unirg import processes
from unirg.errors import UserError
from unirg.metrics.bleu import bleu
from unirg.metrics.chexprompt import Judge
from unirg.metrics.rouge import rouge_l
from unirg.training import rewards
from unirg.training.rewards import error_rewards, finite, reward_functions


@pytest.fixture(scope="module")
def judge() -> Iterator[Judge]:
    """The client of the offline judge, which runs."""
    command = [sys.executable, "-m", "unirg.metrics.offline_judge"]
    with processes.server(command, "the offline judge") as url:
        yield Judge(url, "offline-judge")


def completions(*texts: str) -> list[Any]:
    return [[{"role": "assistant", "content": text}] for text in texts]


def called(metric: Any, *pairs: tuple[str, str]) -> list[float]:
    (reward,) = reward_functions({metric: 1.0}, judge=None)
    texts, references = zip(*pairs, strict=True)
    ids = [f"s{number}" for number in range(len(pairs))]
    return reward(completions(*texts), reference=list(references), study_id=ids, prompts=[], step=3)


def test_there_is_one_function_per_metric_in_the_order_of_the_weights() -> None:
    made = reward_functions({"rouge_l": 0.1, "bleu2": 0.9}, judge=None)
    assert [reward.__name__ for reward in made] == ["rouge_l", "bleu2"]


@pytest.mark.parametrize(("metric", "score"), [("bleu2", bleu), ("rouge_l", rouge_l)])
def test_a_reward_is_the_metric_of_candidate_and_reference(metric: str, score: Any) -> None:
    pairs = [
        ("the lungs are clear", "the lungs are clear"),
        ("clear lungs here", "the lungs are clear"),
        ("", "x"),
    ]
    assert called(metric, *pairs) == [score(*pair) for pair in pairs]
    assert called(metric, pairs[0])[0] == pytest.approx(1)


@given(st.lists(st.tuples(st.text(max_size=30), st.text(min_size=1, max_size=30)), min_size=1, max_size=4))
def test_any_text_a_policy_may_write_has_a_finite_reward(pairs: list[tuple[str, str]]) -> None:
    for metric in ("bleu2", "rouge_l"):
        assert all(0 <= value <= 1 + 1e-9 for value in called(metric, *pairs))


@pytest.mark.parametrize(
    ("value", "found"),
    [(None, "missing"), (float("nan"), "nan"), (float("inf"), "inf"), (float("-inf"), "-inf")],
)
def test_what_is_no_number_stops_naming_the_metric_and_the_study(value: float | None, found: str) -> None:
    with pytest.raises(UserError, match=f"reward errors of study s7 is {found}: training stops .*run again"):
        finite("errors", "s7", value)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_number_passes_as_it_is(value: float) -> None:
    assert finite("bleu2", "s1", value) == value


def test_one_bad_value_among_many_names_its_own_study_and_no_text() -> None:
    reward = rewards._reward("radgraph", lambda pairs: [0.5, None, 0.5])
    with pytest.raises(UserError, match="reward radgraph of study s1 is missing") as stopped:
        reward(completions(CANARY, CANARY, CANARY), reference=[CANARY] * 3, study_id=["s0", "s1", "s2"])
    assert CANARY not in everything_shown(stopped.value)


def test_a_metric_that_loses_a_value_is_not_zipped_short() -> None:
    reward = rewards._reward("radgraph", lambda pairs: [0.5])
    with pytest.raises(ValueError, match="shorter"):
        reward(completions("a", "b"), reference=["a", "b"], study_id=["s0", "s1"])


def test_errors_need_a_judge() -> None:
    with pytest.raises(UserError, match="the reward `errors` needs a judge: set judge_url"):
        reward_functions({"errors": 0.5}, judge=None)


def test_errors_are_rewarded_as_the_paper_does(judge: Judge) -> None:
    same = "Findings: Cardiomegaly. Large left pleural effusion."
    other = "Findings: Normal heart. No pleural effusion."
    right, wrong = error_rewards(judge, [(same, same), (other, same)])
    assert right == 1
    assert wrong is not None
    assert 0 < wrong <= 1 / 2
    (reward,) = reward_functions({"errors": 0.5}, judge)
    assert reward(completions(same), reference=[same], study_id=["s0"]) == [1.0]


def test_a_judge_that_is_gone_stops_training() -> None:
    gone = Judge("http://127.0.0.1:9/v1", "offline-judge", retries=0)
    (reward,) = reward_functions({"errors": 0.5}, gone)
    with pytest.raises(UserError, match=r"127\.0\.0\.1:9") as stopped:
        reward(completions(CANARY), reference=[CANARY], study_id=["s0"])
    assert CANARY not in everything_shown(stopped.value)
