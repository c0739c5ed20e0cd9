from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from unirg.serving.batching import Batcher
from unirg.serving.chat import Refused

Scenario = Callable[[Batcher[int, int, int]], Awaitable[Any]]


class Machine:
    """Prepares by doubling and completes by adding one, slowly; fails for a batch that holds a 13."""

    def __init__(self, seconds: float = 0.02) -> None:
        self.seconds = seconds
        self.batches: list[list[int]] = []

    def prepare(self, request: int) -> int:
        if request < 0:
            raise Refused(400, "negative", "negative")
        return 2 * request

    def complete(self, prompts: list[int]) -> list[int]:
        self.batches.append(prompts)
        time.sleep(self.seconds)
        if 26 in prompts:
            raise RuntimeError("26")
        return [prompt + 1 for prompt in prompts]


def run(machine: Machine, scenario: Scenario, max_batch: int = 4, max_waiting: int = 100) -> Any:
    async def main() -> Any:
        batcher = Batcher(machine.prepare, machine.complete, max_batch, max_waiting)
        running = asyncio.create_task(batcher.run())
        try:
            return await scenario(batcher)
        finally:
            running.cancel()

    return asyncio.run(main())


def test_everybody_gets_their_own_answer_in_full_batches() -> None:
    machine = Machine()
    answers = run(machine, lambda batcher: asyncio.gather(*(batcher.submit(n) for n in range(10))))
    assert answers == [2 * n + 1 for n in range(10)]
    assert [len(batch) for batch in machine.batches] == [4, 4, 2]


def test_a_lone_request_waits_for_nobody() -> None:
    async def scenario(batcher: Batcher[int, int, int]) -> float:
        started = time.monotonic()
        await batcher.submit(1)
        return time.monotonic() - started

    assert run(Machine(seconds=0), scenario) < 0.09  # the window is 0.1 s


def test_one_failing_request_does_not_take_its_batch_with_it() -> None:
    machine = Machine()

    async def scenario(batcher: Batcher[int, int, int]) -> list[Any]:
        return await asyncio.gather(*(batcher.submit(n) for n in (1, 13, 2)), return_exceptions=True)

    first, failed, last = run(machine, scenario)
    assert (first, last) == (3, 5)
    assert isinstance(failed, RuntimeError)
    assert machine.batches == [[2, 26, 4], [2], [26], [4]]


def test_a_refused_request_does_not_reach_a_batch() -> None:
    machine = Machine()

    async def scenario(batcher: Batcher[int, int, int]) -> list[Any]:
        return await asyncio.gather(*(batcher.submit(n) for n in (-1, 1)), return_exceptions=True)

    refused, answer = run(machine, scenario)
    assert isinstance(refused, Refused)
    assert answer == 3
    assert machine.batches == [[2]]


def test_a_request_whose_client_hung_up_is_not_generated() -> None:
    machine = Machine(seconds=0.1)

    async def scenario(batcher: Batcher[int, int, int]) -> int:
        busy = asyncio.create_task(batcher.submit(1))
        await asyncio.sleep(0.05)
        gone = asyncio.create_task(batcher.submit(2))
        await asyncio.sleep(0.02)
        gone.cancel()
        return await busy + await batcher.submit(3)

    assert run(machine, scenario) == 10
    assert machine.batches == [[2], [6]]


def test_work_beyond_the_places_is_refused_and_places_come_back() -> None:
    async def scenario(batcher: Batcher[int, int, int]) -> None:
        with batcher.admitted(), batcher.admitted():
            with pytest.raises(Refused) as refused, batcher.admitted():
                pass
            assert (refused.value.status, refused.value.retry_after_s) == (429, 1)
        with batcher.admitted():
            pass

    run(Machine(), scenario, max_waiting=2)


def test_what_is_admitted_is_finished_and_nothing_else_when_the_server_ends() -> None:
    async def scenario(batcher: Batcher[int, int, int]) -> int:
        with batcher.admitted():
            working = asyncio.create_task(batcher.submit(1))
            batcher.closed = True
            with pytest.raises(Refused) as refused, batcher.admitted():
                pass
            assert (refused.value.status, refused.value.retry_after_s) == (503, 1)
            assert batcher.admitted_now == 1
            answer = await working
        assert batcher.admitted_now == 0
        return answer

    assert run(Machine(), scenario) == 3
