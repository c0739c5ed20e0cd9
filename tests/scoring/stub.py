"""A scripted endpoint: a real socket that speaks just enough HTTP, and fails on purpose.

Its text is a function of the request alone, as a greedy model's is. It runs in a thread, so that a test
can score in the foreground and look at what arrived.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

DIGEST = "d" * 64
Answer = tuple[int, dict[str, str], bytes] | None
"""Status, headers, body; None resets the connection."""
Script = Callable[["Stub", dict[str, Any]], Answer]


def question(request: dict[str, Any]) -> str:
    """Digest of what is asked: one per study, the same at every attempt."""
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()


def completion(request: dict[str, Any], text: str | None = None, finish_reason: str = "stop") -> Answer:
    body = {
        "choices": [
            {
                "message": {"content": f"Report {question(request)[:8]}." if text is None else text},
                "finish_reason": finish_reason,
            }
        ],
        "usage": {"prompt_tokens": 40, "completion_tokens": 5},
    }
    return 200, {"X-Model-Digest": DIGEST}, json.dumps(body).encode()


def status(code: int, **headers: str) -> Answer:
    return code, {name.replace("_", "-"): value for name, value in headers.items()}, b"{}"


@dataclass
class Stub:
    """What scoring takes for an endpoint. `script` decides each answer."""

    script: Script = lambda stub, request: completion(request)
    delay_s: float = 0.0
    model_name: str = "stub"
    model_digest: str = DIGEST
    restarts: bool = False
    port: int = 0
    connects: int = 0
    asked: list[str] = field(default_factory=list)
    """The question of every request that arrived, in order."""
    answered: list[str] = field(default_factory=list)
    """The questions answered with 200."""
    most_at_once: int = 0
    _now: int = 0
    _loop: asyncio.AbstractEventLoop | None = None
    _server: asyncio.Server | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @contextmanager
    def connect(self) -> Iterator[str]:
        self.connects += 1
        with self.running():
            yield self.url

    @contextmanager
    def running(self) -> Iterator[Stub]:
        up = threading.Event()
        thread = threading.Thread(target=lambda: asyncio.run(self._serve(up)))
        thread.start()
        assert up.wait(10)
        try:
            yield self
        finally:
            self.close()
            thread.join(10)

    def close(self) -> None:
        """Stop listening and drop every connection, as a dying server does."""
        loop, self._loop = self._loop, None
        if loop:
            loop.call_soon_threadsafe(self._stop.set)

    async def _serve(self, up: threading.Event) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        writers: set[asyncio.StreamWriter] = set()

        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writers.add(writer)
            try:
                while await self._exchange(reader, writer):
                    pass
            except (ConnectionError, asyncio.IncompleteReadError):
                pass
            finally:
                writers.discard(writer)
                writer.close()

        server = await asyncio.start_server(handle, "127.0.0.1", self.port, limit=2**20)
        self.port = server.sockets[0].getsockname()[1]
        up.set()
        await self._stop.wait()
        server.close()
        for writer in list(writers):
            writer.transport.abort()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = next(
            (
                int(line.split(":")[1])
                for line in head.splitlines()
                if line.lower().startswith("content-length")
            ),
            0,
        )
        content = await reader.readexactly(length)
        answer = (200, {}, b'{"data": []}') if head.startswith("GET") else await self._chat(content)
        if answer is None:
            writer.transport.abort()
            return False
        code, headers, body = answer
        lines = [f"HTTP/1.1 {code} X", f"Content-Length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        writer.write("\r\n".join([*lines, "", ""]).encode() + body)
        await writer.drain()
        return True

    async def _chat(self, content: bytes) -> Answer:
        request = json.loads(content)
        self._now += 1
        self.most_at_once = max(self.most_at_once, self._now)
        self.asked.append(question(request))
        try:
            if self.delay_s:
                await asyncio.sleep(self.delay_s)
            answer = self.script(self, request)
        finally:
            self._now -= 1
        if answer and answer[0] == 200:
            self.answered.append(question(request))
        return answer


def seen(stub: Stub, request: dict[str, Any]) -> int:
    """How often this question has been asked, this time included."""
    return stub.asked.count(question(request))
