"""The whole training pipeline on this machine, through KFP's local runner: what `make demo` calls.

Starts the offline judge, opens one trace over the run, runs `pipelines.train`, prints the headline. Every
stage that the store already has is found, not repeated, so a second run ends in seconds and a killed one
goes on where it was.
"""

from __future__ import annotations

import argparse
import io
import logging
import os
import re
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from unirg import processes, storage, telemetry
from unirg.artifact import Artifact, open_artifact
from unirg.errors import UserError
from unirg.telemetry import InternalError

RECIPES = {"phantom": "toy", "iu_xray": "toy_real", "institution": "toy_real"}
ZERO_SHOT = {"phantom": ["summit", "island"]}
"""Institutions that the demo never trains on, by corpus."""


def main(argv: list[str] | None = None) -> int:
    """Run the demo; returns the exit code (2 for the user's mistakes, 1 for ours, 130 interrupted)."""
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--corpus", default="phantom", choices=sorted(RECIPES))
    parser.add_argument("--data", default="", help="where the corpus lies; phantoms need none")
    parser.add_argument("--store", default="", help="where artifacts go: a folder or s3://bucket/prefix")
    parser.add_argument("--recipe", default="", help="folder of recipes; default: the corpus's toy")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="staging override")
    options = parser.parse_args(argv)
    return guarded("demo", lambda: _demo(options))


def _demo(options: argparse.Namespace) -> None:
    started = time.monotonic()
    store = options.store or f"runs/demo-{options.corpus}"
    recipe = options.recipe or RECIPES[options.corpus]
    report = run(options.corpus, options.data, store, recipe, options.set)
    print_summary(report, side_folder(store), time.monotonic() - started)


def guarded(program: str, work: Callable[[], None]) -> int:
    """Do the work of a `make` target; returns its exit code (2 for the user's mistakes, 1 for ours, 130
    interrupted). However it ends, no process that it started is left."""
    signal.signal(signal.SIGTERM, terminated)
    try:
        work()
    except (UserError, InternalError) as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1
    except KeyboardInterrupt:
        processes.end_descendants()  # what Ctrl-C did not reach, or not yet
        print(f"{program}: interrupted; finished work is kept, the same command goes on", file=sys.stderr)
        return 130
    except SystemExit:
        print(f"{program}: stopped; finished work is kept, the same command goes on", file=sys.stderr)
        raise
    return 0


def terminated(*_: object) -> None:
    # KFP waits for its task's end before any exception passes, so the tasks have to end first.
    processes.end_descendants()
    sys.exit(128 + signal.SIGTERM)


def run(corpus: str, data: str, store: str, recipe: str, settings: list[str]) -> Artifact:
    """Run the pipeline to its end; returns the report.

    Raises:
        UserError: a stage refused its input or its surroundings.
        InternalError: a stage failed through a fault of ours.
    """
    side = side_folder(store)
    side.mkdir(parents=True, exist_ok=True)
    judge = [sys.executable, "-m", "unirg.metrics.offline_judge", "--port", "0"]
    with (
        telemetry.span("pipeline.train"),
        processes.server(judge, "the offline judge") as judge_url,
    ):
        return run_pipeline(
            side,
            store=absolute(store),
            recipe=recipe,
            stage_overrides=[f"corpus={corpus}", *settings],
            data=absolute(data) if data else "",
            hold_out=ZERO_SHOT.get(corpus, []),
            judge_url=judge_url,
            tracking_uri=tracking_uri(side),
            traceparent=telemetry.traceparent(),
        )


def absolute(uri: str) -> str:
    return str(storage.local_path(uri)) if storage.is_local(uri) else uri


def side_folder(store: str) -> Path:
    """Where the run's logs and MLflow's file lie: in a local store, else in a folder named for the store."""
    if storage.is_local(store):
        return storage.local_path(store)
    return Path("runs").absolute() / storage.sha256(store.encode())[:12]


def tracking_uri(side: Path) -> str:
    return f"sqlite:///{side / 'mlflow.db'}"


def run_pipeline(side: Path, **arguments: Any) -> Artifact:
    """The pipeline's tasks one after another, each in a process of its own."""
    # On two cores a second thread costs small models more than it brings (STACK: SFT).
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # No identity lies in KFP's cache or in MLflow's anonymous statistics.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    warnings.filterwarnings("ignore")
    from kfp import local

    from pipelines.train import train

    local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(side / "kfp"), raise_on_error=True)
    names = task_names(train.pipeline_spec)
    with (side / "kfp.log").open("a") as log:
        console = Console(sys.stdout, log, names)
        try:
            with redirect_stdout(console):
                task = train(**arguments)
        except RuntimeError:
            raise console.failure(side / "kfp.log") from None
        finally:
            logging.getLogger().handlers.clear()  # KFP's own, which writes to the console above
    return open_artifact(task.output, "report")


