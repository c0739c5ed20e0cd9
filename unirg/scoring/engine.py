"""Ask one endpoint about many studies at once, without blaming a study for what the endpoint does.

- The number of requests in flight follows the endpoint: it grows while answers come, is halved when one is
  turned away, and goes back when twice as many requests brought no more answers.
- An endpoint that turns everybody away is asked by one request at a time, with growing pauses; after
  `patience_s` without an answer it is gone, and that ends the run.
- Where the connection of a study broke and the server is gone, the study is a suspect; and where it broke a
  second time, as another replica may answer for one that died. Suspects are asked one at a time with nothing
  else in flight. A break then is the study's doing: two, and it is quarantined. No break counts otherwise.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from unirg.errors import Unavailable as Away
from unirg.scoring.client import (
    Answerless,
    Broken,
    ChatClient,
    Completion,
    Faulty,
    Refused,
    Unavailable,
)

DEATHS = 2
"""Of the server, with a study alone in flight, before the study is left out."""
BREAKS = 2
"""Of a study's connection among others, before it is asked alone."""
QUARANTINED = "quarantined: twice the server broke off with this study alone in flight"
_FIRST_WAIT_S = 0.25
_LONGEST_WAIT_S = 15.0
_SETTLE_S = 0.1
"""After a connection broke, until the server is looked for: one that dies may close its connections first."""
_TURNED_AWAY = 8
"""Requests in a row that were turned away before one alone is sent at a time."""


class StudyFailed(Exception):
    """This study gets no completion: a short reason of ours, and how often it was asked."""

    def __init__(self, reason: str, attempts: int) -> None:
        super().__init__(reason)
        self.reason, self.attempts = reason, attempts


class EndpointAway(Away):
    """The endpoint answers nothing; finished work is kept, and a later run goes on."""

    exit_code = os.EX_TEMPFAIL


@dataclass
class History:
    """What a study has behind it; the asker counts on."""

    attempts: int = 0
    """Faulty answers."""
    deaths: int = 0
    """Of the server, with this study alone in flight."""
    breaks: int = 0
    """Of its connection, in this run, with others in flight."""
    suspect: bool = False


Died = Callable[[History], Awaitable[None]]


class Pace:
    """How many requests may be in flight: growth while it wins something, halved when one is turned away.

    What is won is read from latency by Little's law: answers a second = requests in flight / seconds that one
    takes. Counting answers would not do: a server that works in batches gives them in bursts.
    """

    def __init__(self, most: int) -> None:
        self.most, self.limit = most, float(min(most, 16))
        self._starting = True
        self._best = (0.0, 1.0)
        """(answers a second, limit)"""
        self._halved = 0.0
        self._begin()

    def _begin(self) -> None:
        """A window of answers, twice the limit that it begins with."""
        self._enough, self._answers = 2 * self.limit, 0
        self._in_flight, self._latency_s = 0, 0.0

    def answered(self, latency_s: float, in_flight: int) -> None:
        """One was, after so long, sent with so many in flight, itself included."""
        self._answers += 1
        self._in_flight += in_flight
        self._latency_s += latency_s
        self.limit = min(self.most, self.limit + (1.0 if self._starting else 1.0 / self.limit))
        if self._answers >= self._enough:
            self._judge()

    def _judge(self) -> None:
        """Where latency has grown with the limit and nothing was won, go back."""
        rate = self._in_flight / max(self._latency_s, 1e-9)
        if rate > 1.05 * self._best[0]:
            self._best = rate, self.limit
        elif self.limit >= 2 * self._best[1]:
            self.limit, self._starting = self._best[1], False
            self._best = 0.9 * self._best[0], self._best[1]  # so that more is tried again
        self._begin()

    def turned_away(self, since: float) -> None:
        """One that was sent at `since` got 429 or 503; those sent before the last halving halve no more."""
        self._starting = False
        if since >= self._halved:
            self.limit = max(1.0, self.limit / 2)
            self._halved = time.monotonic()
            self._best = (0.0, 1.0)
            self._begin()


