"""Schedules by time: one recurring run of KFP by name, whatever happens and whoever else sets it.

KFP cannot change a recurring run, and does not keep names apart. So new settings are a new recurring run,
made disabled; then every other one of the name is deleted; then it is enabled. Whoever finds several takes
the newest, so that two who do this at once agree. At no moment are two of them enabled: who enables one has
deleted all others that he saw, and who made one later sees it. A crash leaves the old one, or none enabled;
the same command then goes on. The description holds a number, larger than all that were there (KFP's times
are whole seconds), by which the newest is known, and the digest of the settings.
"""

from __future__ import annotations

import calendar
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import kfp_server_api as kfp

from pipelines.package import Package
from pipelines.server import Away, Gone, Server
from unirg.config import canonical_json
from unirg.errors import UserError
from unirg.storage import sha256

MARK = "set by `unirg pipeline schedule`: "
"""Begins the description of ours; its number and the digest of its settings follow."""
ROUNDS = 10
DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
MONTHS = tuple(name.lower() for name in calendar.month_abbr[1:])
FIELDS: tuple[tuple[str, int, int, Sequence[str]], ...] = (
    ("second", 0, 59, ()),
    ("minute", 0, 59, ()),
    ("hour", 0, 23, ()),
    ("day of the month", 1, 31, ()),
    ("month", 1, 12, MONTHS),
    ("day of the week", 0, 6, DAYS),
)
Outcome = Literal["found", "created", "replaced"]


def cron(text: str) -> str:
    """A cron expression as KFP reads it: six fields, the first of them seconds.

    Five fields are the usual ones, of which KFP would take the minute for a second.

    Raises:
        UserError: a field is none, or no day is ever meant.
    """
    words = text.split()
    if len(words) not in (5, 6):
        raise UserError(
            f"--cron {text!r}: write five fields (minute, hour, day, month, day of the week) or six (second "
            "first), such as '0 3 * * 0'"
        )
    words = ["0"] * (6 - len(words)) + words
    meant = [_field(text, word, *field) for word, field in zip(words, FIELDS, strict=True)]
    longest = max(29 if month == 2 else calendar.monthrange(2001, month)[1] for month in meant[4])
    if words[5] in ("*", "?") and min(meant[3]) > longest:
        raise UserError(f"--cron {text!r}: no such month has a day {min(meant[3])}, so it would never run")
    return " ".join(words)


def _field(text: str, word: str, name: str, low: int, high: int, names: Sequence[str]) -> set[int]:
    """The numbers that a field stands for."""
    meant: set[int] = set()
    for part in word.lower().split(","):
        found = re.fullmatch(r"(?:(\*|\?)|(\w+)(?:-(\w+))?)(?:/([0-9]{1,2}))?", part)
        wrong = UserError(f"--cron {text!r}: {word!r} is no {name} ({low} to {high})")
        if found is None:
            raise wrong
        every, first, last, step = found.groups()
        begin = low if every else _number(first, low, names)
        end = high if every or (step and not last) else _number(last or first, low, names)
        if begin is None or end is None or not low <= begin <= end <= high or (step and not int(step)):
            raise wrong
        meant |= set(range(begin, end + 1, int(step or 1)))
    return meant


def _number(word: str, low: int, names: Sequence[str]) -> int | None:
    if word in names:
        return names.index(word) + low
    return int(word) if re.fullmatch("[0-9]{1,2}", word) else None


def schedule(
    server: Server,
    of: Package,
    given: Mapping[str, Any],
    when: str,
    name: str,
    experiment: str,
    service_account: str = "",
) -> tuple[Outcome, Any]:
    """Have KFP run a pipeline by a clock, as the one recurring run of this name; and that one.

    Args:
        when: a cron expression of six fields.
        service_account: of the runs' pods; empty = KFP's own choice.

    Raises:
        UserError: the name is somebody else's, or other settings were given by another at the same time.
        Away: KFP does not answer; run it again.
    """
    wanted = kfp.V2beta1RecurringRun(
        display_name=name,
        experiment_id=server.experiment(experiment),
        pipeline_version_reference=server.version(of),
        runtime_config=kfp.V2beta1RuntimeConfig(parameters=dict(given)),
        service_account=service_account or None,
        trigger=kfp.V2beta1Trigger(cron_schedule=kfp.V2beta1CronSchedule(cron=when)),
        mode=kfp.RecurringRunMode.DISABLE,
        max_concurrency="1",
        no_catchup=True,  # a watch finds what lay there meanwhile, too
    )
    settings = [of.version, wanted.experiment_id, dict(given), service_account, when]
    digest = sha256(canonical_json(settings))
    made: Any = None
    had = 0
    for _ in range(ROUNDS):
        there = _ours(server, name)
        newest = there[-1] if there else None
        if newest is None or _told(newest)[1] != digest:
            if made is not None and newest is not None:
                server.delete_recurring(made)
                raise UserError(
                    f"schedule {name} got other settings from somebody else meanwhile: agree on them, and "
                    "run the same command again"
                )
            had = len(there)
            wanted.description = f"{MARK}{_told(newest)[0] + 1 if newest else 1} {digest}"
            made = server.create_recurring(wanted)
            continue
        if len(there) == 1 and newest.mode == kfp.RecurringRunMode.ENABLE:
            return ("found" if made is None else "replaced" if had else "created"), newest
        for one in there[:-1]:
            server.delete_recurring(one)
        try:
            server.enable_recurring(newest)
        except Gone:  # another has put a newer one in its place
            continue
    raise Away(f"schedule {name} at {server.host} keeps changing: run the same command again later")


def unschedule(server: Server, name: str) -> int:
    """Delete every recurring run of this name; how many there were. Runs under way go on.

    Raises:
        UserError: one of them is not ours.
    """
    there = _ours(server, name)
    for one in there:
        server.delete_recurring(one)
    return len(there)


def schedules(server: Server) -> list[Any]:
    """Every recurring run of ours, the oldest first."""
    return [one for one in server.recurring() if _told(one)[0]]


def _ours(server: Server, name: str) -> list[Any]:
    """The recurring runs of a name, the newest last."""
    there = server.recurring(name)
    if not all(_told(one)[0] for one in there):
        raise UserError(
            f"a recurring run {name} is there that `unirg pipeline schedule` did not set: delete it in KFP, "
            "or give another --name"
        )
    return sorted(there, key=lambda one: (_told(one)[0], one.created_at, one.recurring_run_id))


def _told(one: Any) -> tuple[int, str]:
    """Number and digest that a recurring run's description tells; 0 of one that is not ours."""
    found = re.fullmatch(re.escape(MARK) + "([1-9][0-9]{0,8}) ([0-9a-f]{64})", one.description or "")
    return (int(found[1]), found[2]) if found else (0, "")