def task_names(spec: Any) -> dict[str, str]:
    """KFP's task names (`score-3`) -> the names that people see (`score sft, sampled`)."""
    return {key: task.task_info.name for key, task in spec.root.dag.tasks.items()}


class Console(io.TextIOBase):
    """KFP's output: all of it to a log, only the tasks' own lines to the terminal."""

    started = re.compile(r"Executing task \S*?'([\w-]+)'")
    told = re.compile(r" {4}(?!\w+: \w+\( name=)([^\s{}\[\]\"].*)")
    """Not KFP's JSON, nor its list of the artifacts that its UI shows."""
    failed = re.compile(r" {4}unirg\.(?:\w+\.)+(\w+): (.*)")

    def __init__(self, terminal: Any, log: Any, names: dict[str, str]) -> None:
        self.terminal, self.log, self.names = terminal, log, names
        self.task, self.kind, self.message = "", "", ""
        self.pending = ""

    def write(self, text: str) -> int:
        self.log.write(text)
        self.log.flush()
        *lines, self.pending = (self.pending + text).split("\n")
        for line in lines:
            self._line(line)
        return len(text)

    def _line(self, line: str) -> None:
        if found := self.started.search(line):
            self.task = self.names.get(found[1], found[1])
        elif found := self.failed.match(line):
            self.kind, self.message = found[1], found[2]
        elif (found := self.told.match(line)) and not found[1].startswith("Traceback"):
            # KFP replaces print() while a task runs, by one that indents whatever it prints on stdout: here.
            self.terminal.write(f"{self.task:>28}  {found[1]}\n")
            self.terminal.flush()

    def failure(self, log: Path) -> BaseException:
        """What the task that failed said."""
        if self.kind == "KeyboardInterrupt":
            return KeyboardInterrupt()
        if not self.message:
            return InternalError(f"task {self.task} ended without a word: see {log}")
        kind = InternalError if self.kind == InternalError.__name__ else UserError
        return kind(f"{self.task}: {self.message} (log: {log})")


def print_summary(report: Artifact, side: Path, seconds: float) -> None:
    """The headline table, where the report lies, and how to open MLflow on the run."""
    from unirg.evaluation import aggregates
    from unirg.lifecycle import store

    evaluation = open_artifact(report.manifest.inputs["evaluation"].uri or "", "evaluate")
    data = aggregates.read(evaluation)
    print("\n" + "\n".join(headline(data)))
    run = store.find(tracking_uri(side), evaluation.manifest.action_key, "train")
    print(f"\nreport   {report.path('report.html')}")
    if run:
        print(f"mlflow   {run.ui_command()}\n         then open http://127.0.0.1:5000{run.page}")
    print(f"logs     {side / 'kfp.log'}\n{seconds:.0f} s in all")


def headline(data: dict[str, Any]) -> Iterator[str]:
    """Lines of a table: each system's means, with 95% intervals, on the held-out and zero-shot studies."""
    from unirg.evaluation.aggregates import shown_first

    shown = shown_first(data["metrics"])
    labels = "".join(f"  {data['metrics'][metric]['label']:>22}" for metric in shown)
    wide = max(len(name) for name in data["headline"])
    for split, title in (("test", "held-out studies"), ("zero_shot", "zero-shot institutions")):
        rows = {name: found[split] for name, found in data["headline"].items() if found[split]}
        if not rows:
            continue
        yield f"{title:{wide}}{labels}"
        for name, numbers in rows.items():
            yield f"{name:{wide}}" + "".join(f"  {interval(numbers.get(metric)):>22}" for metric in shown)
        yield ""
    if data["scorers"]:
        yield f"Scores that rest on a model are by: {data['scorers']}."
    yield f"Errors are counted by: {data['judge'] or 'no judge'}. Research use, not for diagnosis."


def interval(numbers: Mapping[str, Any] | None) -> str:
    if numbers is None or numbers["mean"] is None:
        return "not scored"
    return f"{numbers['mean']:.3f} [{numbers['low']:.3f}, {numbers['high']:.3f}]"


if __name__ == "__main__":
    sys.exit(main())
