"""Runs started by events: one for a burst of them, none for a repeated one, never two at a time.

    listener = Listener(place, starter, settle_s=360, longest_s=3600)
    serve(listener, "0.0.0.0", 8080, token_file)

A run is due when no new notice has come for `settle_s`, or the first waits since `longest_s`. Notices younger
than `settle_s` then stay due, as the pipeline's watch leaves young objects for next time. While a run of the
pipeline is queued or active, whoever started it, nothing is started; what comes meanwhile is one more run.

Nothing is kept on disk: a listener that is started again with `catch_up` starts a run, which ends green and
trains nothing where nothing is new. So a lost notice costs time, and a repeated one nothing.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, Protocol

from pipelines.events import Place, concerning
from pipelines.package import Package
from pipelines.server import Gone, Seen, Server
from unirg import telemetry
from unirg.errors import UserError
from unirg.telemetry import to_stderr

POLL_S = 30.0
"""Between two looks at a run that is active."""
REMEMBERED = 100_000
"""Notices by which a repeated one is known: those of a day with 100,000 images."""
LONGEST_PAUSE_S = 300.0


class Starter(Protocol):
    """What starts runs, and sees them."""

    def recent(self) -> list[Seen]:
        """The newest runs, whoever started them."""
        ...

    def start(self, name: str) -> None:
        """Start a run. Raises UserError, also where the run may have been started."""
        ...


@dataclass(frozen=True)
class Runs:
    """Runs of one pipeline with one set of parameters, through KFP."""

    server: Server
    package: Package
    given: Mapping[str, Any]
    experiment: str
    service_account: str = ""

    def recent(self) -> list[Seen]:
        return self.server.recent(self._version.pipeline_id, self._experiment)

    def start(self, name: str) -> None:
        try:
            self.server.run(name, self._version, self.given, self._experiment, self.service_account)
        except Gone:  # somebody has deleted a version or an experiment: they are made again
            for part in ("_version", "_experiment"):
                self.__dict__.pop(part, None)
            raise

    @cached_property
    def _version(self) -> Any:
        return self.server.version(self.package)

    @cached_property
    def _experiment(self) -> str:
        return self.server.experiment(self.experiment)


@dataclass
class Listener:
    """Notices in, runs out. `receive` is for any number of threads, `work` for one."""

    place: Place
    runs: Starter
    name: str
    """Runs are called by it and the time."""
    settle_s: float
    """Longer than the watch lets an object rest, or the run finds it too young."""
    longest_s: float
    poll_s: float = POLL_S
    tell: Callable[[str], None] = to_stderr
    ending: bool = False
    _first: float | None = None
    """When the first notice came for which no run was started; None: there is none."""
    _last: float = 0.0
    _attempt: str = ""
    """Name of a run that may have been started."""
    _failures: int = 0
    _waits_for: str = ""
    _seen: OrderedDict[str, None] = field(default_factory=OrderedDict, repr=False)
    _changed: threading.Condition = field(default_factory=threading.Condition, repr=False)

    def receive(self, headers: Mapping[str, str], body: bytes) -> int:
        """Take a request in; how many notices of it are new and concern the place.

        Args:
            headers: names in lower case.

        Raises:
            Unreadable: it is no notice.
        """
        found = concerning(self.place, headers, body)
        with self._changed:
            fresh = [digest for digest in found if digest not in self._seen]
            self._seen.update(dict.fromkeys(fresh))
            while len(self._seen) > REMEMBERED:
                self._seen.popitem(last=False)
            if fresh:
                self._last = time.monotonic()
                self._first = self._last if self._first is None else self._first
                self._changed.notify_all()
        telemetry.count("unirg.listen.notices", max(len(fresh), 1), concerns="new" if fresh else "nothing")
        return len(fresh)

    def catch_up(self) -> None:
        """Let a run be due now: what came while nobody listened is in the bucket."""
        with self._changed:
            self._first = self._last = time.monotonic() - self.settle_s
            self._changed.notify_all()

    def end(self) -> None:
        """Let `work` return after the call that it is in."""
        with self._changed:
            self.ending = True
            self._changed.notify_all()

    def work(self) -> None:
        """Start runs when they are due, until `end`."""
        pause_s = 0.0
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self.ending, pause_s)
                while not self.ending and (left := self._left_s()) > 0:
                    self._changed.wait(min(left, threading.TIMEOUT_MAX))
                if self.ending:
                    break
            try:
                pause_s = self._step()
                self._failures = 0
            except UserError as error:
                self._failures += 1
                pause_s = min(LONGEST_PAUSE_S, self.poll_s * 2 ** min(self._failures - 1, 10))
                self.tell(f"listen: {error}; again in {pause_s:.0f} s")
        if self._first is not None or self._attempt:
            self.tell("listen: ends with a run due, which a listener with --catch-up starts")

    def _left_s(self) -> float:
        """Seconds until a run is due; infinite where none is."""
        if self._attempt:
            return 0.0
        if self._first is None:
            return float("inf")
        return min(self._last + self.settle_s, self._first + self.longest_s) - time.monotonic()

    def _step(self) -> float:
        """Start the run that is due, unless one is active; the pause before the next look."""
        recent = self.runs.recent()
        if self._attempt and any(one.name == self._attempt for one in recent):
            self.tell(f"listen: run {self._attempt} was started, though its answer was lost")
            self._attempt = ""
            return 0.0
        active = next((one for one in recent if one.unfinished), None)
        if active is not None:
            if active.run_id != self._waits_for:
                self.tell(f"listen: a run is due, and waits for the end of run {active.run_id}")
                self._waits_for = active.run_id
            return self.poll_s
        if not self._attempt:
            now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            self._attempt = f"{self.name} {now} {secrets.token_hex(2)}"
            with self._changed:  # before the call: what comes during it is one more run
                young = time.monotonic() - self._last < self.settle_s
                self._first = self._last if young else None
        self.runs.start(self._attempt)
        self.tell(f"listen: started run {self._attempt}")
        telemetry.count("unirg.listen.runs")
        self._attempt = self._waits_for = ""
        return 0.0
