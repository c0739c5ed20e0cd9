"""A stub endpoint in a process of its own, which fails on purpose and on schedule: `served(Behaviour(...))`.

It speaks OpenAI chat completions on asyncio alone, so fast that it can be a benchmark's other side: a body is
digested as it comes in, never kept and never parsed. Its text is a function of the request's bytes alone, as
a greedy model's is of the request. Which attempt of which question fails, and how, is a function of the seed,
so it does not depend on the order in which questions arrive.

Every question that arrives (`<`), meets a fault (`!`) or is answered as it should be (`>`) gets a line in the
log at once, and so does each start of the server (`*`). From it the server knows what it has seen when its
supervisor starts it again, and so does a test.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import random
import signal
import socket
import struct
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from unirg.processes import die_with_parent, server

Fault = Literal[
    "unavailable",  # 503
    "busy",  # 429 with Retry-After
    "error",  # 500
    "refused",  # 400
    "reset",  # the connection is reset once the work is done
    "hang",  # no answer for `hang_s`, then a closed connection
    "cut",  # a whole HTTP answer with half of the JSON
    "short",  # the connection ends in the middle of the body
    "blank",  # 200 with an empty body
    "html",  # 200 with another content type
    "length",  # cut off at max_tokens
    "empty",  # a completion without text
    "poison",  # the server dies
]
FAULTS: tuple[Fault, ...] = get_args(Fault)
JSON = "application/json"


@dataclass(frozen=True)
class Behaviour:
    """What the server does. A question is known by the SHA-256 of the request's body, in hex."""

    latency_s: float = 0.0
    jitter_s: float = 0.0
    """Added to the latency, up to this, drawn for each attempt: answers come in another order."""
    capacity: int = 0
    """Requests at a time; more get 429. 0 = any number."""
    retry_after_s: float = 0.02
    hang_s: float = 60.0
    seed: int = 0
    chance: dict[Fault, float] = field(default_factory=dict)
    """Share of the attempts that meet a fault."""
    most: int = 2
    """Attempts at a question that may meet one by chance; those after it are answered."""
    always: dict[Fault, list[str]] = field(default_factory=dict)
    """Beginnings of the questions that meet a fault every time."""
    model: str = "stub"
    digest: str = "d" * 64
    """Of the model, in every answer's header; empty: no such header, as vLLM has none."""

    def fault(self, question: str, attempt: int) -> Fault | None:
        """What becomes of the n-th attempt (from 1) at a question; None: it is answered."""
        for name, beginnings in self.always.items():
            if question.startswith(tuple(beginnings)):
                return name
        if self.chance and attempt <= self.most:
            draw = random.Random(f"{self.seed}/{question}/{attempt}").random()
            for name, chance in self.chance.items():
                draw -= chance
                if draw < 0:
                    return name
        return None

    def wait_s(self, question: str, attempt: int) -> float:
        if not self.jitter_s:
            return self.latency_s
        return (
            self.latency_s + self.jitter_s * random.Random(f"{self.seed}/{question}/{attempt}/wait").random()
        )


def text_of(question: str) -> str:
    """The report that the stub writes: it names its question."""
    return f"Findings: {question[:32]}. Impression: as before."


def question_of(text: str) -> str:
    """The beginning of the question to which this is the report."""
    return text.split()[1].rstrip(".")


class Stub:
    """The server's state: what it has seen, and what it has under way."""

    def __init__(self, behaviour: Behaviour, log: Path | None) -> None:
        self.behaviour = behaviour
        self.attempts: Counter[str] = Counter()
        self.arrived = self.answered = self.now = self.most_at_once = 0
        self.first = self.last = 0.0
        self._log = -1
        if log:
            self.attempts.update(line[2:] for line in _lines(log) if line.startswith("<"))
            self._log = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def note(self, kind: str, question: str) -> None:
        if self._log >= 0:
            os.write(self._log, f"{kind} {question}\n".encode())

    def stats(self) -> dict[str, float]:
        return {
            "pid": os.getpid(),
            "arrived": self.arrived,
            "answered": self.answered,
            "most_at_once": self.most_at_once,
            "seconds": self.last - self.first,
        }


