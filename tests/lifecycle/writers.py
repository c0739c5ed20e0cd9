"""Processes that write to one metrics store at the same moment, or are killed at every step of a write.

    together(ACTION, URI, ARGUMENTS)    what each of several processes found, in their order
    killed(ACTION, URI, ARGUMENTS)      kills before each write in turn; each time another process repeats it

Run as a script that has imported MLflow, and forks before it connects: eight imports would take minutes.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

WRITES = (
    *(
        "create_experiment",
        "create_run",
        "log_batch",
        "set_tag",
        "delete_run",
        "set_terminated",
        "update_run",
    ),
    *("create_registered_model", "create_model_version", "delete_model_version", "set_model_version_tag"),
    "set_registered_model_alias",
)
"""MLflow's methods that change something."""


def together(action: str, uri: str, *arguments: str, count: int = 8) -> list[Any]:
    """The results of as many processes, which begin at once."""
    return _run("together", action, uri, str(count), *arguments)


def killed(action: str, uri: str, *arguments: str) -> int:
    """Kill a process before each of its writes; `{step}` in an argument is the number of the kill.

    After each, another process does the same to the end. Returns how often was killed. To kill it after a
    write is to kill it before the next one.
    """
    return int(_run("killed", action, uri, *arguments))


def _run(*words: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-m", "tests.lifecycle.writers", *words],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        timeout=280,
        check=True,
    )
    return json.loads(done.stdout)


def record(uri: str, number: int, key: str, experiment: str = "unirg") -> str:
    """A run with two children; `own` as key is a key of its own for each process."""
    from unirg.lifecycle import store
    from unirg.lifecycle.store import Run

    children = [Run("first", {"a": 1}, metrics={"x": 0.5}), Run("second", {"a": 2}, metrics={"x": 0.25})]
    key = f"key {number}" if key == "own" else key
    return store.record(uri, key, Run("parent", {"b": 3}, {"t": "u"}), children, experiment).run_id


def stage(uri: str, number: int, artifacts: str, experiment: str = "unirg") -> list[str]:
    """A pipeline's run with each of some artifacts as a stage, the last one first for every other process."""
    from unirg.artifact import open_artifact
    from unirg.lifecycle import store
    from unirg.lifecycle.store import Run

    pipeline = store.begin(uri, "run-1", Run("retrain", {"b": 3}), experiment)
    made = [open_artifact(each) for each in artifacts.split()]
    ids = [store.record_stage(pipeline, each).run_id for each in (made if number % 2 else reversed(made))]
    store.end(pipeline)
    return [pipeline.run_id, *sorted(ids)]


def register(uri: str, number: int, artifacts: str, name: str = "unirg") -> int:
    """One of some checkpoints."""
    from unirg.artifact import open_artifact
    from unirg.lifecycle.registry import Registry

    uris = artifacts.split()
    return _repeated(
        uri, lambda: Registry(uri, name).register(open_artifact(uris[number % len(uris)])).number
    )


def promote(uri: str, number: int, key: str = "", versions: str = "1 2 3 4 5 6 7 8") -> str:
    """Each its own version, all expecting none; with a key all the first one, but with `own`."""
    from unirg.lifecycle.registry import Outdated, Registry

    version = int(versions.split()[number if key in ("", "own") else 0])
    key = f"key {number}" if key == "own" else key
    try:
        made = _repeated(uri, lambda: Registry(uri).set_champion(version, None, f"process {number}", key=key))
    except Outdated:
        return "outdated"
    return f"{made.number}: {made.version} by {made.who}"


def _repeated(uri: str, action: Callable[[], Any]) -> Any:
    """Through a server, what fails as another writes at the same moment is done again, as a person would."""
    from unirg.errors import UserError
    from unirg.lifecycle.registry import Outdated

    for _ in range(9 if uri.startswith("http") else 0):
        try:
            return action()
        except Outdated:
            raise
        except UserError:
            time.sleep(0.2)
    return action()


def approve(uri: str, number: int) -> int:
    """The first version."""
    from unirg.lifecycle.registry import Registry

    return len(Registry(uri).approve(1, f"person {number}").decisions)


def cycle(uri: str, number: int, artifacts: str, name: str) -> int:
    """Two checkpoints registered, the first promoted, the second approved and promoted."""
    from unirg.artifact import open_artifact
    from unirg.lifecycle.registry import Registry

    registry = Registry(uri, name)
    old, new = [registry.register(open_artifact(each)).number for each in artifacts.split()]
    registry.set_champion(old, None, "first cycle", key="first")
    if registry.version(new).decision is None:
        registry.approve(new, "Dr No", "looks good")
    registry.set_champion(new, old, "second cycle", key="second")
    return new


ACTIONS: dict[str, Callable[..., Any]] = {
    each.__name__: each for each in (record, stage, register, promote, approve, cycle)
}


def _kill(action: Callable[[], object], step: int) -> bool:
    """Fork a process that kills itself before its write of this number; whether it came to that."""
    child = os.fork()
    if child == 0:
        _arm(step)
        action()
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code not in (0, -signal.SIGKILL):
        raise RuntimeError(f"the process to be killed ended with {code}")
    return code != 0


def _arm(step: int) -> None:
    from mlflow import MlflowClient

    writes = 0

    def counted(method: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        nonlocal writes
        if writes == step:
            os.kill(os.getpid(), signal.SIGKILL)
        writes += 1
        return method(*arguments, **named)

    for name in WRITES:
        method = getattr(MlflowClient, name)
        setattr(MlflowClient, name, lambda *a, _method=method, **named: counted(_method, *a, **named))


def _whole(action: Callable[[], object]) -> None:
    child = os.fork()
    if child == 0:
        action()
        os._exit(0)
    if code := os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
        raise RuntimeError(f"the repetition ended with {code}")


def main(mode: str, action: str, uri: str, *arguments: str) -> None:
    import mlflow.store.model_registry.sqlalchemy_store
    import mlflow.store.tracking.sqlalchemy_store  # noqa: F401

    if mode == "together":
        count, *rest = arguments
        act = partial(_numbered, action, uri, tuple(rest))
        with multiprocessing.get_context("fork").Pool(int(count)) as pool:
            found: object = pool.map(act, range(int(count)), chunksize=1)
    else:
        step = 0
        while True:
            named = [each.replace("{step}", str(step)) for each in arguments]
            work = partial(ACTIONS[action], uri, 1, *named)
            if not _kill(work, step):
                break
            _whole(work)
            step += 1
        found = step
    print(json.dumps(found))


def _numbered(action: str, uri: str, arguments: tuple[str, ...], number: int) -> object:
    return ACTIONS[action](uri, number, *arguments)


if __name__ == "__main__":
    main(*sys.argv[1:])
