"""Azure's protocol, retries, refused settings, a budget that ends cleanly: against a real local server."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.canary import CANARY, everything_shown
from tests.metrics.judge_double import BAD, GOOD, Answer, Server, completion, counts, in_turn
from unirg.errors import UserError
from unirg.metrics.chexprompt import Judge, Verdict
from unirg.metrics.judge_endpoint import Budget, Spent, pause, retry_after

USAGE = {"prompt_tokens": 900, "completion_tokens": 100, "total_tokens": 1000}
METERED = completion(counts(omission=1), USAGE)


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.stop()


def _pairs(number: int) -> list[tuple[str, str]]:
    return [(f"candidate {index}", "reference") for index in range(number)]


# Azure.


def test_azure_is_asked_at_its_deployments_path_with_its_version_and_key(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AZURE_OPENAI_AD_TOKEN", "a token that nobody asked us to use")
    judge = Judge(server.root + "/", "my deployment", api_key="secret", api_version="2024-10-21")
    assert judge.score([("a", "b")])[0].total == 3
    url = urlsplit(server.paths[0])
    assert url.path == "/openai/deployments/my%20deployment/chat/completions"
    assert parse_qs(url.query) == {"api-version": ["2024-10-21"]}
    assert server.headers[0]["api-key"] == "secret"
    assert "authorization" not in server.headers[0]


def test_elsewhere_the_key_is_a_bearer_token_and_the_path_openais(server: Server) -> None:
    Judge(server.url, "m", api_key="secret").score([("a", "b")])
    assert server.paths == ["/v1/chat/completions"]
    assert server.headers[0]["authorization"] == "Bearer secret"


def test_a_client_is_made_while_another_thread_imports_httpx(tmp_path: Path) -> None:
    (tmp_path / "httpx.py").write_text(
        "import time\ntime.sleep(1)\nURL = Timeout = Client = AsyncClient = Response = type('No', (), {})\n"
    )
    script = """
import sys, threading, time
from unirg.metrics.judge_endpoint import Budget, Endpoint
import openai
thread = threading.Thread(target=__import__, args=("httpx",))
thread.start()
while "httpx" not in sys.modules:
    time.sleep(0.01)
