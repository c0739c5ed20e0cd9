"""Cycles of retraining: what each began with, who works at it, how it ended. One at a time for each model.

    <store>/cycles/<model>/0000003/begin.json     the champion and the cohort that it began with
                                   watch.json     what had arrived
                                   holder/0002    the second pipeline run that works at it
                                   end.json       how it ended, once

Each is put only if it is not there, so of any number of schedulers one begins a cycle and the others are told
who does. A run that was killed leaves its cycle open: the same run goes on with it at once, another when
nobody has touched it for the lease. Whoever goes on begins with the same champion, the same cohort and the
same arrivals, and so finds the stages that are done. A lease that ends too early costs work done twice and
nothing else: every stage has one artifact, and a promotion one key.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from unirg import storage
from unirg.config import canonical_json
from unirg.errors import UserError
from unirg.lifecycle.lineage import CYCLES

T = TypeVar("T", bound=BaseModel)

Outcome = Literal["nothing new", "kept", "waiting", "promoted", "rolled back", "superseded", "abandoned"]
"""nothing new: too little to train on. kept: the gate failed, or a person refused. waiting: for a person's
approval. rolled back: the canary failed. superseded: somebody else changed the champion meanwhile.
abandoned: by a person, as it could not end."""
_NUMBER = re.compile(r"[0-9]{7}")
_RUN = re.compile(r"[\w.:-]{1,200}")


class Busy(UserError):
    """Another pipeline run is at work on the cycle."""


class Begin(BaseModel):
    """What a cycle began with; it stays so whatever happens meanwhile."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    number: int
    """From 1."""
    run: str
    """The pipeline run that began it."""
    champion: int
    """Its version in the registry."""
    checkpoint: str
    """The champion's URI."""
    cohort: str
    """URI of the cohort with which what arrived is compared."""


class Arrived(BaseModel):
    """What had arrived when a cycle began."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    watch: str
    """URI of the watch."""


class End(BaseModel):
    """How a cycle ended."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    outcome: Outcome
    why: str
    """For a person; holds no text of a report and no id."""
    cohort: str
    """URI of the cohort that the next cycle begins with."""
    version: int | None = None
    """The challenger's in the registry."""
    verdict: str = ""
    """URI of the gate's verdict."""


@dataclass(frozen=True)
class Cycle:
    """One cycle."""

    uri: str
    begin: Begin
    clock: Callable[[], float] = field(default=time.time, repr=False, compare=False)

    @property
    def number(self) -> int:
        return self.begin.number

    def ended(self) -> End | None:
        return _read(End, storage.join(self.uri, "end.json"))

    def watch(self) -> str:
        """URI of what had arrived; empty where nobody has looked yet."""
        found = _read(Arrived, storage.join(self.uri, "watch.json"))
        return found.watch if found else ""

    def arrived(self, watch: str) -> str:
        """Note what had arrived, unless it is noted; URI of the watch that counts."""
        found = Arrived(watch=watch)
        storage.put_new(storage.join(self.uri, "watch.json"), canonical_json(found.model_dump()))
        return self.watch()

    def hold(self, run: str, lease_s: float) -> None:
        """Go on with the cycle as this pipeline run.

        Raises:
            Busy: another run is at work on it.
        """
        while True:
            number, holder, touched = self._holder()
            place = self._place(number)
            if holder == run:
                storage.renew(place)
                return
            idle = self.clock() - touched
            if idle < lease_s:
                raise Busy(
                    f"run {holder} is at work on cycle {self.number} (last seen {idle / 3600:.1f} h "
                    f"ago): it goes on there; another run may take over after {lease_s / 3600:g} h"
                )
            storage.put_new(self._place(number + 1), run.encode())

    def alive(self) -> None:
        """Show that whoever holds the cycle is at work."""
        storage.renew(self._place(self._holder()[0]))

    def end(self, end: End) -> End:
        """Note how the cycle ended, unless it is noted; the end that counts."""
        storage.put_new(storage.join(self.uri, "end.json"), canonical_json(end.model_dump()))
        found = self.ended()
        assert found is not None
        return found

    def _holder(self) -> tuple[int, str, float]:
        """(how manieth, run, when it last showed itself)."""
        taken = storage.listed(storage.join(self.uri, "holder"))
        number = max((int(name) for name in taken if name.isdecimal()), default=1)
        place = self._place(number)
        run = self.begin.run if number == 1 else storage.read_bytes(place).decode()
        return number, run, storage.modified(place)

    def _place(self, holder: int) -> str:
        return storage.join(self.uri, "begin.json" if holder == 1 else f"holder/{holder:04d}")


@dataclass(frozen=True)
class Cycles:
    """The cycles of a registered model in a store."""

    store: str
    model: str = "unirg"
    clock: Callable[[], float] = field(default=time.time, repr=False, compare=False)

    def all(self) -> list[Cycle]:
        """In order.

        Raises:
            UserError: one is damaged.
        """
        names = [name for name in storage.listed(self._folder) if _NUMBER.fullmatch(name)]
        found = [self._cycle(int(name)) for name in names]
        return [one for one in found if one]

    def last(self) -> Cycle | None:
        # On file a folder is there before its cycle is, and stays without one where the writer was killed.
        names = [name for name in storage.listed(self._folder) if _NUMBER.fullmatch(name)]
        last = next((found for name in reversed(names) if (found := self._cycle(int(name)))), None)
        # A listing of object storage is a hint: what it does not show yet is read on from.
        while found := self._cycle(last.number + 1 if last else 1):
            last = found
        return last

    def open(self, run: str, lease_s: float, start: Callable[[Cycle | None], Begin]) -> Cycle:
        """The cycle to work at: one that is not finished, else a new one.

        Args:
            start: the last cycle, which has ended -> what the new one begins with.

        Raises:
            Busy: another run is at work on one.
            UserError: the run's id is none; or as `start`.
        """
        if not _RUN.fullmatch(run):
            raise UserError(f"{run!r} is no id of a pipeline run: use letters, digits and .:_- (at most 200)")
        while True:
            last = self.last()
            if last and not last.ended():
                last.hold(run, lease_s)
                return last
            begin = start(last)
            storage.put_new(
                storage.join(self._uri(begin.number), "begin.json"), canonical_json(begin.model_dump())
            )

    @property
    def _folder(self) -> str:
        return storage.join(storage.absolute(self.store), CYCLES, self.model)

    def _uri(self, number: int) -> str:
        return storage.join(self._folder, f"{number:07d}")

    def _cycle(self, number: int) -> Cycle | None:
        uri = self._uri(number)
        begin = _read(Begin, storage.join(uri, "begin.json"))
        return Cycle(uri, begin, self.clock) if begin else None


def opened(uri: str) -> Cycle:
    """The cycle at a URI.

    Raises:
        UserError: there is none, or it is damaged.
    """
    begin = _read(Begin, storage.join(uri, "begin.json"))
    if begin is None:
        raise UserError(f"no cycle of retraining at {uri}: check the URI")
    return Cycle(uri, begin)


def _read(kind: type[T], uri: str) -> T | None:
    try:
        return kind.model_validate_json(storage.read_bytes(uri))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValidationError:
        raise UserError(f"{uri} is damaged: restore it from a copy") from None
