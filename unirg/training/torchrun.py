"""torchrun with what a launcher needs: one rank's output, the failing rank's exit code, no orphan.

    python -m unirg.training.torchrun [--die-with-parent PID] TORCHRUN-OPTIONS ... -- COMMAND ...

Stock torchrun ends with exit code 1 whatever its ranks ended with, and its ranks outlive it when it is
killed. Here the exit code is the failing rank's (128 + the signal's number, as shells give it) or, after
SIGTERM, 75 (`EX_TEMPFAIL`: try again); local rank 0 writes to this process's output, the others to files of
which the last lines are shown if one of them fails. The same command runs on a laptop and in a pod.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unirg.processes import die_with_parent

FAILURE_FILE = "UNIRG_FAILURE_FILE"
"""Environment variable: a file that takes the failing rank and how it ended, as JSON. In a pod it is the
container's termination log, which Kubernetes shows in the pod's status."""
SHOWN_LINES = 20


def main(argv: Sequence[str]) -> int:
    """Run the command in every process; returns the exit code."""
    cut = list(argv).index("--")
    options, command = list(argv[:cut]), list(argv[cut + 1 :])
    if options[:1] == ["--die-with-parent"]:
        die_with_parent(signal.SIGTERM, int(options[1]))
        options = options[2:]
    import torch
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # we say it shorter
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    # torchrun starts ranks without asking the kernel to end them with it.
    tied = [sys.executable, "-m", "unirg.processes", str(os.getpid()), *command]
    with tempfile.TemporaryDirectory(prefix="unirg-") as logs:
        try:
            settings = run.parse_args([*options, "--log-dir", logs, "--no-python", *tied])
            settings.redirects = _all_but_the_first(int(settings.nproc_per_node))
            run.run(settings)
        except SignalException:
            return os.EX_TEMPFAIL
        except ChildFailedError as error:
            return _tell(error, Path(logs))
    return 0


def _all_but_the_first(processes: int) -> str:
    return ",".join(f"{rank}:3" for rank in range(1, processes)) or "0"


def _tell(error: Any, logs: Path) -> int:
    """Show and note which rank failed first; its exit code as a shell would give it."""
    # In the order in which torchrun saw them; it ends the others within a second of the first.
    together = [item for item in error.failures.items() if item[1].timestamp == _first(error).timestamp]
    rank, failure = min(together, key=lambda item: consequence(item[1].exitcode))
    if failure.local_rank > 0:
        for path in sorted(logs.glob(f"*/attempt_*/{failure.local_rank}/std*.log")):
            for line in path.read_text(errors="replace").splitlines()[-SHOWN_LINES:]:
                print(line, file=sys.stderr)
    code = int(failure.exitcode)
    print(f"unirg: rank {rank} ended {ending(code)}", file=sys.stderr, flush=True)
    if os.environ.get(FAILURE_FILE):
        with open(os.environ[FAILURE_FILE], "w") as file:
            json.dump({"rank": rank, "exit_code": code}, file)
    return code if code > 0 else 128 - code


def _first(error: Any) -> Any:
    return next(iter(error.failures.values()))


def consequence(code: int) -> int:
    """How likely a rank or pod ended so because another did: it was told to end, or torch missed its peer."""
    told_to = (-signal.SIGTERM, 128 + signal.SIGTERM, os.EX_TEMPFAIL)
    return 2 if code in told_to else 1 if code == 1 else 0


def ending(code: int) -> str:
    """`with exit code 3`, or `by SIGKILL` for -9."""
    return f"with exit code {code}" if code >= 0 else f"by {signal.Signals(-code).name}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
