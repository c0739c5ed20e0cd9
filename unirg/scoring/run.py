"""One client's run over ranges of an archive: read, ask, and write to the ledger, each while the others work.

A thread reads questions, the event loop keeps requests in flight, another thread puts segments. Questions are
read no further ahead than there are places for them, and no more finished studies wait than a segment holds.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from unirg import prompt_recipes, telemetry
from unirg.cohort.reader import Cohort
from unirg.errors import UserError
from unirg.processes import on_sigterm
from unirg.scoring import questions
from unirg.scoring.client import EMPTY, ChatClient
from unirg.scoring.engine import Asker, History, StudyFailed
from unirg.scoring.ledger import Kind, Ledger, Row
from unirg.scoring.ledger import Range as RangeLedger
from unirg.scoring.questions import Asking, Question, Range
from unirg.scoring.remote import key_for
from unirg.storage import StorageError, sha256

if TYPE_CHECKING:
    from unirg.scoring.archive import Endpoint, ScoreConfig

T = TypeVar("T")
HOPELESS = 256
"""Failures before the first success after which the fault is not the studies'."""
_AT_ONCE = 4
"""Questions handed over by the reading thread at a time."""
_PUTS = 5
"""Attempts at a segment that the store does not take."""


@dataclass
class _Open:
    """A range that is being scored."""

    asked: Range
    known: RangeLedger
    left: int
    """Studies that are neither final in the ledger nor among `rows`."""
    rows: list[Row] = field(default_factory=list)
    """What is not in the ledger yet."""
    under_way: dict[int, tuple[Question, History]] = field(default_factory=dict)
    """By place."""
    since: float = 0.0
    """When there first was something that the ledger does not know; 0 where there is nothing."""
    putting: asyncio.Lock = field(default_factory=asyncio.Lock)

    def notes(self) -> list[Row]:
        """What the ledger does not know yet of attempts that went wrong."""
        return [
            _note("tried", question, history.attempts)
            for place, (question, history) in self.under_way.items()
            if history.attempts > self.known.tried.get(place, 0) and place not in self.known.final
        ]


@dataclass(frozen=True)
class _Item:
    range: _Open
    question: Question
    body: bytes
    digest: str
    history: History


