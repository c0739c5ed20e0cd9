"""`unirg score` as a process that starts in no time, for tests to kill; and what must hold of what it leaves.

Processes come from a server that has the libraries loaded. The invariants are read from the files themselves,
not through the code under test.
"""

from __future__ import annotations

import hashlib
import io
import json
import multiprocessing
import os
import signal
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from unirg import storage
from unirg.artifact import Artifact, open_artifact
from unirg.processes import die_with_parent

PRELOAD = [
    "pytest",  # whose main module each process imports again
    *("unirg.cli", "unirg.scoring.archive", "unirg.scoring.inputs", "unirg.scoring.remote"),
    *("unirg.serving.endpoint", "s3fs", "pyarrow.parquet", "pyarrow.dataset", "PIL.Image"),
    *("aiohttp", "orjson", "httpx", "httpcore"),
]
SEGMENT, RANGE, CONCURRENCY = 16, 64, 8
SMALL = (
    f"segment_studies={SEGMENT}",
    f"range_studies={RANGE}",
    f"concurrency={CONCURRENCY}",
    "patience_s=20",
    "timeout_s=5",
)
"""Settings under which a small archive has many ranges and segments."""
FINAL = ("scored", "failed")
GIVES_UP = 2
"""The exit code of a command that cannot go on and says why."""
COME_AGAIN = 75
"""The exit code where the endpoint is away, or after SIGTERM."""


class Client:
    """One `unirg score`, as a process of its own."""

    def __init__(
        self,
        archive: str,
        endpoint: str,
        store: str,
        *settings: str,
        part: str = "",
        before: Callable[[], None] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """
        Args:
            before: called in the process before the command.
            environment: variables set over this process's own, before the command.
        """
        command = ["score", f"--archive={archive}", f"--endpoint={endpoint}", "--model=stub"]
        command += [f"--output={store}", *([f"--part={part}"] if part else []), *SMALL, *settings]
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOAD)
        names = ("UNIRG_CACHE", "PATH")
        told = {name: os.environ[name] for name in names if name in os.environ} | dict(environment or {})
        Client.number += 1
        self.log = Path(os.environ["UNIRG_CACHE"]) / f"client-{Client.number}.log"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.process = context.Process(target=_main, args=(command, told, str(self.log), before), daemon=True)
        self.process.start()

    number = 0

    def wait(self, timeout_s: float = 120) -> int:
        """The exit code; negative for a signal."""
        self.process.join(timeout_s)
        if self.process.exitcode is None:
            self.kill()
            raise AssertionError(f"still running after {timeout_s:g} s; so far:\n{self.said}")
        return self.process.exitcode

    def kill(self) -> None:
        self.process.kill()
        self.process.join()

    @property
    def said(self) -> str:
        return self.log.read_text(errors="replace")


def scored(archive: str, endpoint: str, store: str, *settings: str, **options: Any) -> Artifact:
    """Score to the end; the artifact."""
    one = Client(archive, endpoint, store, *settings, **options)
    assert one.wait() == 0, one.said
    return open_artifact(one.said.strip().splitlines()[-1], "score")