Endpoint("http://127.0.0.1:1/v1", "judge", "key", None, 0, 1.0, Budget()).connect()
"""
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])])
    subprocess.run(
        [sys.executable, "-c", script], check=True, timeout=60, env=os.environ | {"PYTHONPATH": path}
    )


def test_what_azure_refuses_names_what_to_check_there(server: Server) -> None:
    server.script = in_turn((404, {}, json.dumps({"error": {"code": "DeploymentNotFound"}})))
    with pytest.raises(UserError, match="HTTP 404 for model d: check the resource's URL, the deployment's"):
        Judge(server.root, "d", api_version="2024-10-21").score([("a", "b")])


def test_the_identity_is_that_of_the_deployment_not_of_the_way_there() -> None:
    azure = Judge("https://one.openai.azure.com", "d", api_version="2024-10-21")
    assert azure.identity == Judge("https://two.openai.azure.com", "d", api_version="2025-01-01").identity
    assert azure.identity != Judge("https://one.openai.azure.com", "e", api_version="2024-10-21").identity


# Settings.


def test_the_sampling_is_chexprompts_and_what_is_none_is_not_sent(server: Server) -> None:
    Judge(server.url, "m").score([("a", "b")])
    Judge(server.url, "m", temperature=None, top_p=None, max_tokens=4096).score([("a", "b")])
    first, second = server.requests
    assert (first["temperature"], first["top_p"], first["max_completion_tokens"]) == (0, 0.9, 1024)
    assert not {"temperature", "top_p"} & set(second)
    assert second["max_completion_tokens"] == 4096


def test_every_setting_that_changes_a_verdict_changes_the_identity() -> None:
    judges = [
        Judge("u", "m"),
        Judge("u", "n"),
        Judge("u", "m", temperature=1),
        Judge("u", "m", temperature=None),
        Judge("u", "m", top_p=None),
        Judge("u", "m", max_tokens=2048),
    ]
    assert len({judge.identity for judge in judges}) == len(judges)
    assert judges[0].identity == Judge("v", "m", retries=0, timeout=1, budget=Budget(calls=1)).identity


def test_the_schema_sent_keeps_to_what_strict_servers_accept(server: Server) -> None:
    Judge(server.url, "m").score([("a", "b")])
    schema = json.dumps(server.requests[0]["response_format"])
    assert not any(word in schema for word in ("minimum", "maximum", "default"))


@pytest.mark.parametrize(
    ("setting", "remedy"),
    [("temperature", "set it to None"), ("response_format", "choose another model")],
)
def test_a_setting_that_the_model_refuses_is_named_at_once(server: Server, setting: str, remedy: str) -> None:
    error = {"message": CANARY, "param": setting, "code": "unsupported_value"}
    server.script = in_turn((400, {}, json.dumps({"error": error})))
    with pytest.raises(UserError, match=f"refuses {setting} for model m: {remedy}") as caught:
        Judge(server.url, "m", concurrency=1).score([(CANARY, "b"), ("c", "d")])
    assert len(server.requests) == 1
    assert CANARY not in everything_shown(caught.value)


def test_a_400_about_the_messages_concerns_its_pair_alone(server: Server) -> None:
    error = {"message": "too long", "param": "messages", "code": "context_length_exceeded"}
    server.script = in_turn((400, {}, json.dumps({"error": error})), GOOD)
    verdicts = Judge(server.url, "m", concurrency=1).score(_pairs(2))
    assert [verdict.reason for verdict in verdicts] == ["HTTP 400", None]


# Retries.


def _error(status: int, **headers: str) -> Any:
    import httpx2
    from openai import APIStatusError

    named = {name.replace("_", "-"): value for name, value in headers.items()}
    response = httpx2.Response(status, headers=named, request=httpx2.Request("POST", "http://x"))
    return APIStatusError("", response=response, body=None)


@given(st.integers(0, 2000), st.sampled_from([408, 409, 429, 500, 503]))
def test_the_back_off_doubles_from_half_a_second_to_eight_less_up_to_half(attempt: int, status: int) -> None:
    whole = min(0.5 * 2 ** min(attempt, 10), 8)
    seconds = pause(_error(status), attempt)
    assert seconds is not None
    assert whole / 2 <= seconds <= whole


@given(st.floats(0.01, 120), st.sampled_from([429, 503]))
def test_a_retry_after_is_honoured_and_spread_by_up_to_a_quarter(asked: float, status: int) -> None:
    seconds = pause(_error(status, retry_after=str(asked)), 0)
    assert seconds is not None
    assert asked <= seconds <= asked * 1.25
    assert len({pause(_error(status, retry_after=str(asked)), 0) for _ in range(20)}) > 10


@pytest.mark.parametrize("value", ["-5", "0", "nan", "soon", ""])
def test_a_retry_after_that_says_nothing_leaves_the_usual_back_off(value: str) -> None:
    seconds = pause(_error(429, retry_after=value), 0)
    assert seconds is not None
    assert 0.25 <= seconds <= 0.5


@pytest.mark.parametrize("value", ["121", "inf", "1e999", "a date an hour away"])
def test_a_retry_after_beyond_two_minutes_is_not_waited_for(value: str) -> None:
    if value.startswith("a date"):
        value = formatdate(time.time() + 3600, usegmt=True)
    assert pause(_error(429, retry_after=value), 0) is None


def test_a_retry_after_may_be_a_date_or_in_milliseconds() -> None:
    assert retry_after({"retry-after-ms": "250", "retry-after": "9"}) == 0.25
    date = retry_after({"retry-after": formatdate(time.time() + 30, usegmt=True)})
    assert date is not None
    assert 28 <= date <= 30
    assert retry_after({}) is None


@pytest.mark.parametrize("status", [400, 401, 404, 422])
def test_what_will_not_change_is_not_tried_again(status: int) -> None:
    assert pause(_error(status), 0) is None
    assert pause(_error(429, x_should_retry="false"), 0) is None


def test_the_seeded_generator_of_a_training_run_is_left_alone() -> None:
    import random

    state = random.getstate()
    pause(_error(429), 0)
    assert random.getstate() == state


# The budget.


def test_calls_end_at_their_limit_exactly_and_the_rest_is_missing_with_the_reason(server: Server) -> None:
    server.script = in_turn(METERED)
    judge = Judge(server.url, "m", concurrency=8, budget=Budget(calls=5))
    verdicts = judge.score(_pairs(20))
    assert len(server.requests) == 5
    assert [verdict.total for verdict in verdicts].count(1) == 5
    assert verdicts[-1] == Verdict(None, "the budget of 5 calls is spent")
    assert verdicts[-1].total is None
    assert judge.spent == Spent(calls=5, input_tokens=4500, output_tokens=500)


def test_a_budget_holds_over_all_the_calls_of_a_judge(server: Server) -> None:
    judge = Judge(server.url, "m", budget=Budget(calls=3))
    assert [v.total for v in judge.score(_pairs(2))] == [3, 3]
    assert [v.total for v in judge.score([("x", "y"), ("z", "y")])].count(None) == 1
    assert judge.score([("never", "asked")])[0].reason == "the budget of 3 calls is spent"
    assert len(server.requests) == 3


def test_tokens_end_at_their_limit_give_or_take_the_calls_under_way(server: Server) -> None:
    server.script = in_turn(METERED)
    judge = Judge(server.url, "m", concurrency=1, budget=Budget(tokens=2500))
    verdicts = judge.score(_pairs(9))
    assert len(server.requests) == 3
    assert verdicts[3].reason == "the budget of 2500 tokens is spent"
    wide = Judge(server.url, "m", concurrency=4, budget=Budget(tokens=2500))
    wide.score(_pairs(40))
    assert 2500 <= wide.spent.tokens <= 2500 + 4 * 1000


def test_money_is_what_the_given_prices_say(server: Server) -> None:
    server.script = in_turn(METERED)
    budget = Budget(money=0.011, input_price=2.5, output_price=10)  # 0.00325 a call
    judge = Judge(server.url, "m", concurrency=1, budget=budget)
    verdicts = judge.score(_pairs(9))
    assert len(server.requests) == 4
    assert judge.spent.money == pytest.approx(4 * 0.00325)
    assert verdicts[-1].reason == "the budget of 0.011 in money is spent"
    assert str(judge.spent) == "4 calls, 3600 input and 400 output tokens, 0.013 in money"


def test_every_request_counts_as_a_call_be_it_a_retry_or_a_second_question(server: Server) -> None:
    bad = completion("no JSON", USAGE)
    server.script = in_turn((429, {"Retry-After-Ms": "1"}, "{}"), bad, METERED)
    judge = Judge(server.url, "m")
    assert judge.score([("a", "b")])[0].total == 1
    assert judge.spent == Spent(calls=3, input_tokens=1800, output_tokens=200)


@pytest.mark.parametrize("first", [(429, {"Retry-After-Ms": "1"}, "{}"), BAD])
def test_neither_a_retry_nor_a_second_question_goes_beyond_the_budget(server: Server, first: Answer) -> None:
    server.script = in_turn(first, GOOD)
    (verdict,) = Judge(server.url, "m", budget=Budget(calls=1)).score([("a", "b")])
    assert verdict == Verdict(None, "the budget of 1 calls is spent")
    assert len(server.requests) == 1


def test_the_spending_is_logged_once_when_a_budget_ends(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    server.script = in_turn(METERED)
    judge = Judge(server.url, "m", budget=Budget(calls=2))
    judge.score(_pairs(9))
    judge.score(_pairs(9))
    (line,) = [r.getMessage() for r in caplog.records if r.name.startswith("unirg")]
    assert line.startswith("judge m: the budget of 2 calls is spent (2 calls, ")


@pytest.mark.parametrize("budget", [Budget(tokens=10**6), Budget(money=1, input_price=1, output_price=1)])
@pytest.mark.parametrize("usage", [None, {}, {"prompt_tokens": -1, "completion_tokens": 2}, "much"])
def test_tokens_that_nobody_reports_cannot_be_limited_and_that_is_said(
    server: Server, budget: Budget, usage: object
) -> None:
    server.script = in_turn(completion(counts(), usage))
    with pytest.raises(UserError, match=r"does not report the tokens it used.*limit the calls instead"):
        Judge(server.url, "m", budget=budget).score(_pairs(3))


def test_without_such_a_limit_answers_that_report_no_tokens_are_counted_as_such(server: Server) -> None:
    judge = Judge(server.url, "m", budget=Budget(calls=9))
    assert [v.total for v in judge.score(_pairs(2))] == [3, 3]
    assert judge.spent == Spent(calls=2, unmetered=2)
    assert "not reported for 2 answers" in str(judge.spent)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"calls": 0}, "budget of 0 calls"),
        ({"tokens": -1}, "budget of -1 tokens"),
        ({"money": float("nan"), "input_price": 1, "output_price": 1}, "budget of nan money"),
        ({"money": 1}, "needs both prices"),
        ({"money": 1, "input_price": 1}, "needs both prices"),
        ({"input_price": -1, "output_price": 1}, "prices cannot be -1 and 1"),
    ],
)
def test_a_budget_that_makes_no_sense_is_refused(limits: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Budget(**limits)


def test_no_report_is_in_what_a_spent_budget_or_a_dead_endpoint_shows(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "unirg")
    server.script = in_turn(METERED, (401, {}, CANARY))
    with pytest.raises(UserError) as caught:
        Judge(server.url, "m", concurrency=1).score([(CANARY, "r"), ("c", CANARY)])
    server.script = in_turn(METERED)
    verdicts = Judge(server.url, "m", concurrency=1, budget=Budget(calls=1)).score(
        [(CANARY, "r"), (CANARY, "s")]
    )
    assert CANARY not in everything_shown(caught.value) + repr(verdicts) + caplog.text
