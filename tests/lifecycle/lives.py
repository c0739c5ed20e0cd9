"""Runs of the pipeline `retrain` in processes of their own: killed at every step, or two at once.

    python -m tests.lifecycle.lives kills HOSPITAL few|all     each life dies at a moment that none died at
    python -m tests.lifecycle.lives together HOSPITAL a b      what each of two runs said

A life is a fork of a process that has imported everything: imports would take ten seconds each time.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from tests.lifecycle.hospital import Hospital
from tests.serving.kserve import inside
from unirg.lifecycle.cycle import Cycles

MLFLOW = ("create_run", "log_batch", "set_terminated", "create_model_version", "set_registered_model_alias")
"""Methods that change the metrics store."""
FEW = ("commit", "replace", "create_model_version", "set_registered_model_alias", "begin.json", "end.json")
"""Where the lives of the short test end: at every artifact, and at every step of a promotion."""
LONGEST_S = 560


def _run(*words: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-m", "tests.lifecycle.lives", *words],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        timeout=LONGEST_S,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def killed(hospital: Hospital, which: str) -> list[str]:
    """The moments at which a life ended; the last life ended the cycle."""
    return list(_run("kills", _told(hospital), which))


def together(hospital: Hospital, *runs: str) -> list[str]:
    """What runs that began at once printed."""
    return list(_run("together", _told(hospital), *runs))


def _told(hospital: Hospital) -> str:
    return json.dumps([str(hospital.folder), hospital.tracking_uri, hospital.judge_url])


def _arm(wanted: Callable[[str], bool], died: Path) -> None:
    """Kill this process before and after each change of the outside, at each moment once."""
    from mlflow import MlflowClient

    from unirg import storage
    from unirg.artifact import Draft
    from unirg.cluster import Cluster

    def moment(name: str) -> None:
        if wanted(name) and not (died / name).exists():
            (died / name).touch()
            os.kill(os.getpid(), signal.SIGKILL)

    def watched(owner: Any, method: str, name: Callable[..., str]) -> None:
        known = getattr(owner, method)

        def called(*arguments: Any, **named: Any) -> Any:
            what = name(*arguments)
            moment(f"before {what}")
            found = known(*arguments, **named)
            moment(f"after {what}")
            return found

        setattr(owner, method, called)

    watched(Draft, "commit", lambda draft, *_: f"commit {draft.stage} {draft.key[:16]}")
    watched(storage, "put_new", lambda uri, *_: f"put {'/'.join(uri.rsplit('/', 2)[1:])}".replace("/", " "))
    for method in ("create", "replace"):
        watched(Cluster, method, partial(_change, method))
    for method in MLFLOW:
        watched(MlflowClient, method, lambda *_, method=method: method)


def _change(method: str, _: object, __: object, thing: dict[str, Any]) -> str:
    return f"{method} {'with' if thing['spec'].get('canary') else 'without'} a canary"


def _life(hospital: Hospital, run: str, arm: Callable[[], None]) -> int:
    """Fork a process that runs the pipeline; its exit code."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            arm()
            with inside():
                hospital.run(run)
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _kills(hospital: Hospital, which: str) -> list[str]:
    died = hospital.folder / "died"
    died.mkdir()

    def wanted(name: str) -> bool:
        return which == "all" or any(one in name for one in FEW)

    code = -signal.SIGKILL
    while code and not any(one.ended() for one in Cycles(hospital.store).all()):
        code = _life(hospital, "week", lambda: _arm(wanted, died))
        if code not in (0, -signal.SIGKILL):
            raise RuntimeError(f"a life ended with {code}")
    return sorted(path.name for path in died.iterdir())


def _said(hospital: Hospital, run: str, lines: Any) -> None:
    os.dup2(os.open(str(hospital.folder / f"said-{run}"), os.O_WRONLY | os.O_CREAT), 1)
    with inside():
        hospital.run(run)


def _together(hospital: Hospital, runs: list[str]) -> list[str]:
    forks = multiprocessing.get_context("fork")
    processes = [forks.Process(target=_said, args=(hospital, run, None)) for run in runs]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if codes := [process.exitcode for process in processes if process.exitcode]:
        raise RuntimeError(f"runs ended with {codes}")
    return [(hospital.folder / f"said-{run}").read_text() for run in runs]


def main(mode: str, told: str, *arguments: str) -> None:
    # What a life imports, before there are any.
    import trl  # noqa: F401

    import unirg.evaluation.report.render
    import unirg.training.sft
    import unirg.training.sft_trainer  # noqa: F401

    folder, tracking_uri, judge_url = json.loads(told)
    hospital = Hospital(Path(folder), tracking_uri, judge_url)
    found = _kills(hospital, *arguments) if mode == "kills" else _together(hospital, list(arguments))
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
