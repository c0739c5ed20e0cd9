"""A predictor from its start to its end, and who may ask it."""

from __future__ import annotations

import concurrent.futures
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.serving.requests import chat
from tests.serving.servers import ask, started
from tests.waiting import until
from unirg.errors import UserError
from unirg.serving import access
from unirg.serving.endpoint import LocalEndpoint

CANARY = "DOE^JANE 4711"
TOKEN = "s3cret-t0ken"


def test_nobody_is_answered_before_the_policy_is_warm(endpoint: LocalEndpoint, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    seen: list[int] = []
    over = threading.Event()

    def probe() -> None:
        while not over.wait(0.01):
            try:
                seen.append(httpx.get(f"http://127.0.0.1:{port}/v2/health/ready").status_code)
            except httpx.TransportError:
                seen.append(0)

    prober = threading.Thread(target=probe)
    prober.start()
    with started(endpoint, tmp_path, "--port", str(port)):
        until(lambda: 200 in seen)
        over.set()
        prober.join()
    assert set(seen) == {0, 200}
    assert seen == sorted(seen)


def measured(client: httpx.Client, series: str) -> float:
    lines = client.get("/metrics").text.splitlines()
    return next(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{series} "))


def test_sigterm_finishes_what_was_accepted_refuses_what_is_new_and_nothing_asked_is_in_the_log(
    endpoint: LocalEndpoint, tmp_path: Path
) -> None:
    with (
        started(endpoint, tmp_path, "--max-batch", "1") as (process, url),
        concurrent.futures.ThreadPoolExecutor(4) as pool,
        httpx.Client(base_url=url.removesuffix("/openai/v1")) as client,
    ):
        ask(url, text=f"{CANARY} <|im_end|>")
        ask(url, tools=[CANARY])
        httpx.get(url, params={"patient": CANARY})
        running = [pool.submit(ask, url, text=CANARY, max_tokens=600) for _ in range(4)]
        until(lambda: measured(client, "unirg_batch_size_count") == 1)
        until(lambda: measured(client, "unirg_queue_length") == 3)  # so all four are accepted
        process.send_signal(signal.SIGTERM)
        until(lambda: client.get("/v2/health/ready").status_code == 503, 5)
        for path in ("/v1/models/toy", "/v2/models/toy/ready"):
            assert (client.get(path).status_code, client.get(path).json()["ready"]) == (503, False)
        refused = client.post("/v1/chat/completions", json=chat())
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "shutting_down")
        assert refused.headers["Retry-After"] == "1"
        assert refused.headers["X-Model-Digest"] == endpoint.model_digest
        assert client.get("/v2/health/live").status_code == 200
        assert not all(one.done() for one in running)
        assert [one.result().json()["usage"]["completion_tokens"] for one in running] == [600] * 4
        assert process.wait(30) == 0
        with pytest.raises(httpx.ConnectError):
            ask(url)
    log = (tmp_path / "log").read_text()
    assert "ready at" in log
    assert CANARY not in log
    assert "chat/completions" not in log


def test_a_second_signal_closes_without_waiting(endpoint: LocalEndpoint, tmp_path: Path) -> None:
    with (
        started(endpoint, tmp_path) as (process, url),
        concurrent.futures.ThreadPoolExecutor(1) as pool,
        httpx.Client(base_url=url.removesuffix("/openai/v1")) as client,
    ):
        running = pool.submit(ask, url, text=CANARY, max_tokens=3500)  # some twenty seconds
        until(lambda: measured(client, "unirg_batch_size_count") == 1)
        process.send_signal(signal.SIGTERM)
        until(lambda: client.get("/v2/health/ready").status_code == 503, 5)
        process.send_signal(signal.SIGTERM)
        assert process.wait(4) == 0
        answer = running.result(4)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "shutting_down")
        assert answer.headers["X-Model-Digest"] == endpoint.model_digest
    log = (tmp_path / "log").read_text()
    assert "Traceback" not in log
    assert CANARY not in log


@pytest.fixture(scope="module")
def guarded(endpoint: LocalEndpoint, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, str]]:
    """A server that asks for a token: its process id and base URL."""
    folder = tmp_path_factory.mktemp("guarded")
    (folder / "token").write_text(f"{TOKEN}\n")
    with started(endpoint, folder, "--token-file", str(folder / "token")) as (process, url):
        yield process.pid, url


@pytest.mark.parametrize(
    "shown",
    ["", "Bearer", "Bearer wrong", f"Basic {TOKEN}", TOKEN, f"Bearer {TOKEN}x", "Bearer é"],
)
def test_without_the_token_nothing_is_answered_or_read(guarded: tuple[int, str], shown: str) -> None:
    headers = [(b"Authorization", shown.encode("latin-1"))] if shown else []
    for method, path, content in (
        ("POST", "/chat/completions", b"x" * 2**20),
        ("GET", "/models", b""),
    ):
        answer = httpx.request(method, guarded[1] + path, headers=headers, content=content)
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "unauthorized")
        assert answer.headers["WWW-Authenticate"] == 'Bearer realm="unirg"'
        assert TOKEN not in answer.text


def test_with_the_token_chats_are_answered_and_probes_never_need_it(guarded: tuple[int, str]) -> None:
    pid, url = guarded
    assert ask(url, f"Bearer {TOKEN}").status_code == 200
    assert ask(url, f"bearer  {TOKEN}").status_code == 200
    for path in ("/", "/v2/health/ready", "/v2/health/live", "/v1/models/toy", "/metrics"):
        assert httpx.get(url.removesuffix("/openai/v1") + path).status_code == 200
    assert TOKEN not in Path(f"/proc/{pid}/cmdline").read_text()


def test_the_token_may_come_from_the_environment(endpoint: LocalEndpoint, tmp_path: Path) -> None:
    with started(endpoint, tmp_path, environment={access.VARIABLE: TOKEN}) as (_, url):
        assert ask(url).status_code == 401
        assert ask(url, f"Bearer {TOKEN}").status_code == 200


@pytest.mark.parametrize("content", ["", "  \n", "two words", "schlüssel", "a\nb"])
def test_what_is_no_token_lets_nobody_in_but_is_an_error(
    content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "token").write_text(content)
    with pytest.raises(UserError, match="holds no token"):
        access.read_token(str(tmp_path / "token"))
    monkeypatch.setenv(access.VARIABLE, content)
    with pytest.raises(UserError, match=f"{access.VARIABLE} holds no token"):
        access.read_token()
    monkeypatch.delenv(access.VARIABLE)
    assert access.read_token() == ""


def test_a_token_file_that_is_not_there_ends_the_server_with_one_line(
    endpoint: LocalEndpoint, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "unirg.serving.predictor", *endpoint.arguments()]
    done = subprocess.run(
        [*command, "--token-file", str(tmp_path / "none")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr == f"cannot read the token file {tmp_path / 'none'} (FileNotFoundError)\n"
