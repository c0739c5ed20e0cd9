"""What happened in a store: an append-only log, each entry chained to the one before it by its hash.

An entry is one object, `<store>/audit/entries/<thousands>/<number>.json`, put only if it is not there
(`storage.put_new`) by who has read the one before it. So of writers at once each gets a number of its own,
and none overwrites another. The bytes are canonical JSON with a SHA-256 over all other fields, the hash of
the entry before among them.

The same action on the same subjects is recorded once, so who was killed between a piece of work and its
entry writes it when run again. For that `<store>/audit/keys/<key>` holds the number of the entry with a key.
It is put after the entry, and before any entry that follows: so at most the last entry has none, and nobody
reads the whole log. An entry costs two short listings, four reads and three puts, whether ten are there or a
hundred thousand; to find that something was recorded costs two reads. A listing is a hint alone: what it does
not show yet is read on from.

Subjects are URIs, digests and names of ours, never a patient's identifier or a word of a report.
`unirg.lifecycle.audit` verifies the log and anchors it elsewhere; docs/audit.md says what that proves.
"""

from __future__ import annotations

import getpass
import json
import os
import re
import socket
import sys
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from unirg import storage
from unirg.config import canonical_json
from unirg.errors import UserError

FOLDER = "audit"
VERSION = 1
"""Of an entry's fields. Whatever comes later keeps `version`, `number`, `previous`, `hash` and how they are
made, so that an older unirg can verify and continue the log."""
BEGINNING = "0" * 64
"""What the first entry has as the hash of the one before it."""
PER_FOLDER = 1000
"""Entries of a folder, so that two short listings find the last one."""
ACTOR = "UNIRG_ACTOR"
"""Environment variable that says who acts."""
LONGEST = 200
"""Characters of an actor or a note."""
Action = Literal[
    "stage",
    "train",
    "weights",
    "archive",
    "evaluate",
    "gate",
    "approve",
    "refuse",
    "promote",
    "rollback",
    "withdraw",
    "drop",
    "abandon",
]
MADE: dict[str, Action] = {
    "cohort": "stage",
    "base": "train",
    "sft": "train",
    "grpo": "train",
    "weights": "weights",
    "score": "archive",
    "evaluate": "evaluate",
    "gate": "gate",
}
"""The stages whose artifacts are recorded. An endpoint's declaration or a page decides nothing."""
_NAME = re.compile(r"([0-9]{7})/([0-9]{10})\.json")


class Damaged(UserError):
    """An entry that is not as it was written."""


class Entry(BaseModel):
    """One thing that happened. An entry of a later version may lack what has a default here."""

    model_config = ConfigDict(frozen=True, strict=True, hide_input_in_errors=True)

    version: int
    number: int
    """From 1."""
    time: str = ""
    """When it was written, by the writer's clock, in UTC; the order is the numbers'."""
    actor: str = ""
    action: str = ""
    subjects: dict[str, str] = {}
    """URIs, digests and counts by name; artifacts of the store by their place in it."""
    note: str = ""
    """`found`: the work was there without an entry; a reason's code; or a person's reason."""
    previous: str
    """The hash of the entry before."""
    hash: str

    @property
    def key(self) -> str:
        return key_of(self.action, self.subjects)


def key_of(action: str, subjects: Mapping[str, str]) -> str:
    """What makes two entries the same."""
    return storage.sha256(canonical_json([action, dict(subjects)]))


def append(store: str, action: Action, subjects: Mapping[str, str], note: str = "", actor: str = "") -> Entry:
    """Record an action, unless it is recorded; its entry.

    Args:
        subjects: what it was done with. An action that can happen again needs one that tells the times apart.
        note: a code, or a person's reason in one line; not part of what makes entries the same.
        actor: who did it; empty: `UNIRG_ACTOR`, else user@host.

    Raises:
        UserError: the action, the note or the actor is not of its form.
        Damaged: the log's last entry, or the one with this key, cannot be read.
        StorageError: storage failed; the same call may be made again.
    """
    if action not in get_args(Action):
        raise UserError(f"no action {action}: there are {', '.join(get_args(Action))}")
    said = {"note": _line("note", note), "actor": _line(ACTOR, actor or named_actor())}
    log = Log(store)
    key = key_of(action, subjects)
    if found := log.with_key(key):
        return found
    last = log.last()
    while True:
        number, previous = 1, BEGINNING
        if last:
            # Before another entry follows it: so every entry but the last has its key.
            log.put_key(last)
            number, previous = last.number + 1, last.hash
        if found := log.with_key(key):
            return found
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        fields: dict[str, object] = {
            "version": VERSION,
            "number": number,
            "time": now,
            "action": action,
            **said,
        }
        fields |= {"subjects": dict(subjects), "previous": previous}
        entry = Entry.model_validate(fields | {"hash": storage.sha256(canonical_json(fields))})
        if storage.put_new(log.uri(number), canonical_json(entry.model_dump())):
            log.put_key(entry)
            return entry
        last = log.entry(number) or log.last()  # another writer's


