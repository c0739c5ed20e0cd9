"""Object storage on a bad day: a proxy before an S3 server: it refuses, stalls, breaks off, is silent.

What happens to a request is a function of the seed, its method and name, and how often it was made before.
"""

from __future__ import annotations

import http.client
import random
import socket
import struct
import threading
import time
import urllib.parse
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal

from tests.conftest import S3

Trouble = Literal[
    "unavailable",  # 503 SlowDown, and nothing is done
    "slow",  # done and answered, late
    "short",  # a body that is read breaks off in the middle
    "unheard",  # done, but the connection is reset before the answer: the client must find out
]
DROPPED = {"connection", "transfer-encoding", "content-length", "expect", "keep-alive"}
"""Headers of one hop."""


@dataclass
class Weather:
    """How bad the day is; may be changed while the proxy runs."""

    seed: int = 0
    chance: dict[Trouble, float] = field(default_factory=dict)
    slow_s: float = 0.2
    most: int = 2
    """Requests for one thing in a row that may meet trouble."""
    met: Counter[str] = field(default_factory=Counter)
    """How often each trouble came."""

    def trouble(self, method: str, path: str, times: int) -> Trouble | None:
        chance = random.Random(f"{self.seed}/{method}/{path}/{times}")
        draw = chance.random()
        if times % (self.most + 1) == self.most:
            return None
        for name, share in self.chance.items():
            draw -= share
            if draw < 0 and (name != "short" or method == "GET"):
                self.met[name] += 1
                return name
        return None


class _Proxy(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, upstream: str, weather: Weather) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = urllib.parse.urlsplit(upstream).netloc
        self.weather = weather
        self.times: Counter[tuple[str, str]] = Counter()
        self.lock = threading.Lock()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Proxy

    def pass_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        with self.server.lock:
            times = self.server.times[self.command, self.path]
            self.server.times[self.command, self.path] += 1
            trouble = self.server.weather.trouble(self.command, self.path, times)
        if trouble == "unavailable":
            self._reply(503, [("Content-Type", "application/xml")], b"<Error><Code>SlowDown</Code></Error>")
            return
        # The host stays the one that the client signed.
        headers = {name: value for name, value in self.headers.items() if name.lower() not in DROPPED}
        upstream = http.client.HTTPConnection(self.server.upstream, timeout=60)
        try:
            upstream.request(self.command, self.path, body, headers | {"Content-Length": str(len(body))})
            answer = upstream.getresponse()
            content = answer.read()
        finally:
            upstream.close()
        if trouble == "slow":
            time.sleep(self.server.weather.slow_s)
        if trouble == "unheard":
            linger = struct.pack("ii", 1, 0)  # without lingering, a close is a reset
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.close_connection = True
            return
        kept = [(name, value) for name, value in answer.getheaders() if name.lower() not in DROPPED]
        self._reply(
            answer.status, kept, content, short=trouble == "short", length=answer.headers["Content-Length"]
        )

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = pass_on

    def _reply(
        self,
        status: int,
        headers: list[tuple[str, str]],
        body: bytes,
        short: bool = False,
        length: str | None = None,
    ) -> None:
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        # To HEAD the length is that of a body which does not come.
        declared = length if self.command == "HEAD" and length else str(len(body))
        if status != 204:
            self.send_header("Content-Length", declared)
        self.end_headers()
        if self.command == "HEAD":
            return
        if short and len(body) > 1:
            body = body[: len(body) // 2]
            self.close_connection = True
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def troubled(server: S3, weather: Weather) -> Iterator[S3]:
    """The same S3 server, as it is seen through the weather."""
    with _Proxy(server.endpoint_url, weather) as proxy:
        thread = threading.Thread(target=proxy.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        yield S3(f"http://127.0.0.1:{proxy.server_port}", server.access_key, server.secret_key)
        proxy.shutdown()
        thread.join()
