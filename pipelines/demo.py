"""The whole training pipeline on this machine, through KFP's local runner: what `make demo` calls.

Starts the offline judge, opens one trace over the run, runs `pipelines.train`, prints the headline. Every
stage that the store already has is found, not repeated, so a second run ends in seconds and a killed one
goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import time
import warnings
from pathlib import Path

from unirg import processes, storage, telemetry
from unirg.artifact import Artifact, open_artifact
from unirg.errors import UserError

ZERO_SHOT = {"phantom": ["summit", "island"]}
"""Institutions that the demo never trains on, by corpus."""


def main(argv: list[str] | None = None) -> int:
    """Run the demo; returns the exit code (2 for the user's mistakes, 1 for ours)."""
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--corpus", default="phantom", choices=["phantom", "iu_xray", "institution"])
    parser.add_argument("--data", default="", help="where the corpus lies; phantoms need none")
    parser.add_argument("--store", default="", help="where artifacts go: a folder or s3://bucket/prefix")
    parser.add_argument("--recipe", default="toy", help="folder of recipes")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="staging override")
    options = parser.parse_args(argv)
    store = options.store or f"runs/demo-{options.corpus}"
    try:
        started = time.monotonic()
        report = run(options.corpus, options.data, store, options.recipe, options.set)
        print_summary(report, time.monotonic() - started)
        return 0
    except UserError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("demo: interrupted; finished stages are kept, the same command goes on", file=sys.stderr)
        return 130


def run(corpus: str, data: str, store: str, recipe: str, settings: list[str]) -> Artifact:
    """Run the pipeline to its end.

    Raises:
        UserError: a stage failed; its own message is printed above.
    """
    if storage.is_local(store):
        store = str(storage.local_path(store))
    if data and storage.is_local(data):
        data = str(storage.local_path(data))
    side = Path(store) if storage.is_local(store) else Path("runs") / storage.sha256(store.encode())[:12]
    side.mkdir(parents=True, exist_ok=True)
    judge = [sys.executable, "-m", "unirg.metrics.offline_judge", "--port", "0"]
    with (
        telemetry.span("pipeline.train"),
        processes.server(judge, "the offline judge", side / "judge.log") as judge_url,
    ):
        return _run_local(
            side,
            store=store,
            recipe=recipe,
            stage_overrides=[f"corpus={corpus}", *settings],
            data=data,
            hold_out=ZERO_SHOT.get(corpus, []),
            judge_url=judge_url,
            tracking_uri=f"sqlite:///{side.absolute()}/mlflow.db",
            traceparent=telemetry.traceparent(),
        )


def _run_local(side: Path, **arguments: object) -> Artifact:
    """The compiled pipeline in subprocesses of this one."""
    # A dozen threads of two libraries on two cores cost more than they bring.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore", category=FutureWarning)
    from kfp import local

    from pipelines.train import train

    logging.getLogger().setLevel(logging.WARNING)
    local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(side / "kfp"), raise_on_error=True)
    try:
        task = train(**arguments)
    except RuntimeError as error:
        raise UserError(f"the pipeline stopped: {error}; see the failed task's message above") from None
    return open_artifact(task.output, "report")


def print_summary(report: Artifact, seconds: float) -> None:
    """The headline table, where the report lies, and how to open MLflow on the run."""
    headline = json.loads(report.path("report.json").read_text())
    print(json.dumps(headline["headline"], indent=1))
    print(f"\nreport   {report.path('report.html')}")
    print(f"{seconds:.0f} s in all")


if __name__ == "__main__":
    sys.exit(main())
