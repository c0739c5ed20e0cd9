from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.scoring.stub import DIGEST, Answer, Script, Stub, completion, seen, status
from unirg.scoring.client import ChatClient, Completion, EndpointGone
from unirg.scoring.engine import Asker, EndpointAway, History, StudyFailed


def body(seed: int = 0) -> bytes:
    return json.dumps({"messages": [{"role": "user", "content": "CANARY"}], "seed": seed}).encode()


@asynccontextmanager
async def asker(
    url: str, concurrency: int = 64, timeout_s: float = 5.0, retries: int = 3, patience_s: float = 2.0
) -> AsyncIterator[Asker]:
    async with ChatClient(url, "stub", DIGEST, connections=concurrency, timeout_s=timeout_s) as client:
        yield Asker(client, concurrency=concurrency, retries=retries, patience_s=patience_s)


def ask(stub: Stub, times: int = 1, **settings: Any) -> list[Completion | BaseException]:
    """Ask `times` different questions at once; the outcomes."""

    async def main() -> list[Completion | BaseException]:
        async with asker(stub.url, **settings) as one:
            questions = (one.complete(body(number), History()) for number in range(times))
            return await asyncio.gather(*questions, return_exceptions=True)

    with stub.running():
        return asyncio.run(main())


def after(failures: int, answer: Answer) -> Script:
    """Give `answer` to each question so many times, then the completion."""
    return lambda stub, request: answer if seen(stub, request) <= failures else completion(request)


def test_a_completion_comes_back_with_its_tokens() -> None:
    (done,) = ask(Stub())
    assert isinstance(done, Completion)
    assert (done.text[:6], done.finish_reason, done.prompt_tokens, done.completion_tokens) == (
        "Report",
        "stop",
        40,
        5,
    )


@pytest.mark.parametrize("code", [408, 429, 502, 503, 504])
def test_an_unavailable_endpoint_is_asked_again_more_often_than_a_study_may_fail(code: int) -> None:
    (done,) = ask(Stub(after(3, status(code))), retries=0, patience_s=30.0)
    assert isinstance(done, Completion)


def test_a_reset_connection_is_asked_again() -> None:
    (done,) = ask(Stub(after(2, None)), retries=2)
    assert isinstance(done, Completion)


def test_retry_after_is_waited_for() -> None:
    started = time.monotonic()
    (done,) = ask(Stub(after(1, status(429, Retry_After="1"))))
    assert isinstance(done, Completion)
    assert time.monotonic() - started >= 1


@pytest.mark.parametrize("value", ["-5", "nan", "Wed, 21 Oct 2026 07:28:00 GMT", "soon"])
def test_a_strange_retry_after_does_no_harm(value: str) -> None:
    (done,) = ask(Stub(after(1, status(503, Retry_After=value))))
    assert isinstance(done, Completion)


@pytest.mark.parametrize(
    "answer",
    [
        status(500),
        (200, {}, b""),
        (200, {}, b'{"choices": ['),
        (200, {"Content-Type": "text/html"}, b"<html>login</html>"),
        (200, {}, b'{"choices": []}'),
        (200, {}, b'{"choices": [{"message": {"content": 5}, "finish_reason": "stop"}], "usage": {}}'),
        (200, {}, b"[]"),
        (200, {}, b"null"),
    ],
)
def test_a_faulty_answer_is_asked_for_again_and_then_the_study_has_failed(answer: Answer) -> None:
    (done,) = ask(Stub(after(2, answer)), retries=2)
    assert isinstance(done, Completion)
    stub = Stub(after(100, answer))
    (failed,) = ask(stub, retries=2)
    assert isinstance(failed, StudyFailed)
    assert failed.attempts == len(stub.asked) == 3


def test_a_study_that_is_never_answered_in_time_has_failed() -> None:
    stub = Stub(delay_s=1.0)
    (failed,) = ask(stub, timeout_s=0.1, retries=1)
    assert isinstance(failed, StudyFailed)
    assert (failed.reason, failed.attempts) == ("no answer in time", 2)


