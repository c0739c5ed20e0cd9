"""What a decoder may do to the process that it runs in; imported by the workers, so kept small."""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from unirg.cohort.corpora import UnreadableImage
from unirg.cohort.workers import NO_ITEM


@dataclass(frozen=True)
class Job:
    name: str
    items: tuple[str | bytes, ...] = ()
    before: str = ""
    """What happens before the first item, and `after` when the last one is done."""
    after: str = ""
    trace: Path | None = None
    """Where each process that takes the job leaves a line."""


@dataclass(frozen=True)
class Done:
    items: tuple[str, ...]
    pid: int


def work(job: Job, condemned: Mapping[int, str], begin: Callable[[int], None]) -> Done:
    tries = 1
    if job.trace:
        with job.trace.open("a") as trace:
            trace.write(f"{job.name}\n")
        tries = job.trace.read_text().splitlines().count(job.name)
    _do(job.before, tries)
    found = []
    for number, item in enumerate(job.items):
        if number in condemned:
            found.append(condemned[number])
            continue
        begin(number)
        found.append(_decode(item) if isinstance(item, bytes) else _do(item, tries))
    begin(NO_ITEM)
    _do(job.after, tries)
    return Done(tuple(found), os.getpid())


def _decode(film: bytes) -> str:
    from unirg.cohort import imaging

    try:
        return str(imaging.decode(film, 512).shape)
    except UnreadableImage as error:
        return str(error)


class Unpicklable(Exception):
    def __init__(self, one: str, other: str) -> None:
        super().__init__(one + other)


class Unstartable:
    """A function that ends the process which unpickles it."""

    def __reduce__(self) -> tuple[Callable[[int], None], tuple[int]]:
        return os._exit, (7,)

    def __call__(self, *_: object) -> None: ...


def _do(what: str, tries: int) -> str:
    match what:
        case "abort":
            os.abort()
        case "null":
            ctypes.string_at(0)
        case "exit":
            os._exit(3)
        case "exit once":
            if tries == 1:
                os._exit(3)
        case "hang":
            time.sleep(600)
        case "hang in C":
            ctypes.PyDLL(None).sleep(600)  # which keeps the interpreter's lock
        case "slow":
            time.sleep(1.5)
        case "eat":
            bytearray(2**40)
        case "eat slowly":
            kept = []
            while True:
                kept.append(bytearray(2**20))
        case "raise":
            raise ValueError("of the function")
        case "raise unpicklable":
            raise Unpicklable("a", "b")
    return what