class Asker:
    """The requests of one run."""

    def __init__(
        self,
        client: ChatClient,
        *,
        concurrency: int,
        retries: int,
        patience_s: float,
        revive: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """
        Args:
            retries: faulty answers that a study may get, beside the last.
            patience_s: seconds without any answer after which the endpoint is gone.
            revive: starts the server anew, where that is ours to do.
        """
        self.client, self.pace = client, Pace(concurrency)
        self._retries, self._patience_s = retries, patience_s
        self._revive = revive
        self._in_flight, self._in_a_row = 0, 0
        self._alone = asyncio.Lock()
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._not_before = 0.0
        self._starting_s = 0.0
        self._last_answer = self._now()
        self._jitter = random.Random()

    async def complete(self, body: bytes, history: History, died: Died | None = None) -> Completion:
        """Ask until there is an answer.

        Args:
            died: hears of each death of the server with this study alone in flight, before it is asked again.

        Raises:
            StudyFailed: this study gets none.
            EndpointAway, EndpointGone: nobody gets one.
        """
        began, waits = self._now(), 0
        while True:
            alone = history.suspect or history.deaths > 0
            sent = time.monotonic()
            try:
                async with self._slot(alone):
                    sent, in_flight = time.monotonic(), self._in_flight
                    found = await self._once(body, history, alone, died)
                    took = time.monotonic() - sent
            except Unavailable as error:
                if error.why.startswith("HTTP"):
                    self.pace.turned_away(sent)
                self._in_a_row += 1
                self._check_patience(max(began, self._last_answer), error)
                pause = error.wait_s + self._back_off(waits)
                waits += 1
                if self._in_a_row >= _TURNED_AWAY:
                    self._not_before = max(self._not_before, time.monotonic() + pause)
                await asyncio.sleep(pause)
                if self._revive and not error.why.startswith("HTTP"):
                    async with self._slot(alone=True):
                        pass  # which starts a server that died of no suspect
            except Broken as error:
                if history.deaths >= DEATHS:
                    raise StudyFailed(QUARANTINED, history.attempts + history.deaths) from None
                self._check_patience(max(began, self._last_answer), error)
            except Faulty as error:
                if history.attempts >= self._retries and not await self.client.alive():
                    self._check_patience(max(began, self._last_answer), error)  # it is not the study's fault
                    await asyncio.sleep(self._back_off(waits))
                    waits += 1
                    continue
                history.attempts += 1
                if history.attempts > self._retries:
                    raise StudyFailed(error.why, history.attempts) from None
                await asyncio.sleep(self._back_off(history.attempts - 1))
            except Refused as error:
                self._answered()
                raise StudyFailed(error.why, history.attempts + 1) from None
            else:
                self._answered()
                self.pace.answered(took, in_flight)
                return found

    async def _once(self, body: bytes, history: History, alone: bool, died: Died | None) -> Completion:
        """One request, and what a break of its connection tells of the study."""
        try:
            return await self.client.ask(body)
        except Broken:
            if alone:
                history.deaths += 1
                if died:
                    await died(history)
            else:
                history.breaks += 1
                await asyncio.sleep(_SETTLE_S)
                history.suspect = history.breaks >= BREAKS or not await self.client.alive()
            raise

    def _now(self) -> float:
        """Seconds of a clock that stands still while the server is started again."""
        return time.monotonic() - self._starting_s

    def _answered(self) -> None:
        self._last_answer, self._in_a_row = self._now(), 0

    def _back_off(self, attempt: int) -> float:
        return self._jitter.uniform(0, min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2 ** min(attempt, 10)))

    def _check_patience(self, since: float, error: Answerless) -> None:
        if self._now() - since > self._patience_s:
            raise self._away(error)

    def _away(self, error: Answerless) -> EndpointAway:
        return EndpointAway(
            f"the endpoint at {self.client.base_url} has completed nothing for {self._patience_s:g} s "
            f"({error.why}): "
            "look after it and run the same command again; finished studies are kept"
        )

    @asynccontextmanager
    async def _slot(self, alone: bool) -> AsyncIterator[None]:
        """A place among the requests in flight, or all of them."""
        if alone:
            await self._alone.acquire()
        try:
            if alone:
                await self._until(lambda: self._in_flight == 0)
                await self._back()
            else:
                await self._until(lambda: not self._alone.locked() and self._room() > 0)
            self._in_flight += 1
            try:
                if (pause := self._not_before - time.monotonic()) > 0:
                    await asyncio.sleep(pause)
                yield
            finally:
                self._in_flight -= 1
        finally:
            if alone:
                self._alone.release()
            self._wake()

    def _room(self) -> int:
        """Places left."""
        return (1 if self._in_a_row >= _TURNED_AWAY else int(self.pace.limit)) - self._in_flight

    async def _until(self, ready: Callable[[], bool]) -> None:
        while not ready():
            called: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(called)
            try:
                await called
            except asyncio.CancelledError:
                self._wake()  # in place of this one
                raise

    def _wake(self) -> None:
        """Call as many as there is room for, and not all: thousands may wait."""
        calls = self._room()
        if self._alone.locked():  # whoever is to be alone is among them
            calls = 0 if self._in_flight else len(self._waiting)
        while calls > 0 and self._waiting:
            called = self._waiting.popleft()
            if not called.done():
                called.set_result(None)
                calls -= 1

    async def _back(self) -> None:
        """Before a suspect is asked, the server must be there: else its death would be the study's."""
        since, waits = max(self._now(), self._last_answer), 0
        while not await self.client.alive():
            if self._revive:
                began = time.monotonic()
                await self._revive()
                self._starting_s += time.monotonic() - began
                continue
            self._check_patience(since, Broken("it is not there"))
            await asyncio.sleep(self._back_off(waits))
            waits += 1