class Run:
    """What one client does; `all` is its whole life."""

    def __init__(
        self,
        config: ScoreConfig,
        cohort: Cohort,
        endpoint: Endpoint,
        ledger: Ledger,
        told: telemetry.Progress,
    ) -> None:
        self._config, self._cohort, self._endpoint = config, cohort, endpoint
        self._ledger, self._told = ledger, told
        self._asking = Asking(prompt_recipes.load(config.prompt), config.with_priors)
        self._reader = ThreadPoolExecutor(1, "read")  # open Parquet files are not shared by threads
        self._writer = ThreadPoolExecutor(1, "put")
        self._open: list[_Open] = []
        self._counts = {"scored": 0, "failed": 0, "tokens": 0}
        self._server: AbstractContextManager[str] | None = None

    def all(self, ranges: list[Range]) -> None:
        """Score every study of these ranges that no segment has.

        Raises:
            UserError: the endpoint is gone, or nothing at all can be scored; what is finished is kept.
            StorageError: the store does not take it.
            SystemExit: 75, after SIGTERM and with what is finished kept: the same call goes on.
        """
        with self._reader, self._writer:
            try:
                asyncio.run(self._all(ranges))
            except asyncio.CancelledError:
                telemetry.to_stderr("score: SIGTERM: finished studies are kept")
                raise SystemExit(os.EX_TEMPFAIL) from None
            except BaseExceptionGroup as failed:
                raise _first(failed) from None
            finally:
                self._disconnect()
        self._told.finish(self._note())

    async def _all(self, ranges: list[Range]) -> None:
        items = self._items(ranges)
        first = await self._taken(items)
        if not first:
            return
        queue: asyncio.Queue[_Item | None] = asyncio.Queue(self._config.concurrency)
        url = self._connect()
        client = ChatClient(
            url,
            self._endpoint.model_name,
            self._endpoint.model_digest,
            connections=self._config.concurrency,
            timeout_s=self._config.timeout_s,
            key=key_for(url),
        )
        asker = Asker(
            client,
            concurrency=self._config.concurrency,
            retries=self._config.retries,
            patience_s=self._config.patience_s,
            revive=partial(self._revive, client) if self._endpoint.restarts else None,
        )
        try:
            with _cancelled_by_sigterm():
                async with client, asyncio.TaskGroup() as group:
                    clock = group.create_task(self._put_in_time())
                    async with asyncio.TaskGroup() as workers:
                        workers.create_task(self._feed(first, items, queue))
                        for _ in range(self._config.concurrency):
                            workers.create_task(self._work(queue, asker))
                    clock.cancel()
        finally:
            for one in list(self._open):  # whatever ended the run: what is finished is kept
                await self._put(one)

    # Reading

    def _items(self, ranges: list[Range]) -> Iterator[_Item]:
        """In the reading thread: the questions of one range after the other."""
        if self._config.permute_images is not None:
            shown = questions.permutation(self._cohort, self._config.splits, self._config.permute_images)
            self._asking = replace(self._asking, shown=shown)
        for asked in ranges:
            known = self._ledger.range(asked.number)
            one = _Open(asked, known, asked.studies - len(known.final))
            self._told.passed(len(known.final))
            if not one.left:
                self._ledger.mark_complete(asked.number, known)
                continue
            self._open.append(one)
            done = frozenset(known.final)
            for question in questions.questions(self._cohort, asked, done, self._asking):
                body = questions.body(question, self._parameters(question))
                history = History(known.tried.get(question.place, 0), known.deaths.get(question.place, 0))
                yield _Item(one, question, body, sha256(body), history)

    def _parameters(self, question: Question) -> dict[str, object]:
        name = f"{self._config.seed}/{question.study.corpus}/{question.study.study_id}"
        seed = int(sha256(name.encode())[:8], 16)
        return self._asking.recipe.sampling.parameters(
            self._config.max_tokens, self._config.temperature, seed
        )

    async def _taken(self, items: Iterator[_Item]) -> list[_Item]:
        def take() -> list[_Item]:
            return [item for _, item in zip(range(_AT_ONCE), items, strict=False)]

        return await asyncio.get_running_loop().run_in_executor(self._reader, take)

    async def _feed(
        self, first: list[_Item], items: Iterator[_Item], queue: asyncio.Queue[_Item | None]
    ) -> None:
        while first:
            for item in first:
                await queue.put(item)
            first = await self._taken(items)
        for _ in range(self._config.concurrency):
            await queue.put(None)

    # Asking

    async def _work(self, queue: asyncio.Queue[_Item | None], asker: Asker) -> None:
        while (item := await queue.get()) is not None:
            one, place = item.range, item.question.place
            if place in one.known.final:  # by another client, as the last put has shown
                self._told.passed(1)
            else:
                one.under_way[place] = item.question, item.history
                row = await self._row(item, asker)
                del one.under_way[place]
                one.since = one.since or time.monotonic()
                one.rows.append(row)
                self._tell(row)
            one.left -= 1
            if not one.left:
                await self._put(one)
            elif sum(len(other.rows) for other in self._open) >= self._config.segment_studies:
                # Where one of its studies takes long a range stays open: together they hold back no more.
                fullest = max(self._open, key=lambda other: len(other.rows))
                await self._put(fullest, full=len(fullest.rows) >= self._config.segment_studies)

    async def _row(self, item: _Item, asker: Asker) -> Row:
        async def died(history: History) -> None:
            item.range.rows.append(_note("death", item.question, history.deaths))
            await self._put(item.range)

        try:
            found = await asker.complete(item.body, item.history, died)
        except StudyFailed as failed:
            return _row("failed", item) | {"reason": failed.reason, "attempts": failed.attempts}
        if found.finish_reason == "length" and self._config.truncated == "fail":
            why = {"reason": f"truncated at {self._config.max_tokens} tokens", "finish_reason": "length"}
            return _row("failed", item) | why | {"attempts": item.history.attempts + 1}
        text = self._asking.recipe.answer.read(found.text)
        if not text.strip():
            return _row("failed", item) | {"reason": EMPTY, "attempts": item.history.attempts + 1}
        return _row("scored", item) | vars(found) | {"text": text}

    def _tell(self, row: Row) -> None:
        self._counts[row["kind"]] += 1
        telemetry.count("unirg.studies", stage="score", outcome=row["kind"])
        if row["kind"] == "scored":
            self._counts["tokens"] += row["completion_tokens"]
            telemetry.count("unirg.tokens", row["prompt_tokens"], stage="score", kind="prompt")
            telemetry.count("unirg.tokens", row["completion_tokens"], stage="score", kind="completion")
            telemetry.record("unirg.score.latency", row["latency_s"])
        elif not self._counts["scored"] and self._counts["failed"] >= HOPELESS:
            raise UserError(
                f"the first {HOPELESS} studies all failed, the last with: {row['reason']}. Look after the "
                "endpoint and the request's settings, then run the same command again"
            )
        self._told.advance(note=self._note())

    def _note(self) -> str:
        seconds = max(time.monotonic() - self._told.started, 1e-6)
        note = f"failed {self._counts['failed']}, {self._counts['tokens'] / seconds:.3g} tokens/s"
        if self._config.price_per_hour:
            so_far = self._config.price_per_hour * seconds / 3600
            done = self._told.done - self._told.begun_with
            whole = so_far * (self._told.total - self._told.begun_with) / max(done, 1)
            note += f", cost {so_far:.2f} of about {whole:.2f}"
        return note

    # Writing

    async def _put_in_time(self) -> None:
        while True:
            await asyncio.sleep(min(1.0, self._config.segment_s / 4))
            for one in list(self._open):
                if not one.since and one.notes():
                    one.since = time.monotonic()
                if one.since and time.monotonic() - one.since >= self._config.segment_s:
                    await self._put(one)

    async def _put(self, one: _Open, full: bool = False) -> None:
        """Put what is finished, a segment at a time, with notes on what is not.

        Args:
            full: only in full segments, so that what comes while one is put waits for the next.
        """
        async with one.putting:
            began = time.monotonic()
            while len(one.rows) >= self._config.segment_studies if full else one.rows or one.notes():
                rows = one.rows[: self._config.segment_studies]
                await self._taken_by_store(one, rows + one.notes())
                one.rows = one.rows[len(rows) :]
            one.since = began if one.rows else 0.0
            if not one.left and not one.rows and one in self._open:
                self._open.remove(one)
                await self._in_writer(partial(self._ledger.mark_complete, one.asked.number), one.known)
                for shard, _ in one.asked.parts:
                    self._cohort.forget(shard)

    async def _taken_by_store(self, one: _Open, rows: list[Row]) -> None:
        for attempt in range(_PUTS):
            try:
                await self._in_writer(one.known.put, rows)
                return
            except StorageError:
                if attempt + 1 == _PUTS:
                    raise
                await asyncio.sleep(2.0**attempt / 4)

    async def _in_writer(self, function: Callable[[T], object], argument: T) -> None:
        work = asyncio.get_running_loop().run_in_executor(self._writer, function, argument)
        # What failed when nobody waits for it any more is put again at the end, and told then.
        work.add_done_callback(lambda done: done.cancelled() or done.exception())
        await asyncio.shield(work)  # what the store is taking is not known to be taken until it is

    # The server

    def _connect(self) -> str:
        self._server = self._endpoint.connect()
        return self._server.__enter__()

    def _disconnect(self) -> None:
        server, self._server = self._server, None
        if server:
            server.__exit__(None, None, None)

    async def _revive(self, client: ChatClient) -> None:
        # In this thread, with which the server ends; nothing else goes on without it.
        self._disconnect()
        client.base_url = self._connect().rstrip("/")


def _cancelled_by_sigterm() -> AbstractContextManager[None]:
    """In the block SIGTERM cancels the task, as asyncio has it for Ctrl-C: an evicted pod loses nothing."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task
    return on_sigterm(partial(loop.call_soon_threadsafe, task.cancel))


def _first(failed: BaseExceptionGroup[BaseException]) -> BaseException:
    first = failed.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first


def _row(kind: Kind, item: _Item) -> Row:
    study = item.question.study
    return {
        "place": item.question.place,
        "kind": kind,
        "study_id": study.study_id,
        "corpus": study.corpus,
        "institution": study.institution,
        "patient_id": study.patient_id,
        "split": study.split,
        "sections": item.question.sections,
        "with_prior": item.question.with_prior,
        "prompt_digest": item.digest,
    }


def _note(kind: Kind, question: Question, attempts: int) -> Row:
    study = question.study
    return {
        "place": question.place,
        "kind": kind,
        "study_id": study.study_id,
        "corpus": study.corpus,
        "institution": study.institution,
        "patient_id": study.patient_id,
        "attempts": attempts,
    }
