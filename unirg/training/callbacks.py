"""What happens between a trainer's steps: lines of progress, a stop at the first bad number, checkpoints."""

from __future__ import annotations

import math
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import TrainerCallback

from unirg import telemetry
from unirg.errors import UserError
from unirg.training import distributed
from unirg.training.checkpoints import Checkpoints

SCORE = "validation/radcliq_v1"
"""Log entry by which the best checkpoint is known; lower is better."""


class Watch(TrainerCallback):
    """Progress lines of rank 0, and a stop at the first loss or gradient that is not finite."""

    def __init__(self, what: str) -> None:
        self.what = what

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if distributed.rank() == 0:
            self.told = telemetry.Progress(self.what, state.max_steps, "steps", state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **_: Any) -> None:
        for name in ("loss", "grad_norm"):
            value = logs.get(name)
            if value is not None and not math.isfinite(float(value)):
                raise UserError(
                    f"{self.what}: {name} is {value} at step {state.global_step}: lower learning_rate or "
                    "check the data; the last checkpoint is kept"
                )
        if "loss" in logs and distributed.rank() == 0:
            note = " ".join(
                f"{name} {float(logs[name]):.3f}" for name in ("loss", "reward", "entropy") if name in logs
            )
            self.told.advance(state.global_step - self.told.done, note)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if distributed.rank() == 0:
            self.told.finish()


class Mender(TrainerCallback):
    """Puts an optimiser right that ZeRO-3 read from the universal form."""

    def __init__(self, weight_decay: float) -> None:
        self.weight_decay = weight_decay

    def on_train_begin(self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any) -> None:
        distributed.mend(optimizer, self.weight_decay)


class Saver(TrainerCallback):
    """Decides at which steps a checkpoint is saved, and makes it count.

    Never inside a generation batch of GRPO, whose rollouts no checkpoint holds: a save that falls due there
    waits for its end. After SIGTERM one is saved at the end of the step, and training stops.
    """

    def __init__(self, what: str, checkpoints: Checkpoints, save_steps: int, validate_steps: int) -> None:
        self.what, self.checkpoints = what, checkpoints
        self.save_steps, self.validate_steps = save_steps, validate_steps
        self.asked = self.stopped = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.saved = state.global_step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        asked = distributed.any_of(self.asked)
        step, last = state.global_step, state.global_step >= state.max_steps
        due = step - self.saved >= self.save_steps
        # A validated state is worth a checkpoint: it may be the best.
        validated = bool(self.validate_steps) and step % self.validate_steps == 0
        if last or (_between_batches(args, step) and (due or validated or asked)):
            control.should_save = True
            if asked and not last:
                control.should_training_stop = self.stopped = True

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.saved = state.global_step
        scores = [entry[SCORE] for entry in state.log_history if SCORE in entry and _at(entry, state)]
        self.checkpoints.commit(state.global_step, scores[-1] if scores else None)

    @contextmanager
    def heeding_sigterm(self) -> Iterator[None]:
        """In the block SIGTERM asks for a checkpoint and a stop; a second one ends a lone process at once.

        One of several gets a second one always where the first went to all of them, as torchrun passes its
        own on; torchrun kills what has not ended after its grace.
        """
        if threading.current_thread() is not threading.main_thread():  # Python gives signals to that one
            yield
            return

        def ask(*_: Any) -> None:
            if not distributed.started():
                signal.signal(signal.SIGTERM, before)
            self.asked = True
            print(f"{self.what}: SIGTERM: saving at the end of this step", file=sys.stderr, flush=True)

        before = signal.signal(signal.SIGTERM, ask)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)


def _at(entry: dict[str, Any], state: Any) -> bool:
    return bool(entry.get("step") == state.global_step)


def _between_batches(args: Any, step: int) -> bool:
    """Whether the next step generates anew; always so without rollouts."""
    if not hasattr(args, "steps_per_generation"):
        return True
    micro_steps = step * args.gradient_accumulation_steps
    return bool(micro_steps % (args.steps_per_generation * args.num_iterations) == 0)
