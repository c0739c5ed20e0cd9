"""The judge's client against a real server on loopback that answers as it is told to, well or badly."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from tests.metrics.judge_double import BAD, GOOD, Answer, Server, completion, counts, in_turn
from unirg.errors import UserError
from unirg.metrics import chexprompt
from unirg.metrics.chexprompt import CATEGORIES, INSTRUCTION, Judge, Verdict

CANARY = "CANARY-pneumothorax"


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.stop()


def test_counts_are_summed_and_the_request_asks_for_the_schema(server: Server) -> None:
    (verdict,) = Judge(server.url, "some-model").score([("a candidate", "a reference")])
    assert verdict.errors is not None
    assert verdict.errors.omission.significant == 2
    assert (verdict.significant, verdict.insignificant, verdict.total, verdict.reason) == (3, 0, 3, None)
    (request,) = server.requests
    assert request["model"] == "some-model"
    assert request["temperature"] == 0
    schema = request["response_format"]["json_schema"]
    assert schema["strict"] is True
    assert schema["schema"]["required"] == list(CATEGORIES)
    assert schema["schema"]["additionalProperties"] is False


def test_verdicts_keep_the_order_of_the_pairs_and_identical_pairs_are_asked_once(server: Server) -> None:
    def count_words(number: int, body: dict[str, Any]) -> Answer:
        candidate = json.loads(body["messages"][-1]["content"])["candidate"]
        return completion(counts(omission=len(candidate.split())))

    server.script = count_words
    pairs = [("x " * (index % 7 + 1), "reference") for index in range(50)]
    verdicts = Judge(server.url, "m").score(pairs)
    assert [verdict.total for verdict in verdicts] == [index % 7 + 1 for index in range(50)]
    assert len(server.requests) == 7


def test_a_pair_swapped_is_another_pair(server: Server) -> None:
    Judge(server.url, "m").score([("a", "b"), ("b", "a")])
    assert len(server.requests) == 2


def test_no_pairs_make_no_request(server: Server) -> None:
    assert Judge(server.url, "m").score([]) == []
    assert server.requests == []


def test_no_more_requests_are_under_way_than_allowed(server: Server) -> None:
    server.delay = 0.03
    Judge(server.url, "m", concurrency=4).score([(str(number), "r") for number in range(40)])
    assert server.most_at_once == 4


def test_a_429_is_retried_after_the_time_that_the_server_asks_for(server: Server) -> None:
    server.script = in_turn((429, {"Retry-After": "1"}, "{}"), GOOD)
    (verdict,) = Judge(server.url, "m").score([("a", "b")])
    assert verdict.total == 3
    # Its own first back-off would be half a second at most.
    assert server.times[1] - server.times[0] >= 0.95


def test_server_errors_are_retried(server: Server) -> None:
    server.script = in_turn((500, {}, "{}"), (503, {}, "busy"), GOOD)
    (verdict,) = Judge(server.url, "m").score([("a", "b")])
    assert verdict.total == 3
    assert len(server.requests) == 3


def test_a_pair_that_keeps_failing_is_missing_and_the_others_are_not(server: Server) -> None:
    server.script = lambda number, body: (
        (500, {}, "{}") if "broken" in body["messages"][-1]["content"] else GOOD
    )
    verdicts = Judge(server.url, "m", retries=1).score([("fine", "r"), ("broken", "r"), ("well", "r")])
    assert [verdict.total for verdict in verdicts] == [3, None, 3]
    assert verdicts[1] == Verdict(None, "HTTP 500")
    assert verdicts[1].significant is None


BROKEN = [
    "no JSON",
    None,
    "{}",
    counts(omission=-1),
    counts(omission=100),
    json.dumps({**json.loads(counts()), "extra": 1}),
    counts().replace("0", '"0"'),
    counts().replace("0", "0.5"),
    counts().replace("0", "true"),
    "```json\n" + counts() + "\n```",
]


@pytest.mark.parametrize("content", BROKEN)
def test_an_answer_that_breaks_the_schema_is_asked_for_once_more(server: Server, content: str | None) -> None:
    server.script = in_turn(completion(content), GOOD)
    (verdict,) = Judge(server.url, "m").score([("a", "b")])
    assert verdict.total == 3
    first, second = (request["messages"] for request in server.requests)
    assert first[-1] == second[-1]
    assert second[0]["content"].startswith(first[0]["content"])
    assert second[0] != first[0]


NO_COMPLETION = ["{}", '{"choices": []}', '{"choices": [{}]}', "not JSON at all", "[]", "null", ""]


@pytest.mark.parametrize("body", NO_COMPLETION)
def test_a_reply_that_is_no_completion_counts_as_a_bad_answer(server: Server, body: str) -> None:
    server.script = in_turn((200, {}, body), GOOD)
    (verdict,) = Judge(server.url, "m", retries=0).score([("a", "b")])
    assert verdict.total == 3


def test_a_second_bad_answer_leaves_the_verdict_missing_and_not_zero(server: Server) -> None:
    server.script = lambda number, body: BAD
    (verdict,) = Judge(server.url, "m").score([("a", "b")])
    assert verdict == Verdict(None, "the answer broke the schema twice")
    assert verdict.total is None
    assert len(server.requests) == 2


def test_a_server_that_does_not_answer_in_time_leaves_the_verdict_missing(server: Server) -> None:
    server.delay = 0.6
    (verdict,) = Judge(server.url, "m", retries=0, timeout=0.2).score([("a", "b")])
    assert verdict == Verdict(None, "no answer within 0.2 s")


def test_an_unreachable_endpoint_is_named_with_the_remedy(server: Server) -> None:
    server.stop()
    with pytest.raises(UserError, match="cannot be reached: start it, or correct its URL") as error:
        Judge(server.url, "m", retries=1).score([(f"{CANARY} {number}", "b") for number in range(20)])
    assert server.url in str(error.value)
    assert CANARY not in str(error.value)


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_wrong_key_model_or_path_ends_the_call_at_once(server: Server, status: int) -> None:
    server.script = lambda number, body: (status, {}, json.dumps({"error": {"message": CANARY}}))
    with pytest.raises(UserError, match=f"HTTP {status} for model wrong-model") as error:
        Judge(server.url, "wrong-model").score([(str(number), "b") for number in range(200)])
    assert CANARY not in str(error.value)
    assert len(server.requests) < 100


def test_no_report_reaches_a_log_an_error_or_a_reason(
    server: Server, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    echo = json.dumps({"error": {"message": f"filtered: {CANARY}"}})
    bad = completion(f'{{"omission": "{CANARY}"}}')
    server.script = in_turn((500, {}, echo), bad, bad, (400, {}, echo), GOOD)
    pairs = [(f"{CANARY} {number}", CANARY) for number in range(3)]
    verdicts = Judge(server.url, "m", concurrency=1).score(pairs)
    assert [verdict.total for verdict in verdicts] == [None, None, 3]
    assert verdicts[1].reason == "HTTP 400"
    assert caplog.records, "the client's library logs at this level"
    captured = capfd.readouterr()
    assert CANARY not in caplog.text + captured.out + captured.err + repr(verdicts)


def test_the_identity_follows_the_model_and_the_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    identity = Judge("http://one/v1", "m").identity
    assert identity == Judge("http://other/v1", "m", api_key="secret", concurrency=1).identity
    assert identity != Judge("http://one/v1", "n").identity
    monkeypatch.setattr(chexprompt, "INSTRUCTION", INSTRUCTION + " Be strict.")
    assert identity != Judge("http://one/v1", "m").identity


def test_a_judge_may_be_used_again_and_inside_a_running_loop(server: Server) -> None:
    judge = Judge(server.url, "m")
    assert judge.score([("a", "b")])[0].total == 3
    assert asyncio.run(judge.ascore([("a", "b")]))[0].total == 3