def made(uri: str, digest: str, action_key: str, inputs: Mapping[str, str], found: bool) -> None:
    """Record an artifact, if it is of a stage of `MADE`.

    Args:
        inputs: digests by name.
        found: it was there before. Who finds it need not be allowed to write: then that is told.

    Raises:
        StorageError, Damaged: as `append`; not where it was found.
    """
    store, stage, key = uri.rsplit("/", 2)
    if stage not in MADE:
        return
    subjects = {"artifact": f"{stage}/{key}", "digest": digest, "action_key": action_key}
    subjects |= {f"input.{name}": value for name, value in inputs.items()}
    try:
        append(store, MADE[stage], subjects, "found" if found else "")
    except UserError as error:
        if not found:
            raise
        print(
            f"warning: the audit has no entry of {stage}/{key}, and gets none now: {error}", file=sys.stderr
        )


def head(store: str) -> Entry | None:
    """The last entry, if there is one.

    Raises:
        Damaged: it cannot be read.
    """
    return Log(store).last()


def read(store: str, first: int = 1) -> Iterator[Entry]:
    """The entries in order, from a number on.

    Raises:
        Damaged: one cannot be read, and those after it are not reached.
    """
    log = Log(store)
    while entry := log.entry(first):
        yield entry
        first += 1


class Log:
    """Where the entries of a store lie."""

    def __init__(self, store: str) -> None:
        self.folder = storage.join(storage.absolute(store), FOLDER)
        self.entries = storage.join(self.folder, "entries")

    def uri(self, number: int) -> str:
        return storage.join(self.entries, name_of(number))

    def data(self, number: int) -> bytes | None:
        """What lies where an entry belongs."""
        try:
            return storage.read_bytes(self.uri(number))
        except (FileNotFoundError, NotADirectoryError):
            return None

    def entry(self, number: int) -> Entry | None:
        data = self.data(number)
        if data is None:
            return None
        try:
            entry = parsed(data)
        except Damaged as error:
            raise Damaged(f"{self.uri(number)} {error}: {_REMEDY}") from None
        if entry.number != number:
            raise Damaged(f"{self.uri(number)} holds entry {entry.number}: {_REMEDY}")
        return entry

    def last(self) -> Entry | None:
        last = None
        for folder in sorted(storage.listed(self.entries), reverse=True):
            names = storage.listed(storage.join(self.entries, folder))
            if numbers := [number for name in names if (number := number_of(f"{folder}/{name}"))]:
                last = self.entry(max(numbers))
                break
        while following := self.entry(last.number + 1 if last else 1):
            last = following
        return last

    def with_key(self, key: str) -> Entry | None:
        uri = self._key_uri(key)
        try:
            text = storage.read_bytes(uri)
        except (FileNotFoundError, NotADirectoryError):
            return None
        entry = self.entry(int(text)) if re.fullmatch(rb"[0-9]{1,10}", text) else None
        if entry is None or entry.key != key:
            raise Damaged(f"{uri} names no entry with this key: remove it, and run `unirg audit verify`")
        return entry

    def put_key(self, entry: Entry) -> None:
        storage.put_new(self._key_uri(entry.key), str(entry.number).encode())

    def _key_uri(self, key: str) -> str:
        return storage.join(self.folder, "keys", key)


def name_of(number: int) -> str:
    """`0000012/0000012345.json`."""
    return f"{number // PER_FOLDER:07d}/{number:010d}.json"


def number_of(name: str) -> int:
    """The number of the entry with this name; 0 where it is no entry's."""
    found = _NAME.fullmatch(name)
    number = int(found[2]) if found else 0
    return number if number and name_of(number) == name else 0


def parsed(data: bytes) -> Entry:
    """An entry that is as it was written.

    Raises:
        Damaged: it is not; the text says how, without a word of it.
    """
    try:
        fields = json.loads(data)
        stated = fields.pop("hash")
        whole = canonical_json(fields | {"hash": stated}) == data
        entry = Entry.model_validate(fields | {"hash": stated})
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, ValidationError):
        raise Damaged("is altered: it cannot be read as an entry") from None
    if whole and storage.sha256(canonical_json(fields)) == stated:
        return entry
    if entry.version > VERSION:
        raise Damaged(f"says that a newer unirg wrote it (version {entry.version}), or it is altered")
    raise Damaged("is altered: its hash is another")


_REMEDY = "restore it from a copy; `unirg audit verify` lists what else is wrong"


def named_actor() -> str:
    """The person or service that acts here: `UNIRG_ACTOR`, else user@host; never a patient."""
    if named := os.environ.get(ACTOR):
        return named
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a pod's user need have no name
        user = f"uid{os.getuid()}"
    return f"{user}@{socket.gethostname()}"


def _line(what: str, text: str) -> str:
    if len(text) > LONGEST or not text.isprintable():
        raise UserError(f"{what} has {len(text)} characters: write one line of at most {LONGEST}, no more")
    return text
