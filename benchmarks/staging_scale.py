"""Time and memory of staging phantom corpora of growing size: per study, time is to stay and so is memory.

    .venv/bin/python benchmarks/staging_scale.py [--studies 2000 20000] [--workers 2] [--size 512]

Each corpus is staged by `unirg stage`, in a process and a store of its own. Time is the CPU seconds of it and
of its workers, which other work on the machine moves little. Memory is what they use at most, sampled five
times a second; pages that they share are counted once (PSS).
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import psutil

ROOT = Path(__file__).parents[1]
LINEAR, FLAT = 1.15, 1.15
"""The largest corpus's time per study, and its peak memory, over the smallest's, at most."""
SAMPLE_S = 0.2


class Run(NamedTuple):
    """What staging one corpus took."""

    studies: int
    seconds: float
    cpu_s: float
    parent_mib: float
    all_mib: float


def staged(studies: int, workers: int, size: int) -> Run:
    """Stage a corpus of so many phantoms, and watch."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "unirg.cli", "stage", f"studies={studies}", f"size={size}"]
        command += [f"workers={workers}", "--store", folder]
        began, before = time.perf_counter(), cpu_s()
        child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        parent = psutil.Process(child.pid)
        most_parent = most = 0.0
        while child.poll() is None:
            with suppress(psutil.NoSuchProcess):
                own = proportional(parent)
                most_parent = max(most_parent, own)
                most = max(most, own + sum(map(proportional, parent.children(recursive=True))))
            time.sleep(SAMPLE_S)
        seconds = time.perf_counter() - began
        if child.returncode:
            raise SystemExit(f"staging failed: {' '.join(command[2:])}")
    return Run(studies, seconds, cpu_s() - before, most_parent / 2**20, most / 2**20)


def cpu_s() -> float:
    """Of every descendant that has ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def proportional(process: psutil.Process) -> float:
    """Bytes in memory, of shared pages this process's part; 0 for one that has just ended."""
    with suppress(psutil.NoSuchProcess, psutil.AccessDenied, FileNotFoundError):
        return float(process.memory_full_info().pss)
    return 0.0


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--studies", type=int, nargs="+", default=[2000, 20000])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--size", type=int, default=512)
    asked = parser.parse_args(arguments)
    runs = []
    for studies in sorted(asked.studies):
        run = staged(studies, asked.workers, asked.size)
        print(
            f"{run.studies:8} studies{run.seconds:9.1f} s{run.studies / run.seconds:8.1f} studies/s"
            f"{run.cpu_s:9.1f} CPU-s{run.parent_mib:6.0f} MiB itself{run.all_mib:6.0f} MiB with its workers",
            flush=True,
        )
        runs.append(run)
    least, most = runs[0], runs[-1]
    slower = most.cpu_s / most.studies / (least.cpu_s / least.studies)
    larger = most.all_mib / least.all_mib
    for what, ratio, goal in (("CPU time per study", slower, LINEAR), ("memory", larger, FLAT)):
        print(f"{what}: {ratio:.2f} x   {'met' if ratio <= goal else 'MISSED'} (<= {goal})")


if __name__ == "__main__":
    main()
