"""Worker processes for decoders that nobody vouches for.

A C decoder that meets a hostile file may crash, hang or ask for all the memory there is. Each worker says
which item of its job it begins, so when it dies or takes too long, only that process is replaced and its job
done again with that item condemned; every other worker goes on. Jobs are taken from their source as workers
become free, so memory does not depend on how many there are.
"""

from __future__ import annotations

import multiprocessing
import pickle
import resource
import time
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import MappingProxyType
from typing import Any, Generic, TypeVar

from unirg.errors import UserError
from unirg.processes import interrupts_kept_from_children, start_worker

Job = TypeVar("Job")
Result = TypeVar("Result")
Begin = Callable[[int], None]

NO_ITEM = -1
"""`begin(NO_ITEM)`: what follows is our own work; no item is to blame for it and no time limit ends it."""
CRASHED, TOO_SLOW = "decoder crashed", "decoder took too long"
MEMORY_BYTES = 2 * 2**30
"""The largest film that `imaging` lets in takes 0.6 GiB."""
_STOP_S = 5.0
"""How long an idle worker may take to leave."""

_READY, _BEGIN, _RESULT, _ERROR, _LOST = range(5)
# spawn: a forked child of a process with S3 or OpenTelemetry threads may deadlock
_CONTEXT = multiprocessing.get_context("spawn")


class Pool(Generic[Job, Result]):
    """Runs a function over jobs in processes that may be lost."""

    def __init__(
        self,
        workers: int,
        function: Callable[[Job, Mapping[int, str], Begin], Result],
        *,
        seconds: float = 60.0,
        memory_bytes: int | None = MEMORY_BYTES,
    ) -> None:
        """
        Args:
            function: called in a worker as `function(job, condemned, begin)`. It calls `begin(i)` before item
                i, leaves out the items in `condemned` (item -> reason), and calls `begin(NO_ITEM)` when it is
                through with the items. It is pickled, and so are jobs and results.
            seconds: what one item may take.
            memory_bytes: what a worker may allocate beyond what its imports took; None sets no limit.
        """
        if workers < 1:
            raise ValueError(f"{workers} workers")
        self._workers = workers
        self._function = function
        self._seconds = seconds
        self._memory_bytes = memory_bytes

    def run(self, jobs: Iterable[Job]) -> Generator[tuple[Job, Result], None, None]:
        """Yield (job, result) as jobs are completed; at most two per worker are under way.

        All workers are gone when this ends, fails, is interrupted or is closed.

        Raises:
            UserError: a worker did not start, or died twice at a job while it decoded nothing.
            Exception: what the function raised.
        """
        resource_tracker.ensure_running()  # it starts with the first worker, and would unmask Ctrl-C for it
        source = iter(jobs)
        crew: list[_Worker] = []
        waiting: deque[_Task] = deque()
        finished: deque[tuple[Job, Result]] = deque()
        exhausted = False
        try:
            while True:
                self._hand_out(waiting, crew)
                while not exhausted and len(waiting) + len(finished) < self._workers:
                    for job in source:
                        waiting.append(_Task(job))
                        break
                    else:
                        exhausted = True
                    self._hand_out(waiting, crew)
                if finished:
                    yield finished.popleft()
                elif waiting or any(worker.task for worker in crew):
                    self._listen(crew, waiting, finished)
                else:
                    return
        finally:
            _dismiss(crew)

    def _hand_out(self, waiting: deque[_Task], crew: list[_Worker]) -> None:
        """Give waiting jobs to idle workers, and start another worker where there is a job for it."""
        for worker in crew:
            if waiting and worker.ready and not worker.task:
                worker.give(waiting.popleft())
        starting = sum(not worker.ready for worker in crew)
        for _ in range(min(self._workers - len(crew), len(waiting) - starting)):
            with interrupts_kept_from_children():  # no Ctrl-C either before the worker is on the list
                crew.append(_Worker(self._function, self._memory_bytes))

    def _listen(self, crew: list[_Worker], waiting: deque[_Task], finished: deque[Any]) -> None:
        """Wait for some worker's word, end or time limit, and act on it."""
        limits = [worker.began + self._seconds for worker in crew if worker.item != NO_ITEM]
        timeout = max(0.0, min(limits) - time.monotonic()) if limits else None
        wait([handle for worker in crew for handle in worker.handles], timeout)
        for worker in list(crew):
            lost = False
            for kind, value in worker.messages():
                if kind == _RESULT and worker.task:
                    finished.append((worker.task.job, value))
                    worker.task = None
                elif kind == _ERROR:
                    raise value
                lost = kind == _LOST
            if lost or (worker.item != NO_ITEM and time.monotonic() > worker.began + self._seconds):
                crew.remove(worker)
                worker.kill()
                if worker.task:
                    worker.task.blame(worker, CRASHED if lost else TOO_SLOW)
                    waiting.appendleft(worker.task)
                elif not worker.ready:
                    code = worker.process.exitcode
                    raise UserError(
                        f"a worker process did not start (exit code {code}): see its output above"
                    )


