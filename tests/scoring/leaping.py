"""A clock that leaps over every wait, and an endpoint that plays a part, for tests of the asker."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar, cast

from unirg.scoring import engine
from unirg.scoring.client import Broken, ChatClient, Completion, Unavailable
from unirg.scoring.engine import Asker, EndpointAway, History, StudyFailed

T = TypeVar("T")
DONE = Completion("Normal.", "stop", 40, 5, 0.1)


class Leaping(asyncio.SelectorEventLoop):
    """Where nothing is to be done before a time, it is that time."""

    def __init__(self) -> None:
        self.now, loop = 1000.0, self

        class Selector(selectors.DefaultSelector):
            def select(self, timeout: float | None = None) -> list[Any]:
                assert timeout is not None, "everybody waits, and nobody for a time"
                loop.now += max(timeout, 0.0)
                return super().select(0)

        super().__init__(Selector())

    def time(self) -> float:
        return self.now


def run(clock: Leaping, work: Awaitable[T]) -> T:
    async def all_of_it() -> T:
        return await work

    with asyncio.Runner(loop_factory=lambda: clock) as runner:
        return runner.run(all_of_it())


class Endpoint:
    """What the asker takes for a client. `part` says what becomes of a request: an error, or nothing."""

    base_url = "http://stub/v1"

    def __init__(
        self,
        clock: Leaping,
        part: Callable[[Endpoint, bytes], Exception | None] = lambda _, __: None,
        latency: Callable[[Endpoint], float] = lambda _: 0.1,
    ) -> None:
        self._clock, self._part, self._latency = clock, part, latency
        self.asked: list[tuple[float, bytes]] = []
        self.beside: dict[bytes, list[int]] = {}
        """How many others were in flight when a question came, at each time."""
        self.now = self.answered = 0
        self.back_at = 0.0
        """Until then it is dead."""

    @property
    def seconds(self) -> float:
        return self._clock.now - 1000.0

    def times(self, body: bytes) -> list[float]:
        return [when for when, asked in self.asked if asked == body]

    async def alive(self) -> bool:
        await asyncio.sleep(0)
        return self.seconds >= self.back_at

    async def ask(self, body: bytes) -> Completion:
        self.asked.append((self.seconds, body))
        if self.seconds < self.back_at:
            raise Unavailable("ConnectError")
        self.beside.setdefault(body, []).append(self.now)
        self.now += 1
        try:
            ends = self.seconds + self._latency(self)
            while self.seconds < ends:
                await asyncio.sleep(min(0.05, ends - self.seconds + 1e-9))
                if self.seconds < self.back_at:  # it died under us
                    raise Broken("the connection broke")
            if error := self._part(self, body):
                raise error
            self.answered += 1
            return DONE
        finally:
            self.now -= 1


def asker(endpoint: Endpoint, **settings: Any) -> Asker:
    told = {"concurrency": 32, "retries": 3, "patience_s": 60.0} | settings
    return Asker(cast(ChatClient, endpoint), **told)


async def ask_all(asking: Asker, bodies: Sequence[bytes], died: engine.Died | None = None) -> list[Any]:
    """As a run does: so many workers, which the first one that finds the endpoint away ends."""
    found: list[Any] = [None] * len(bodies)
    left = iter(enumerate(bodies))

    async def work() -> None:
        for number, body in left:
            try:
                found[number] = await asking.complete(body, History(), died)
            except StudyFailed as failed:
                found[number] = failed

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(asking.pace.most):
                group.create_task(work())
    except* EndpointAway as away:
        raise away.exceptions[0] from None
    return found


def bodies(number: int) -> list[bytes]:
    return [b"%d" % one for one in range(number)]
