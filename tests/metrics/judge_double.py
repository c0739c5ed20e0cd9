"""A real HTTP server on loopback that answers a judge's client as it is told to, well or badly."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from unirg.metrics.chexprompt import CATEGORIES

Answer = tuple[int, dict[str, str], str]
"""Status, headers, body."""


def completion(content: str | None, usage: object = None) -> Answer:
    """A chat completion; `usage` as the server reports it, None: not at all."""
    message = {"role": "assistant", "content": content}
    choice = {"index": 0, "finish_reason": "stop", "message": message}
    body: dict[str, object] = {
        "id": "1",
        "object": "chat.completion",
        "created": 0,
        "model": "m",
        "choices": [choice],
    }
    if usage is not None:
        body["usage"] = usage
    return 200, {}, json.dumps(body)


def counts(**significant: int) -> str:
    return json.dumps({c: {"significant": significant.get(c, 0), "insignificant": 0} for c in CATEGORIES})


GOOD = completion(counts(omission=2, wrong_location=1))
BAD = completion("(A, 1), (B, 0): no JSON")


class Server:
    """`script` decides the answer to each request, given its number and its body."""

    def __init__(self) -> None:
        self.script: Callable[[int, dict[str, Any]], Answer] = lambda number, body: GOOD
        self.requests: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.times: list[float] = []
        self.delay = 0.0
        self.at_once = self.most_at_once = 0
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                status, headers, text = outer._answer(body, self.path, dict(self.headers))
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(text.encode())))
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def _answer(self, body: dict[str, Any], path: str, headers: dict[str, str]) -> Answer:
        with self._lock:
            number = len(self.requests)
            self.requests.append(body)
            self.paths.append(path)
            self.headers.append({name.lower(): value for name, value in headers.items()})
            self.times.append(time.monotonic())
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        time.sleep(self.delay)
        answer = self.script(number, body)
        with self._lock:
            self.at_once -= 1
        return answer

    @property
    def root(self) -> str:
        """The URL without `/v1`."""
        return self.url.removesuffix("/v1")

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def in_turn(*answers: Answer) -> Callable[[int, dict[str, Any]], Answer]:
    return lambda number, body: answers[min(number, len(answers) - 1)]