def _main(
    command: list[str], environment: Mapping[str, str], log: str, before: Callable[[], None] | None
) -> None:
    die_with_parent()
    with open(log, "ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.update(environment)
    from unirg.cli import main

    if before:
        before()
    try:
        main(command)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


# What a process may be told to do before its command


def die_at(place: str, events: tuple[str, ...], number: int) -> None:
    """Kill this process at its n-th operation below a folder, before it happens.

    Args:
        events: Python's audit events that count, such as `os.link`; none = every one.
    """
    left = number

    def below(event: str, arguments: tuple[Any, ...]) -> bool:
        if event in ("os.remove", "os.rmdir") and arguments[1] >= 0:  # by a name in an open folder
            return os.readlink(f"/proc/self/fd/{arguments[1]}").startswith(place)
        return any(str(one).startswith(place) for one in arguments)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        if (not events or event in events) and below(event, arguments):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def dying(place: Path | str, number: int, *events: str) -> Callable[[], None]:
    return partial(die_at, str(place), events, number)


def hurried() -> None:
    """Storage is asked again at once: how long botocore and a run pause between attempts is not tested."""
    from botocore.retries.standard import ExponentialBackoff

    from unirg.scoring import run

    ExponentialBackoff.delay_amount = lambda self, context: 0.02
    run._PUTS = 2


# Invariants


def files(store: str, below: str, name: str) -> dict[str, str]:
    """Objects of a store below a folder, path by name there, that end in `name`."""
    root = storage.join(store, below)
    fs, path = storage.open_fs(root)
    found = fs.find(path) if fs.isdir(path) else []
    scheme = "" if storage.is_local(store) else "s3://"
    return {
        str(one).removeprefix(path).strip("/"): f"{scheme}{one}" for one in found if str(one).endswith(name)
    }


def ledger(store: str) -> dict[str, list[list[dict[str, Any]]]]:
    """range's folder -> its segments' rows, in order. An object that is there must be whole.

    Raises:
        FileNotFoundError: a segment is missing before another.
        ArrowInvalid: one is torn.
    """
    found: dict[str, list[list[dict[str, Any]]]] = defaultdict(list)
    for name, uri in sorted(files(store, ".work", ".parquet").items()):
        folder, _, file = name.rpartition("/")
        if "/ledger/" not in f"{folder}/":
            continue
        if int(file.partition(".")[0]) != len(found[folder]) + 1:
            raise FileNotFoundError(f"{name}: the one before it is missing")
        found[folder].append(pq.read_table(io.BytesIO(storage.read_bytes(uri))).to_pylist())
    return found


def assert_no_duplicate_and_nothing_partial(store: str) -> int:
    """What must hold at any moment; how many studies are final, in ledger or artifact.

    No study has two final rows, no segment is torn or missing, and an artifact is whole or absent.
    """
    final = 0
    try:
        known = ledger(store)
    except FileNotFoundError:
        if not committed(store):  # from then on the ledger may be on its way out
            raise
        known = {}
    for folder, segments in known.items():
        times = Counter(row["place"] for rows in segments for row in rows if row["kind"] in FINAL)
        assert not [place for place, number in times.items() if number > 1], f"{folder}: two final rows"
        names = {
            (row["corpus"], row["study_id"]) for rows in segments for row in rows if row["kind"] in FINAL
        }
        assert len(names) == len(times), f"{folder}: a study stands under two places"
        final += len(times)
    for made in committed(store):
        rows = [*predictions(made), *failures(made)]
        times = Counter((row["corpus"], row["study_id"]) for row in rows)
        assert max(times.values(), default=1) == 1, f"{made.uri}: a study has two rows"
        for name in made.manifest.files | made.manifest.logs:
            made.path(name)  # whose digest is compared
        final = max(final, len(times))
    return final


def committed(store: str) -> list[Artifact]:
    """The `score` artifacts of a store."""
    return [
        open_artifact(uri.removesuffix("/manifest.json"), "score")
        for name, uri in files(store, "score", "/manifest.json").items()
    ]


def predictions(made: Artifact) -> list[dict[str, Any]]:
    shards = sorted(name for name in made.manifest.files if name.startswith("predictions/"))
    return [row for name in shards for row in pq.read_table(made.path(name)).to_pylist()]


def failures(made: Artifact) -> list[dict[str, Any]]:
    return list(pq.read_table(made.path("failures.parquet")).to_pylist())


def digest(made: Artifact, without: frozenset[str] = frozenset()) -> str:
    """Of what was predicted: (study, text, model, prompt) of all studies, but for those left out."""
    told = sorted(
        (row["corpus"], row["study_id"], row["text"], row["model_digest"], row["prompt_digest"])
        for row in predictions(made)
        if row["study_id"] not in without
    )
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def assert_complete(made: Artifact, studies: int) -> None:
    """Every study of the archive has exactly one row, in predictions or in failures."""
    names = [row["study_id"] for row in (*predictions(made), *failures(made))]
    assert len(names) == len(set(names)) == studies