def _lines(log: Path) -> list[str]:
    return log.read_text().splitlines() if log.exists() else []


class Connection(asyncio.Protocol):
    """One client's connection: requests one after the other, as HTTP/1.1 has them."""

    def __init__(self, stub: Stub) -> None:
        self.stub = stub
        self.head, self.left = b"", 0
        self.digest = hashlib.sha256()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        while data:
            if not self.left:
                self.head += data
                head, end, data = self.head.partition(b"\r\n\r\n")
                if not end:
                    return
                self.head = b""
                if not self._begins(head):
                    continue
            part, data = data[: self.left], data[self.left :]
            self.digest.update(part)
            self.left -= len(part)
            if not self.left:
                self._asked(self.digest.hexdigest())

    def _begins(self, head: bytes) -> bool:
        """Take a request's head; true where a body follows."""
        if head.startswith(b"GET "):
            listed: object = {"data": [{"id": self.stub.behaviour.model}]}
            stats = head.startswith(b"GET /stats")
            self._answer(200, json.dumps(self.stub.stats() if stats else listed).encode())
            return False
        lower = head.lower()
        at = lower.index(b"content-length:") + len(b"content-length:")
        self.left = int(lower[at:].split(b"\r\n", 1)[0])
        self.digest = hashlib.sha256()
        return self.left > 0

    def _asked(self, question: str) -> None:
        stub, behaviour = self.stub, self.stub.behaviour
        stub.arrived += 1
        stub.first = stub.first or time.monotonic()
        stub.note("<", question)
        if behaviour.capacity and stub.now >= behaviour.capacity:
            stub.note("!", f"full {question}")
            self._answer(429, b"{}", (f"Retry-After: {behaviour.retry_after_s}",))
            return
        stub.attempts[question] += 1
        attempt = stub.attempts[question]
        stub.now += 1
        stub.most_at_once = max(stub.most_at_once, stub.now)
        fault = behaviour.fault(question, attempt)
        if fault:
            stub.note("!", f"{fault} {question}")
        wait_s = behaviour.hang_s if fault == "hang" else behaviour.wait_s(question, attempt)
        asyncio.get_running_loop().call_later(wait_s, self._worked, question, fault)

    def _worked(self, question: str, fault: Fault | None) -> None:
        stub = self.stub
        stub.now -= 1
        if fault == "poison":
            os._exit(1)
        if fault in ("reset", "hang"):
            if fault == "reset" and not self.transport.is_closing():  # without lingering, a close is a reset
                wire = self.transport.get_extra_info("socket")
                wire.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.transport.abort()
            return
        if fault in ("unavailable", "busy", "error", "refused"):
            status = {"unavailable": 503, "busy": 429, "error": 500, "refused": 400}[fault]
            extra = (f"Retry-After: {stub.behaviour.retry_after_s}",) if fault == "busy" else ()
            self._answer(status, b"{}", extra)
            return
        text = "" if fault == "empty" else text_of(question)
        body = {
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": text},
                    "finish_reason": "length" if fault == "length" else "stop",
                }
            ],
            "usage": {"prompt_tokens": 300, "completion_tokens": 8, "total_tokens": 308},
        }
        content = json.dumps(body).encode()
        kind, declared = JSON, None
        if fault == "cut":
            content = content[: len(content) // 2]
        elif fault == "short":
            content, declared = content[: len(content) // 2], len(content)
        elif fault == "blank":
            content = b""
        elif fault == "html":
            content, kind = b"<html>Welcome</html>", "text/html"
        if fault is None:
            stub.answered += 1
            stub.last = time.monotonic()
            stub.note(">", question)
        self._answer(200, content, (), kind, declared)
        if declared:
            self.transport.close()

    def _answer(
        self,
        status: int,
        body: bytes,
        extra: Sequence[str] = (),
        kind: str = JSON,
        declared: int | None = None,
    ) -> None:
        if self.transport.is_closing():
            return
        lines = [f"HTTP/1.1 {status} Stub", f"Content-Type: {kind}"]
        lines.append(f"Content-Length: {len(body) if declared is None else declared}")
        if self.stub.behaviour.digest:
            lines.append(f"X-Model-Digest: {self.stub.behaviour.digest}")
        self.transport.write("\r\n".join([*lines, *extra, "", ""]).encode() + body)


async def serve(stub: Stub, port: int, ready: Path | None) -> None:
    """Answer on this port until the process ends."""
    stub.note("*", str(os.getpid()))
    loop = asyncio.get_running_loop()
    made = await loop.create_server(
        lambda: Connection(stub), "127.0.0.1", port, backlog=512, reuse_address=True
    )
    if ready:
        aside = ready.with_suffix(".new")
        aside.write_text(f"http://127.0.0.1:{port}/v1")
        aside.replace(ready)
    await made.serve_forever()


def supervise(behaviour: Behaviour, log: Path | None, ready: Path, restart_s: float) -> None:
    """Run the server on one port, and start it again there whenever it dies."""
    # Bound and not listening: nobody else gets the port, and a dead server's connections are refused.
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind(("127.0.0.1", 0))
    port, first, supervisor = held.getsockname()[1], True, os.getpid()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # what we started ends with us
    while True:
        child = os.fork()
        if not child:
            die_with_parent(parent=supervisor)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            asyncio.run(serve(Stub(behaviour, log), port, ready if first else None))
            os._exit(0)
        os.waitpid(child, 0)
        first = False
        if restart_s < 0:
            sys.exit(1)
        time.sleep(restart_s)


@dataclass(frozen=True)
class Served:
    """A stub that runs, as a test sees it."""

    url: str
    log: Path

    def stats(self) -> dict[str, float]:
        with urllib.request.urlopen(self.url.removesuffix("/v1") + "/stats", timeout=10) as answer:
            found: dict[str, float] = json.load(answer)
        return found

    def up(self) -> int:
        """Wait until it answers; its process."""
        until = time.monotonic() + 10
        while True:
            try:
                return int(self.stats()["pid"])
            except OSError:  # it is between two lives
                if time.monotonic() > until:
                    raise
                time.sleep(0.005)

    def kill(self) -> None:
        """End the server as a crash does, once it is there; its supervisor starts it again."""
        os.kill(self.up(), signal.SIGKILL)

    def asked(self) -> list[str]:
        """The question of every request that arrived, in order."""
        return [line[2:] for line in _lines(self.log) if line.startswith("<")]

    def faults(self) -> Counter[str]:
        """How often each fault happened; `full` is one more than its capacity."""
        return Counter(line.split()[1] for line in _lines(self.log) if line.startswith("!"))

    def starts(self) -> int:
        """How often the server was started, the first time included."""
        return sum(line.startswith("*") for line in _lines(self.log))

    def answered(self) -> list[str]:
        """The questions answered as they should be, in order."""
        return [line[2:] for line in _lines(self.log) if line.startswith(">")]


@contextmanager
def served(behaviour: Behaviour, log: Path, restart_s: float = 0.1, logged: bool = True) -> Iterator[Served]:
    """A stub under its supervisor; both end with this block, and with this process.

    Args:
        restart_s: how long a server that died stays dead; below 0: for good.
        logged: a benchmark does without.
    """
    command = [sys.executable, "-m", "tests.scoring.stub_server", json.dumps(asdict(behaviour))]
    command += ["--restart-s", str(restart_s), *(["--log", str(log)] if logged else [])]
    root = str(Path(__file__).parents[2])
    with server(command, "the stub", 30, {"PYTHONPATH": root}) as url:
        yield Served(url, log)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("behaviour", nargs="?", default="{}", help="JSON of what it does")
    parser.add_argument("--log", type=Path)
    parser.add_argument("--ready-file", type=Path, required=True)
    parser.add_argument("--restart-s", type=float, default=0.1)
    parser.add_argument("--die-with-parent", type=int, default=0)
    asked = parser.parse_args(arguments)
    if asked.die_with_parent:
        die_with_parent(parent=asked.die_with_parent)
    settings: dict[str, Any] = json.loads(asked.behaviour)
    supervise(Behaviour(**settings), asked.log, asked.ready_file, asked.restart_s)


if __name__ == "__main__":
    main()