@dataclass
class _Task:
    """A job, and what is known against its items."""

    job: Any
    condemned: dict[int, str] = field(default_factory=dict)
    deaths: int = 0
    """How many workers died at it while no item was to blame."""

    def blame(self, worker: _Worker, reason: str) -> None:
        """Condemn the item that the lost worker was at, or count a death that no item explains."""
        if worker.item != NO_ITEM and worker.item not in self.condemned:
            self.condemned[worker.item] = reason
            return
        self.deaths += 1
        if self.deaths == 2:
            raise UserError(
                f"a worker process died twice at the same job (exit code {worker.process.exitcode}), and no "
                "image was to blame: if memory ran out, use fewer workers or smaller shards"
            )


class _Worker:
    """One process, as its starter sees it."""

    def __init__(self, function: Callable[..., Any], memory_bytes: int | None) -> None:
        self.connection, theirs = _CONTEXT.Pipe()
        # daemon: a generator that nobody closed must not keep the interpreter from leaving
        self.process = _CONTEXT.Process(target=_serve, args=(function, theirs, memory_bytes), daemon=True)
        self.process.start()
        theirs.close()
        self.ready = False
        self.task: _Task | None = None
        self.item, self.began = NO_ITEM, 0.0

    @property
    def handles(self) -> tuple[Connection, int]:
        return self.connection, self.process.sentinel

    def give(self, task: _Task) -> None:
        self.task, self.item = task, NO_ITEM
        with suppress(ConnectionError):  # it died idle: `messages` will say so
            self.connection.send((task.job, task.condemned))

    def messages(self) -> Iterator[tuple[int, Any]]:
        """What it has said since, and `_LOST` at the end if it will say nothing more."""
        lost = not self.process.is_alive()  # asked first, so that its last words are not missed
        try:
            while self.connection.poll():
                kind, value = self.connection.recv()
                if kind == _READY:
                    self.ready = True
                elif kind == _BEGIN:
                    self.item, self.began = value
                yield kind, value
        except (EOFError, OSError):
            lost = True
        if lost:
            yield _LOST, None

    def kill(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()


def _dismiss(crew: list[_Worker]) -> None:
    """Let idle workers leave by themselves, and end the others."""
    for worker in crew:
        if worker.task or not worker.ready:
            worker.process.kill()
        worker.connection.close()
    for worker in crew:
        worker.process.join(_STOP_S)
        worker.process.kill()
        worker.process.join()


def _serve(function: Callable[..., Any], connection: Connection, memory_bytes: int | None) -> None:
    """A worker's life: jobs in, word of each item and results out."""
    start_worker()
    _confine(memory_bytes)

    def begin(item: int) -> None:
        connection.send((_BEGIN, (item, time.monotonic())))

    connection.send((_READY, None))
    while True:
        try:
            job, condemned = connection.recv()
        except EOFError:
            return
        message: tuple[int, Any]
        try:
            message = (_RESULT, function(job, MappingProxyType(condemned), begin))
        except MemoryError:
            message = (_ERROR, UserError(f"out of memory in a worker process{_allowed(memory_bytes)}"))
        except Exception as error:
            message = (_ERROR, _portable(error))
        begin(NO_ITEM)
        connection.send(message)


def _allowed(memory_bytes: int | None) -> str:
    remedy = ": use fewer workers or smaller shards"
    return remedy if memory_bytes is None else f", which may use {memory_bytes >> 20} MiB{remedy}"


def _confine(memory_bytes: int | None) -> None:
    """Bound this process's memory, and let it go first when the machine's runs out."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file would hold patients' images
    status = Path("/proc/self/status")
    if not status.exists():  # not Linux
        return
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("500")
    if memory_bytes is not None:
        used = next(line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmData"))
        # Not RLIMIT_AS: it counts address space that allocators and CUDA reserve and never use.
        _, most = resource.getrlimit(resource.RLIMIT_DATA)
        limit = int(used) * 1024 + memory_bytes
        resource.setrlimit(resource.RLIMIT_DATA, (limit if most < 0 else min(limit, most), most))


def _portable(error: Exception) -> Exception:
    """The error with its traceback as a note, in a form that survives pickling."""
    note = f"in a worker process:\n{traceback.format_exc()}"
    try:
        error = pickle.loads(pickle.dumps(error))
    except Exception:
        error = RuntimeError(f"{type(error).__name__} in a worker process")
    error.add_note(note)
    return error
