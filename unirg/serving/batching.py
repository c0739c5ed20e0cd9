"""Concurrent requests -> batches: one thread prepares prompts while another generates.

While a batch is generated, the next ones gather. A batch leaves as soon as it is full, or as soon as no
request is still being prepared; so a lone request waits for nobody, and a burst fills its batches.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Generic, TypeAlias, TypeVar

from unirg.serving import meters
from unirg.serving.chat import Refused

logger = logging.getLogger("unirg.serving")
RequestT = TypeVar("RequestT")
PromptT = TypeVar("PromptT")
CompletionT = TypeVar("CompletionT")
_Entry: TypeAlias = tuple[PromptT, "asyncio.Future[CompletionT]", float]
"""A prompt, where its completion goes, and when its request was submitted."""


def shutting_down() -> Refused:
    return Refused(503, "shutting_down", "this server is shutting down: try again", retry_after_s=1)


class Batcher(Generic[RequestT, PromptT, CompletionT]):
    """Feeds `complete` with up to `max_batch` of what `prepare` made; at most `max_waiting` may wait."""

    def __init__(
        self,
        prepare: Callable[[RequestT], PromptT],
        complete: Callable[[list[PromptT]], list[CompletionT]],
        max_batch: int,
        max_waiting: int,
        window_s: float = 0.1,
    ) -> None:
        self._prepare, self._complete = prepare, complete
        self.max_batch, self.max_waiting, self.window_s = max_batch, max_waiting, window_s
        self._admitted = 0
        self._preparing = 0
        self._prepared: asyncio.Queue[_Entry[PromptT, CompletionT]] = asyncio.Queue()
        self.closed = False
        """Whether nothing more is admitted, because the server is about to end."""
        # One thread each: neither tokenizer nor model is made for concurrent calls.
        self._preparer = ThreadPoolExecutor(1, "prepare")
        self._generator = ThreadPoolExecutor(1, "generate")

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """Take one of the places for work in hand, before a request's body is read.

        Raises:
            Refused: 429, all places are taken; 503, the server is about to end.
        """
        if self.closed:
            raise shutting_down()
        if self._admitted >= self.max_waiting:
            raise Refused(429, "overloaded", "too many requests are waiting: try again", retry_after_s=1)
        self._admitted += 1
        try:
            yield
        finally:
            self._admitted -= 1

    @property
    def admitted_now(self) -> int:
        """Requests in hand: read, prepared, waiting or generated."""
        return self._admitted

    @property
    def waiting(self) -> int:
        """Requests that no batch has taken yet."""
        return self._preparing + self._prepared.qsize()

    async def submit(self, request: RequestT) -> CompletionT:
        """The completion of one request; raises what `prepare` or `complete` raises."""
        loop, began = asyncio.get_running_loop(), time.monotonic()
        self._preparing += 1
        try:
            prompt = await loop.run_in_executor(self._preparer, self._prepare, request)
        finally:
            self._preparing -= 1
        future: asyncio.Future[CompletionT] = loop.create_future()
        self._prepared.put_nowait((prompt, future, began))
        return await future

    async def run(self) -> None:
        """Form and generate batches until cancelled."""
        while True:
            batch = [await self._prepared.get()]
            await self._gather()
            while len(batch) < self.max_batch and not self._prepared.empty():
                batch.append(self._prepared.get_nowait())
            now = time.monotonic()
            for _, _, began in batch:
                meters.WAIT.observe(now - began)
            # Where the client hung up, the future is cancelled.
            await self._finish([entry for entry in batch if not entry[1].done()])

    async def _gather(self) -> None:
        loop = asyncio.get_running_loop()
        until = loop.time() + self.window_s
        # The first pause lets requests that arrived together be counted.
        await asyncio.sleep(0.002)
        while self._preparing and self._prepared.qsize() + 1 < self.max_batch and loop.time() < until:
            await asyncio.sleep(0.002)

    async def _finish(self, batch: list[_Entry[PromptT, CompletionT]]) -> None:
        if not batch:
            return
        loop = asyncio.get_running_loop()
        meters.BATCH.observe(len(batch))
        try:
            prompts = [prompt for prompt, *_ in batch]
            with meters.GENERATION.time():
                completions = await loop.run_in_executor(self._generator, self._complete, prompts)
        except Exception as error:
            # One request must not take the others of its batch with it.
            logger.error("a batch of %d failed: %s", len(batch), type(error).__name__)
            for entry in batch if len(batch) > 1 else ():
                await self._finish([entry])
            if len(batch) == 1 and not batch[0][1].done():
                batch[0][1].set_exception(error)
            return
        for (_, future, _), completion in zip(batch, completions, strict=True):
            if not future.done():
                future.set_result(completion)
