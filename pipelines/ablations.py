"""The paper's ablations on phantoms: which arm is above which, with intervals: what `make ablations` calls.

Every arm starts from one toy base that learnt to see from differently worded captions. Each task is a verb of
`unirg` in a process of its own, two at a time. An artifact that the store already has is found, not made
again: a second run repeats nothing, and one that was interrupted goes on where it was. Policies are compared
on the held-out studies, by greedy reports and by reports drawn as GRPO draws its rollouts.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from graphlib import TopologicalSorter
from typing import TextIO

from pipelines import orders
from pipelines.demo import absolute, guarded, side_folder
from pipelines.orders import HOW, SPLIT, system
from unirg import processes, telemetry
from unirg.artifact import open_artifact
from unirg.errors import UserError
from unirg.telemetry import InternalError

AT_ONCE = 2
"""Verbs under way at the same time, a thread each."""
PAGE = "ablations.html"


@dataclass(frozen=True)
class Arm:
    """One training."""

    name: str
    parent: str
    algorithm: str
    recipe: str
    cohort: str = "stage"
    """The task that made what it trains on."""


ARMS = (
    # What a base learns of text is its tokens alone: the arms' own, so that their reports are short.
    Arm("untrained", "", "base", "toy/base"),
    Arm("captions", "untrained", "sft", "toy/ablations/sft_captions", "stage captions"),
    Arm("rl alone", "captions", "grpo", "toy/ablations/grpo_alone"),
    Arm("sft", "captions", "sft", "toy/ablations/sft"),
    Arm("step 1", "sft", "grpo", "toy/ablations/grpo_step1"),
    Arm("step 2", "step 1", "grpo", "toy/ablations/grpo_step2"),
    Arm("sft + rl", "sft", "grpo", "toy/ablations/grpo_after_sft"),
    Arm("rl on bleu", "sft", "grpo", "toy/ablations/grpo_bleu"),
    Arm("no error reward", "step 1", "grpo", "toy/ablations/grpo_without_errors"),
    Arm("no priors, step 1", "sft", "grpo", "toy/ablations/grpo_step1_without_priors"),
    Arm("no priors", "no priors, step 1", "grpo", "toy/ablations/grpo_step2_without_priors"),
)
"""Each after its parent. `step 2` ends the paper's whole recipe; `sft + rl`, its Table 1's, is one RL without
the error reward."""
SYSTEMS: dict[str, tuple[str, tuple[str, ...]]] = {
    arm.name: (arm.name, ()) for arm in ARMS if arm.name not in ("untrained", "no priors, step 1")
} | {"step 2 with priors": ("step 2", ("with_priors=true",))}
"""What is compared: the arm that writes the reports, and settings of scoring; one alone is shown priors."""
SETTINGS = {"greedy": "temperature=0", "sampled": "temperature=1"}


@dataclass(frozen=True)
class Task:
    """One verb as the command line takes it."""

    verb: tuple[str, ...]
    inputs: tuple[tuple[str, str], ...] = ()
    """(option up to its value, the task whose artifact's URI is the value)"""

    def command(self, made: Mapping[str, str]) -> list[str]:
        """The words of the command line, once the inputs are made."""
        return [*self.verb, *(option + made[task] for option, task in self.inputs)]


def tasks(judge_url: str) -> dict[str, Task]:
    """The whole run by name. Scoring leaves out the institutions held out: the base's captions are theirs."""
    judge = f"--judge-url={judge_url}"
    cohort, weights = ("--cohort=", "stage"), ("--weights=", "weights")
    found = {
        "stage": Task(("stage", "--recipe=toy/ablations/stage")),
        "stage captions": Task(("stage", "--recipe=toy/ablations/stage_captions")),
        # In one process: the base is made beside it.
        "weights": Task(("weights", "make", "--recipe=toy/weights", "workers=1")),
    }
    for arm in ARMS:
        inputs = [("--cohort=", arm.cohort)]
        inputs += [("--parent=", f"train {arm.parent}")] if arm.parent else []
        inputs += [weights] if arm.algorithm != "base" else []
        found[f"train {arm.name}"] = Task(
            ("train", arm.algorithm, f"--recipe={arm.recipe}", judge), tuple(inputs)
        )
    predictions, checkpoints = [], []
    for name, (arm_name, shown) in SYSTEMS.items():
        for how in HOW:
            one = system(name, how)
            found[f"score {one}"] = Task(
                ("score", "--recipe=toy/score", f"splits=[{SPLIT}]", SETTINGS[how], *shown),
                (cohort, ("--checkpoint=", f"train {arm_name}")),
            )
            predictions.append((f"--predictions={one}=", f"score {one}"))
        checkpoints.append((f"--checkpoint={name}=", f"train {arm_name}"))
    names = [system(name, how) for name in SYSTEMS for how in HOW]
    results = (cohort, *predictions, *checkpoints)
    whole = "step 2"
    shorter = {name: whole for name, (arm, shown) in SYSTEMS.items() if arm != whole and not shown}
    asked = (
        f"systems={json.dumps(names)}",
        f"comparisons={json.dumps(orders.comparisons())}",
        f"ablations={json.dumps(shorter)}",
        f"prior_pairs={json.dumps([('step 2 with priors', whole)])}",
        f"regression_pairs={json.dumps([(whole, 'sft')])}",
    )
    found["evaluate"] = Task(("evaluate", "--recipe=toy/evaluate", judge, *asked), (*results, weights))
    titled = ("title=The paper's ablations on phantoms", "focus=step 2")
    found["report"] = Task(
        ("report", "--recipe=toy/report", *titled), (*results, ("--evaluation=", "evaluate"))
    )
    return found


def in_order(wanted: Mapping[str, Task], run: Callable[[str, list[str]], str]) -> dict[str, str]:
    """Run each task once its inputs are made, `AT_ONCE` at a time; the first failure ends all.

    Args:
        run: takes a task's name and command line, returns its artifact's URI.
    """
    made: dict[str, str] = {}
    order = TopologicalSorter({name: [made for _, made in task.inputs] for name, task in wanted.items()})
    order.prepare()
    running: dict[Future[str], str] = {}
    with ThreadPoolExecutor(AT_ONCE) as pool:
        try:
            while order.is_active():
                for name in order.get_ready():
                    running[pool.submit(run, name, wanted[name].command(made))] = name
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    name = running.pop(future)
                    made[name] = future.result()
                    order.done(name)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            processes.end_descendants()  # a training saves where it is
            raise
    return made


def run(name: str, command: list[str], environment: Mapping[str, str], log: TextIO) -> str:
    """Run one verb in a process of its own, telling its lines under the task's name; returns its URI.

    Raises:
        UserError, InternalError: the verb failed; the message is its own.
    """
    started, line = time.monotonic(), ""
    mortal = [sys.executable, "-m", "unirg.processes", str(os.getpid())]
    with subprocess.Popen(
        [*mortal, sys.executable, "-m", "unirg.cli", *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
        start_new_session=True,  # Ctrl-C reaches it through us, as a SIGTERM, at which trainings save
    ) as child:
        told, printed = child.stderr, child.stdout
        assert told is not None
        assert printed is not None
        answer: list[str] = []
        reader = threading.Thread(target=answer.extend, args=(printed,))
        reader.start()
        for line in told:
            _tell(name, line.rstrip(), log)
        reader.join()
    if child.returncode or not answer:  # `end_descendants` may have taken the exit code: then it is 0 here
        kind = UserError if child.returncode == 2 else InternalError
        raise kind(f"{name}: {line.strip().removeprefix('unirg: ') or 'it ended without a word'}")
    _tell(name, f"done in {time.monotonic() - started:.0f} s", log)
    return answer[0].strip()


def _tell(name: str, text: str, log: TextIO) -> None:
    for to in (sys.stdout, log):
        to.write(f"{name:>28}  {text}\n")
        to.flush()


def main(argv: list[str] | None = None) -> int:
    """Run the ablations; returns the exit code, as the demo's."""
    parser = argparse.ArgumentParser(prog="make ablations", description=__doc__)
    parser.add_argument("--store", default="runs/ablations", help="a folder or s3://bucket/prefix")
    store = parser.parse_args(argv).store
    return guarded("ablations", lambda: _ablations(store))


def _ablations(store: str) -> None:
    started = time.monotonic()
    side = side_folder(store)
    side.mkdir(parents=True, exist_ok=True)
    judge = [sys.executable, "-m", "unirg.metrics.offline_judge", "--port", "0"]
    with (
        (side / "ablations.log").open("a") as log,
        telemetry.span("pipeline.ablations"),
        processes.server(judge, "the offline judge") as judge_url,
    ):
        environment = {
            "OMP_NUM_THREADS": "1",  # a second thread costs small models more than it brings (STACK: SFT)
            "TOKENIZERS_PARALLELISM": "false",
            "UNIRG_STORE": absolute(store),
            telemetry.TRACEPARENT: telemetry.traceparent(),
        }
        made = in_order(tasks(judge_url), partial(run, environment=environment, log=log))
    from unirg.evaluation import aggregates

    data = aggregates.read(open_artifact(made["evaluate"], "evaluate"))
    found = orders.judged(data)
    (side / PAGE).write_text(orders.page(data, found, list(SYSTEMS)), encoding="utf-8")
    print("\n" + "\n".join(orders.means(data, list(SYSTEMS))))
    print("\n" + "\n".join(orders.lines(found)))
    print(f"\nfigure   {side / PAGE}")
    print(f"report   {open_artifact(made['report'], 'report').path('report.html')}")
    print(f"logs     {side / 'ablations.log'}\n{time.monotonic() - started:.0f} s in all")


if __name__ == "__main__":
    sys.exit(main())
