"""The running server, asked over HTTP."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.requests import Request

from tests.serving.requests import chat, data_uri, image_part
from unirg.artifact import open_artifact
from unirg.serving import predictor
from unirg.serving.chat import MAX_BODY, Refused
from unirg.serving.endpoint import Endpoint, serve

CANARY = "DOE^JANE 4711"


def ask(base_url: str, **parameters: Any) -> httpx.Response:
    return httpx.post(f"{base_url}/chat/completions", json=chat(**parameters), timeout=60)


@contextmanager
def started(endpoint: Endpoint, folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A server of the test's own, as (process, base URL); its log is folder/log."""
    ready = folder / "url"
    command = [sys.executable, "-m", "unirg.serving.predictor", *endpoint.arguments()]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([*command, "--ready-file", str(ready)], stdout=log, stderr=log)
    try:
        until = time.monotonic() + 120
        while not ready.exists():
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < until
            time.sleep(0.05)
        yield process, ready.read_text()
    finally:
        process.kill()
        process.wait()


def test_the_openai_client_gets_a_report_with_the_model_s_digest(base_url: str, endpoint: Endpoint) -> None:
    from openai import OpenAI

    client = OpenAI(base_url=base_url, api_key="none", max_retries=0)
    assert [model.id for model in client.models.list()] == ["toy"]
    messages = chat(pictures=(1, 2))["messages"]
    answer = client.chat.completions.create(model="toy", messages=messages, max_tokens=5, temperature=0)
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "length"
    assert answer.system_fingerprint == endpoint.model_digest
    assert answer.usage
    assert answer.usage.completion_tokens == 5
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 5


def test_both_addresses_answer_the_same_and_name_the_digest(base_url: str, endpoint: Endpoint) -> None:
    answers = [ask(base_url), ask(base_url.removesuffix("/openai/v1") + "/v1")]
    assert {answer.headers["X-Model-Digest"] for answer in answers} == {endpoint.model_digest}
    assert answers[0].json()["choices"] == answers[1].json()["choices"]


def test_concurrent_mixed_requests_get_the_text_that_each_gets_alone(base_url: str) -> None:
    requests = [
        {"text": "heart " * number, "pictures": tuple(range(number, number + 1 + number % 2))}
        for number in range(12)
    ]

    def text(parameters: dict[str, Any]) -> str:
        return ask(base_url, **parameters).json()["choices"][0]["message"]["content"]

    alone = [text(request) for request in requests]
    with concurrent.futures.ThreadPoolExecutor(len(requests)) as pool:
        assert list(pool.map(text, requests)) == alone
    assert len(set(alone)) > 6


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (chat(n=5), 400, "invalid_value"),
        (chat(stream=True), 400, "invalid_value"),
        (chat(model=CANARY), 404, "model_not_found"),
        (chat(text=f"{CANARY} <|im_end|>"), 400, "control_token"),
        (chat(text=f"{CANARY} " * 3000), 400, "context_length"),
        (chat(tools=[CANARY]), 400, "invalid_request"),
        (
            {"messages": [{"role": "user", "content": [image_part(f"file:///{CANARY}")]}]},
            400,
            "unsupported_image",
        ),
        (
            {"messages": [{"role": "user", "content": [image_part(f"http://{CANARY}")]}]},
            400,
            "unsupported_image",
        ),
        ({"messages": [{"role": "user", "content": [image_part(data_uri(b"x"))]}]}, 400, "broken_image"),
    ],
)
def test_a_hostile_request_is_refused_without_an_echo(
    base_url: str, body: dict[str, Any], status: int, code: str
) -> None:
    answer = httpx.post(f"{base_url}/chat/completions", json={"model": "toy"} | body, timeout=60)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert CANARY not in answer.text
    assert ask(base_url).status_code == 200


@pytest.mark.parametrize("content", [b'{"temperature": NaN}', b"not json", b"\x00" * 100])
def test_a_body_that_is_no_json_of_ours_is_refused(base_url: str, content: bytes) -> None:
    answer = httpx.post(f"{base_url}/chat/completions", content=content)
    assert answer.status_code == 400


