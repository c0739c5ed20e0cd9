"""The running server, asked over HTTP."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.requests import Request

from tests.serving.requests import chat, data_uri, image_part
from tests.serving.servers import ask
from unirg.artifact import open_artifact
from unirg.serving import routes
from unirg.serving.chat import MAX_BODY, Refused
from unirg.serving.endpoint import LocalEndpoint, serve

CANARY = "DOE^JANE 4711"


def test_the_openai_client_gets_a_report_with_the_model_s_digest(
    base_url: str, endpoint: LocalEndpoint
) -> None:
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


def test_both_addresses_answer_the_same(base_url: str) -> None:
    answers = [ask(base_url), ask(base_url.removesuffix("/openai/v1") + "/v1")]
    assert answers[0].json()["choices"] == answers[1].json()["choices"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/v1/chat/completions", 400),
        ("POST", "/openai/v1/completions", 404),
        ("GET", "/openai/v1/models", 200),
        ("GET", "/v1/models", 200),
        ("GET", "/openai/v1/chat/completions", 405),
        ("GET", "/nowhere", 404),
        ("DELETE", "/nowhere", 404),
        ("GET", "/v1/models/nobody", 404),
        ("GET", "/v1/models/toy", 200),
        ("GET", "/v2/models/toy/ready", 200),
        ("GET", "/v2/health/ready", 200),
        ("GET", "/v2/health/live", 200),
        ("GET", "/", 200),
        ("POST", "/v2/health/live", 404),
        ("BREW", "/metrics", 404),
        ("GET", "/metrics", 200),
    ],
)
def test_the_model_s_digest_is_in_every_answer_and_error(
    base_url: str, endpoint: LocalEndpoint, method: str, path: str, status: int
) -> None:
    answer = httpx.request(method, base_url.removesuffix("/openai/v1") + path)
    assert answer.status_code == status
    assert answer.headers.get_list("X-Model-Digest") == [endpoint.model_digest]
    assert endpoint.model_digest in answer.text
    if path != "/metrics":
        assert answer.json()["system_fingerprint"] == endpoint.model_digest
    if status >= 400:
        assert answer.json()["error"]["type"] == "invalid_request_error"


def test_metrics_count_and_time_and_quote_no_request(base_url: str, endpoint: LocalEndpoint) -> None:
    def read(series: str) -> float:
        lines = httpx.get(base_url.removesuffix("/openai/v1") + "/metrics").text.splitlines()
        assert CANARY not in "".join(lines)
        return next((float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{series} ")), 0.0)

    watched = {
        'unirg_requests_total{status="200"}': 2,
        'unirg_requests_total{status="400"}': 1,
        'unirg_requests_total{status="404"}': 1,
        'unirg_tokens_total{kind="completion"}': 12,
        "unirg_request_seconds_count": 4,
        "unirg_queue_seconds_count": 2,
        "unirg_batch_size_sum": 2,
    }
    before = {series: read(series) for series in watched}
    for text in ("one", CANARY):
        assert ask(base_url, text=text, max_tokens=6).status_code == 200
    assert ask(base_url, tools=[CANARY]).status_code == 400
    assert ask(base_url, model=CANARY).status_code == 404
    assert {series: read(series) - before[series] for series in watched} == watched
    assert read("unirg_queue_length") == 0
    assert read("unirg_batch_seconds_count") > 0
    assert read('unirg_tokens_total{kind="prompt"}') > 0
    assert read(f'unirg_model_info{{digest="{endpoint.model_digest}",model="toy"}}') == 1


def test_concurrent_mixed_requests_get_the_text_that_each_gets_alone(base_url: str) -> None:
    requests = [
        {
            "text": "heart " * number,
            "pictures": tuple(range(number, number + number % 3)),
            "temperature": (0, 0.7, 1.5)[number // 2 % 3],
            "seed": number % 4,
            "max_tokens": 8 + number,
        }
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


def test_a_request_that_says_it_is_too_large_is_refused_before_it_is_sent(base_url: str) -> None:
    url = httpx.URL(base_url)
    with socket.create_connection((url.host, url.port or 80), timeout=10) as connection:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {MAX_BODY + 1}\r\n\r\n"
        connection.sendall(head.encode())
        assert b" 413 " in connection.recv(100).split(b"\r\n")[0]


def test_headers_have_a_limit_too(base_url: str) -> None:
    with contextlib.suppress(httpx.TransportError):  # where it hangs up before all of them are sent
        answer = httpx.get(f"{base_url}/models", headers={"X-Large": CANARY * 20_000})
        assert answer.status_code == 400
        assert CANARY not in answer.text
    assert ask(base_url).status_code == 200


def test_a_request_in_chunks_is_refused_where_it_goes_over_the_limit(base_url: str) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(MAX_BODY // 2**20 + 1):
            yield bytes(2**20)

    answer = httpx.post(f"{base_url}/chat/completions", content=chunks(), timeout=60)
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
        ("GET", "/v2"),
        ("GET", "/openapi.json"),
        ("GET", "/v2/models/toy"),
    ],
)
def test_kserve_s_other_ways_to_infer_and_to_unload_are_closed(base_url: str, method: str, path: str) -> None:
    root = base_url.removesuffix("/openai/v1")
    answer = httpx.request(method, root + path, content=f'{{"instances": ["{CANARY}"]}}')
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_served")
    assert ask(base_url).status_code == 200


def test_the_server_ends_with_a_user_who_is_killed(endpoint: LocalEndpoint, tmp_path: Path) -> None:
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


def arriving(*chunks: bytes, then_s: float = 60.0) -> Request:
    """A request whose body arrives so far and then stands still."""
    left = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]

    async def receive() -> dict[str, Any]:
        if not left:
            await asyncio.sleep(then_s)
            return {"type": "http.disconnect"}
        return left.pop(0)

    return Request({"type": "http", "headers": []}, receive)


def test_a_body_that_does_not_arrive_gives_its_place_back() -> None:
    with pytest.raises(Refused) as slow:
        asyncio.run(routes.body(arriving(b"{"), 10, seconds=0.05))
    assert (slow.value.status, slow.value.code) == (408, "too_slow")
    with pytest.raises(Refused) as gone:
        asyncio.run(routes.body(arriving(b"{", then_s=0), 10))
    assert gone.value.status == 499


def test_the_bodies_in_hand_have_a_limit_together() -> None:
    room = routes.Room(10)
    with room.taken(6):
        with pytest.raises(Refused) as refused, room.taken(5):
            pass
        assert (refused.value.status, refused.value.retry_after_s) == (429, 1)
        with room.taken(4):
            pass
    assert room.left == 10


def test_a_body_of_unknown_size_takes_the_room_of_the_largest() -> None:
    assert routes.declared(arriving()) == MAX_BODY


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
        return await routes.unless_gone(Request({"type": "http"}, receive), work())

    if hangs_up:
        with pytest.raises(Refused, match="hung up"):
            asyncio.run(main())
    else:
        assert asyncio.run(main()) == "report"
    assert ended