@pytest.mark.parametrize("code", [400, 413, 422])
def test_a_refused_study_fails_at_once_with_the_code_and_not_with_the_server_s_words(code: int) -> None:
    body = json.dumps({"error": {"message": "CANARY", "code": "too_many_images"}}).encode()
    stub = Stub(lambda stub, request: (code, {}, body))
    (failed,) = ask(stub)
    assert isinstance(failed, StudyFailed)
    assert (failed.reason, failed.attempts) == (f"refused: HTTP {code} too_many_images", 1)
    assert len(stub.asked) == 1


@pytest.mark.parametrize("body", [b'{"error": {"code": "CANARY 4711"}}', b'{"error": "CANARY"}', b"CANARY"])
def test_a_server_s_own_words_never_become_a_reason(body: bytes) -> None:
    (failed,) = ask(Stub(lambda stub, request: (400, {}, body)))
    assert isinstance(failed, StudyFailed)
    assert failed.reason == "refused: HTTP 400"


@pytest.mark.parametrize("code", [401, 403, 404])
def test_what_refuses_everybody_ends_the_run(code: int) -> None:
    (ended,) = ask(Stub(lambda stub, request: status(code)))
    assert isinstance(ended, EndpointGone)
    assert f"HTTP {code}" in str(ended)


@pytest.mark.parametrize("text", ["", "  \n", None])
def test_an_empty_completion_is_a_failure(text: str | None) -> None:
    def empty(stub: Stub, request: dict[str, Any]) -> Answer:
        body = {
            "choices": [{"message": {"content": text}, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 40, "completion_tokens": 1},
        }
        return 200, {}, json.dumps(body).encode()

    stub = Stub(empty)
    (failed,) = ask(stub)
    assert isinstance(failed, StudyFailed)
    assert (failed.reason, failed.attempts, len(stub.asked)) == ("empty completion", 1, 1)


def test_another_model_behind_the_address_ends_the_run() -> None:
    (ended,) = ask(Stub(lambda stub, request: (200, {"X-Model-Digest": "e" * 64}, completion(request)[2])))  # type: ignore[index]
    assert isinstance(ended, EndpointGone)
    assert "eeee" in str(ended)


def test_an_endpoint_that_nobody_listens_at_is_gone_after_the_patience() -> None:
    async def main() -> None:
        async with asker("http://127.0.0.1:9/v1", timeout_s=1, retries=0, patience_s=0.5) as one:
            await one.complete(body(), History())

    started = time.monotonic()
    with pytest.raises(EndpointAway, match="finished studies are kept"):
        asyncio.run(main())
    assert time.monotonic() - started < 5


def test_an_endpoint_that_others_get_answers_from_is_not_gone() -> None:
    # Question 0 meets 503 for longer than the patience; the others keep coming through.
    started = time.monotonic()

    def script(stub: Stub, request: dict[str, Any]) -> Answer:
        slow = request["seed"] == 0 and time.monotonic() - started < 3
        return status(503) if slow else completion(request)

    async def main() -> Completion:
        async with asker(stub.url, concurrency=8, retries=0, patience_s=1.0) as one:
            stubborn = asyncio.create_task(one.complete(body(), History()))
            for number in itertools.count(1):
                if stubborn.done():
                    break
                await one.complete(body(number), History())
                await asyncio.sleep(0.1)
            return await stubborn

    stub = Stub(script)
    with stub.running():
        assert asyncio.run(main()).text


def test_a_hanging_endpoint_that_does_not_even_list_its_models_is_gone_and_no_study_is_blamed() -> None:
    stub = Stub(delay_s=0.5)

    def die(stub: Stub, request: dict[str, Any]) -> Answer:
        stub.close()
        return status(500)

    stub.script = die
    (ended,) = ask(stub, retries=0)
    assert isinstance(ended, EndpointAway)


def test_no_more_requests_are_in_flight_than_there_are_connections() -> None:
    stub = Stub(delay_s=0.05)
    done = ask(stub, times=20, concurrency=4)
    assert all(isinstance(one, Completion) for one in done)
    assert stub.most_at_once == 4
