"""Trainings as processes of their own that start in no time, alone or together, for tests to signal and kill.

They come from a server that has the libraries loaded; torchrun's part is to set the variables (its own
behaviour is tested in test_launch_local.py).
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tests.waiting import until
from unirg.artifact import Artifact
from unirg.processes import die_with_parent
from unirg.training.checkpoints import MARKER

PRELOAD = ["trl.trainer.sft_trainer", "trl.trainer.grpo_trainer", "deepspeed", "unirg.training.callbacks"]


class Ranks:
    """The processes of one training."""

    def __init__(
        self,
        algorithm: str,
        world: tuple[Artifact, Artifact],
        store: Path,
        settings: Sequence[str],
        processes: int = 0,
        before: Callable[[], None] | None = None,
        weights: str = "",
    ) -> None:
        """
        Args:
            processes: that meet as torchrun's do; 0 is one process without torchrun.
            before: called in each of them before it trains.
            weights: the scorers' (URI).
        """
        cohort, parent = world
        self.store = store
        command = [algorithm, "--cohort", cohort.uri, "--parent", parent.uri, "--store", str(store)]
        command += [f"--weights={weights}"] if weights else []
        command += [f"--set={setting}" for setting in settings]
        context = multiprocessing.get_context("forkserver")
        os.environ["DS_ACCELERATOR"] = "cpu"
        context.set_forkserver_preload(PRELOAD)
        self.processes = []
        port = _free_port()
        store.mkdir(parents=True, exist_ok=True)
        for rank in range(max(processes, 1)):
            environment = {"UNIRG_CACHE": os.environ["UNIRG_CACHE"]}
            if processes:
                environment |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
                environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
                environment |= {"GLOO_SOCKET_IFNAME": "lo"}
            log = str(store / f"rank-{rank}.log")
            one = context.Process(target=_main, args=(command, environment, log, before), daemon=True)
            one.start()
            self.processes.append(one)

    def wait(self, timeout_s: float = 240) -> list[int]:
        """The exit codes, by rank; negative for a signal."""
        deadline = time.monotonic() + timeout_s
        for one in self.processes:
            one.join(max(0, deadline - time.monotonic()))
            assert one.exitcode is not None, f"still running; so far:\n{self.said()}"
        return [int(one.exitcode or 0) for one in self.processes]

    def wait_for_checkpoint(self, step: int) -> None:
        """Until the checkpoint of this step, or of a later one, counts."""
        until(lambda: self.newest() >= step or not self._run(), 240, self.said)
        assert self.newest() >= step, self.said()

    def newest(self) -> int:
        """The step of the newest checkpoint that counts; 0 without any."""
        found = self.store.glob(f".work/*/scratch/checkpoints/checkpoint-*/{MARKER}")
        return max((int(path.parent.name.rpartition("-")[2]) for path in found), default=0)

    def _run(self) -> bool:
        return any(one.exitcode is None for one in self.processes)

    def kill(self, rank: int = 0) -> None:
        self.processes[rank].kill()
        self.processes[rank].join()

    def terminate(self, rank: int = 0) -> None:
        self.processes[rank].terminate()

    def said(self, rank: int = 0) -> str:
        """What a rank wrote, its output and its errors."""
        return (self.store / f"rank-{rank}.log").read_text(errors="replace")


def fixed_rollouts() -> None:
    """From here on this process's GRPO is given its rollouts: the same, however many processes train."""
    from unirg.training.rollouts import SharedGRPOTrainer

    def written(self: SharedGRPOTrainer) -> list[list[int]]:
        found: list[list[int]] = []
        earlier: Counter[str] = Counter()
        for row in self._inputs:
            name = row["study_id"]
            chance = random.Random(f"{self.state.global_step} {name} {earlier[name]}")
            earlier[name] += 1
            text = " ".join(chance.choices(row["reference"].split(), k=chance.randrange(2, 9)))
            found.append([*self._tokenizer(text)["input_ids"], self._tokenizer.eos_token_id])
        self._begin_rewards(0, found)
        return found

    SharedGRPOTrainer._written = written  # type: ignore[method-assign]


def _main(
    command: Sequence[str], environment: Mapping[str, str], log: str, before: Callable[[], None] | None
) -> None:
    die_with_parent()
    with open(log, "ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.update(environment)
    from unirg.training.__main__ import main

    if before:
        before()
    sys.exit(main(command))


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