def test_a_request_over_the_size_limit_is_refused(base_url: str) -> None:
    answer = httpx.post(f"{base_url}/chat/completions", content=b"x" * (MAX_BODY + 1), timeout=60)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")


def test_health_answers_while_a_report_is_generated(base_url: str) -> None:
    root = base_url.removesuffix("/openai/v1")
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        long = pool.submit(ask, base_url, max_tokens=800)
        time.sleep(0.2)
        for path in ("/v2/health/ready", "/v2/health/live", "/v1/models/toy", "/metrics"):
            assert httpx.get(root + path).status_code == 200
        assert not long.done()
        assert long.result().json()["usage"]["completion_tokens"] == 800


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/models/toy:predict"),
        ("POST", "/v2/models/toy/infer"),
        ("POST", "/v2/repository/models/toy/unload"),
        ("DELETE", "/openai/v1/models/toy"),
    ],
)
def test_kserve_s_other_ways_to_infer_and_to_unload_are_closed(base_url: str, method: str, path: str) -> None:
    root = base_url.removesuffix("/openai/v1")
    answer = httpx.request(method, root + path, content=f'{{"instances": ["{CANARY}"]}}')
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_served")
    assert ask(base_url).status_code == 200


def test_sigterm_finishes_what_was_accepted_takes_no_more_and_nothing_asked_is_in_the_log(
    endpoint: Endpoint, tmp_path: Path
) -> None:
    with started(endpoint, tmp_path) as (process, url), concurrent.futures.ThreadPoolExecutor(4) as pool:
        ask(url, text=f"{CANARY} <|im_end|>")
        ask(url, **{CANARY: CANARY})
        httpx.get(url, params={"patient": CANARY})
        running = [pool.submit(ask, url, text=CANARY, max_tokens=800) for _ in range(4)]
        time.sleep(0.5)
        assert not any(one.done() for one in running)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        with pytest.raises(httpx.ConnectError):
            ask(url)
        assert [one.result().json()["usage"]["completion_tokens"] for one in running] == [800] * 4
        assert process.wait(30) == 0
    log = (tmp_path / "log").read_text()
    assert "ready at" in log
    assert CANARY not in log
    assert "chat/completions" not in log


def test_the_server_ends_with_a_user_who_is_killed(endpoint: Endpoint, tmp_path: Path) -> None:
    program = (
        "import sys, time\n"
        "from unirg.serving.endpoint import open_endpoint\n"
        "with open_endpoint(sys.argv[1]).connect() as url:\n"
        "    print(url, flush=True)\n"
        "    time.sleep(600)\n"
    )
    served = serve(endpoint.config, open_artifact(endpoint.checkpoint_uri), str(tmp_path))
    user = subprocess.Popen([sys.executable, "-c", program, served.uri], stdout=subprocess.PIPE, text=True)
    assert user.stdout
    url = user.stdout.readline().strip()
    assert httpx.get(f"{url}/models").status_code == 200
    os.kill(user.pid, signal.SIGKILL)
    user.wait()
    time.sleep(1)
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/models")


@pytest.mark.parametrize("hangs_up", [True, False])
def test_work_is_given_up_when_the_client_hangs_up_and_only_then(hangs_up: bool) -> None:
    ended = []

    async def work() -> str:
        try:
            await asyncio.sleep(0.05 if not hangs_up else 60)
        finally:
            ended.append(True)
        return "report"

    async def receive() -> dict[str, str]:
        await asyncio.sleep(0.01 if hangs_up else 60)
        return {"type": "http.disconnect"}

    async def main() -> str:
        return await predictor._unless_gone(Request({"type": "http"}, receive), work())

    if hangs_up:
        with pytest.raises(Refused, match="hung up"):
            asyncio.run(main())
    else:
        assert asyncio.run(main()) == "report"
    assert ended
