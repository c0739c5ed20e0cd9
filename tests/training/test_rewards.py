"""Rewards: a number for every completion, or a stop that names the score and the study."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.canary import CANARY, everything_shown
from unirg import processes
from unirg.errors import UserError
from unirg.metrics.bleu import bleu
from unirg.metrics.chexprompt import Judge
from unirg.metrics.engine import Engine, Scored
from unirg.metrics.reward import PAPER
from unirg.metrics.rouge import rouge_l
from unirg.training.grpo import GRPOConfig, grpo
from unirg.training.rewards import Rewards


@pytest.fixture(scope="module")
def judge() -> Iterator[Judge]:
    """The client of the offline judge, which runs."""
    command = [sys.executable, "-m", "unirg.metrics.offline_judge"]
    with processes.server(command, "the offline judge") as url:
        yield Judge(url, "offline-judge")


def completions(*texts: str) -> list[Any]:
    return [[{"role": "assistant", "content": text}] for text in texts]


def called(name: str, *pairs: tuple[str, str], judge: Judge | None = None) -> list[float]:
    (reward,) = Rewards({name: 1.0}, Engine([name], judge=judge)).functions
    texts, references = zip(*pairs, strict=True)
    ids = [f"s{number}" for number in range(len(pairs))]
    return reward(completions(*texts), reference=list(references), study_id=ids, prompts=[], step=3)


class Says:
    """An engine that gives what a test tells it to, and counts its passes."""

    def __init__(self, *rows: Scored) -> None:
        self.rows, self.passes = rows, 0

    def score(self, pairs: list[tuple[str, str]]) -> Iterator[Scored]:
        self.passes += 1
        return iter(self.rows)


def test_there_is_one_function_per_score_in_the_order_of_the_weights() -> None:
    made = Rewards({"rouge_l": 0.1, "bleu2": 0.9}, Engine(["rouge_l", "bleu2"])).functions
    assert [reward.__name__ for reward in made] == ["rouge_l", "bleu2"]


@pytest.mark.parametrize(("name", "score"), [("bleu2", bleu), ("rouge_l", rouge_l)])
def test_a_reward_is_the_score_of_candidate_and_reference(name: str, score: Any) -> None:
    pairs = [
        ("the lungs are clear", "the lungs are clear"),
        ("clear lungs here", "the lungs are clear"),
        ("", "x"),
    ]
    assert called(name, *pairs) == [score(*pair) for pair in pairs]
    assert called(name, pairs[0])[0] == pytest.approx(1)


@given(st.lists(st.tuples(st.text(max_size=30), st.text(min_size=1, max_size=30)), min_size=1, max_size=4))
def test_any_text_a_policy_may_write_has_a_finite_reward(pairs: list[tuple[str, str]]) -> None:
    for name in ("bleu2", "rouge_l"):
        assert all(0 <= value <= 1 + 1e-9 for value in called(name, *pairs))


def test_all_rewards_of_a_batch_come_from_one_pass_and_the_next_batch_from_another() -> None:
    engine: Any = Says(Scored({"bertscore": 0.5, "radgraph": 0.25}, {}))
    functions = Rewards({"bertscore": 0.370, "radgraph": 0.377}, engine).functions
    batch = {"reference": ["r"], "study_id": ["s0"]}
    assert [function(completions("a"), **batch) for function in functions] == [[0.5], [0.25]]
    assert engine.passes == 1
    functions[0](completions("b"), **batch)
    assert engine.passes == 2


def test_what_is_better_when_lower_is_rewarded_negated_and_errors_as_the_paper_does() -> None:
    engine: Any = Says(Scored({"radcliq_v1": 1.5, "errors": 3.0}, {}))
    radcliq, errors = Rewards({"radcliq_v1": 1.0, "errors": 0.5}, engine).functions
    batch = {"reference": ["r"], "study_id": ["s0"]}
    assert radcliq(completions("a"), **batch) == [-1.5]
    assert errors(completions("a"), **batch) == [1 / 4]


@pytest.mark.parametrize(
    ("row", "found"),
    [
        (Scored({}, {"errors": "HTTP 500"}), r"missing \(HTTP 500\)"),
        (Scored({"errors": float("nan")}, {}), "nan"),
        (Scored({"errors": float("inf")}, {}), "inf"),
    ],
)
def test_what_is_no_number_stops_naming_the_score_and_the_study_and_no_text(row: Scored, found: str) -> None:
    fine = Scored({"errors": 1.0}, {})
    engine: Any = Says(fine, row, fine)
    (reward,) = Rewards({"errors": 0.5}, engine, attempts=1).functions
    told = f"reward errors of study s1 is {found}: training stops .*run again"
    texts = [f"{CANARY} {number}" for number in range(3)]
    with pytest.raises(UserError, match=told) as stopped:
        reward(completions(*texts), reference=[CANARY] * 3, study_id=["s0", "s1", "s2"])
    assert CANARY not in everything_shown(stopped.value)


class Owes:
    """An engine whose judge gives the verdicts on the second text when asked for the `last` time."""

    def __init__(self, last: int) -> None:
        self.last, self.asked = last, list[list[str]]()
        self.threads = set[str]()

    def score(self, pairs: list[tuple[str, str]]) -> Iterator[Scored]:
        self.asked.append([candidate for candidate, _ in pairs])
        self.threads.add(threading.current_thread().name)
        for candidate, _ in pairs:
            if candidate == "b" and len(self.asked) < self.last:
                yield Scored({}, {"errors": "HTTP 503"})
            else:
                yield Scored({"errors": 1.0}, {})


def test_verdicts_that_the_judge_owes_are_asked_for_again_and_no_others(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("time.sleep", pauses.append)
    engine: Any = Owes(last=3)
    (reward,) = Rewards({"errors": 0.5}, engine, attempts=3, pause_s=4).functions
    batch: dict[str, Any] = {"reference": [CANARY] * 3, "study_id": ["s0"] * 3}
    assert reward(completions("a", "b", "a"), **batch) == [0.5, 0.5, 0.5]
    assert engine.asked == [["a", "b"], ["b"], ["b"]]
    assert pauses == [4, 8]
    assert "the judge owes 1 of 2 verdicts (HTTP 503)" in caplog.text
    assert CANARY not in caplog.text


def test_a_judge_that_goes_on_owing_stops_training_after_the_attempts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    engine: Any = Owes(last=99)
    (reward,) = Rewards({"errors": 0.5}, engine, attempts=2).functions
    with pytest.raises(UserError, match=r"reward errors of study s7 is missing \(HTTP 503\)"):
        reward(completions("b"), reference=["r"], study_id=["s7"])
    assert len(engine.asked) == 2


def test_rollouts_handed_over_are_scored_aside_and_once() -> None:
    engine: Any = Owes(last=0)
    rewards = Rewards({"errors": 0.5}, engine)
    rewards.begin([("a", "r"), ("a", "r")])
    rewards.begin([("b", "r")])
    (reward,) = rewards.functions
    batch: dict[str, Any] = {"reference": ["r"] * 4, "study_id": ["s"] * 4}
    assert reward(completions("a", "a", "b", "c"), **batch) == [0.5] * 4
    assert engine.asked == [["a"], ["b"], ["c"]]
    assert engine.threads == {"rewards_0"}


def test_an_error_on_the_thread_is_raised_where_the_rewards_are_needed() -> None:
    gone = Judge("http://127.0.0.1:9/v1", "offline-judge", retries=0)
    rewards = Rewards({"errors": 0.5}, Engine(["errors"], judge=gone))
    rewards.begin([(CANARY, CANARY)])
    with pytest.raises(UserError, match=r"127\.0\.0\.1:9"):
        rewards.functions[0](completions(CANARY), reference=[CANARY], study_id=["s0"])


def test_an_engine_that_loses_a_pair_is_not_zipped_short() -> None:
    engine: Any = Says(Scored({"bleu2": 0.5}, {}))
    (reward,) = Rewards({"bleu2": 1.0}, engine).functions
    with pytest.raises(ValueError, match="shorter"):
        reward(completions("a", "b"), reference=["a", "b"], study_id=["s0", "s1"])


def test_errors_are_counted_by_the_judge(judge: Judge) -> None:
    same = "Findings: Cardiomegaly. Large left pleural effusion."
    other = "Findings: Normal heart. No pleural effusion."
    right, wrong = called("errors", (same, same), (other, same), judge=judge)
    assert right == 1
    assert 0 < wrong <= 1 / 2


def test_a_judge_that_is_gone_stops_training() -> None:
    gone = Judge("http://127.0.0.1:9/v1", "offline-judge", retries=0)
    with pytest.raises(UserError, match=r"127\.0\.0\.1:9") as stopped:
        called("errors", (CANARY, CANARY), judge=gone)
    assert CANARY not in everything_shown(stopped.value)


def test_the_default_rewards_are_the_papers_first_step() -> None:
    assert (
        GRPOConfig().rewards
        == PAPER
        == {**{"bleu2": 0.0, "bertscore": 0.370, "sembscore": 0.253, "radgraph": 0.377}}
    )


@pytest.mark.parametrize(
    ("rewards", "told"),
    [
        ({"radgraph": 1.0}, "the reward `radgraph` needs its scorer's weights: .*unirg weights make"),
        ({"errors": 1.0}, "the reward `errors` needs a judge: set judge_url"),
    ],
)
def test_what_a_reward_needs_is_asked_for_before_any_work(
    rewards: dict[str, float], told: str, tmp_path: Path
) -> None:
    settings = GRPOConfig(rewards=rewards)
    made: Any = "0" * 64  # a digest: nothing of the inputs is opened
    with pytest.raises(UserError, match=told):
        grpo(settings, made, made, str(tmp_path))


def test_an_unknown_reward_is_refused_with_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean bertscore"):
        GRPOConfig(rewards={"bert_score": 1.0})
