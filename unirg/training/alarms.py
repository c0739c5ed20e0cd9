"""Alarms on a policy that collapses, or that learns to please one metric: read from the trainer's history.

Each is a function of the log entries so far and of nothing else, so that a resumed run raises the same ones.
An alarm is told once; its value then stands in that step's entry as `alarm/<name>`, where a report finds it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any, Literal

from pydantic import Field

from unirg.config import Config
from unirg.errors import UserError

Action = Literal["off", "warn", "stop"]
Entry = Mapping[str, Any]

_logger = logging.getLogger("unirg.training")


class Alarms(Config):
    """What to do when RL goes wrong, and from where on it counts as wrong. The thresholds are ours."""

    window: int = Field(default=10, ge=2)
    """Steps over which a value is averaged, of those that wrote rollouts (each `updates` x `passes`-th); the
    drifts compare the last window with the first."""
    entropy: Action = "warn"
    """The policy writes the same whatever it is asked: entropy below its floor."""
    entropy_floor: float = Field(default=0.02, ge=0)
    """In nats per token; a policy that still explores reports is above 0.1."""
    duplicates: Action = "warn"
    """The rollouts of a group are alike, so there is nothing to compare."""
    duplicate_share: float = Field(default=0.8, gt=0, le=1)
    """Of rollouts that repeat another of their group, at most."""
    length: Action = "warn"
    """Reports grow or shrink: padding and truncation are the commonest hacks of text metrics."""
    length_ratio: float = Field(default=2.0, gt=1)
    """Of the mean length to the first window's, at most; its inverse at least."""
    hacking: Action = "warn"
    """One reward rises while the others fall."""
    hacking_spread: float = Field(default=2.0, gt=0)
    """How far a mean must move to have risen or fallen: in standard deviations of its first window's steps,
    divided by the square root of the window."""


def check(history: Sequence[Entry], alarms: Alarms) -> dict[str, tuple[float, str]]:
    """The alarms that the last step raises for the first time.

    Args:
        history: log entries of all steps, the last one included; of others, and of steps on rollouts that
            an earlier one wrote, there are entries without `length/mean`, which are passed over.

    Returns:
        Name of the alarm -> its value, and what happened with what to do about it.
    """
    steps = [entry for entry in history if "length/mean" in entry]
    told = {name for entry in history for name in entry if name.startswith("alarm/")}
    found = {}
    for name, raised in _RAISED.items():
        if getattr(alarms, name) != "off" and f"alarm/{name}" not in told and len(steps) >= alarms.window:
            outcome = raised(steps, alarms)
            if outcome:
                found[name] = outcome
    return found


def callback(alarms: Alarms) -> Any:
    """A `TrainerCallback` that raises the alarms of each logged step."""
    from transformers import TrainerCallback

    class Watchman(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            found = check(state.log_history, alarms)
            state.log_history[-1].update({f"alarm/{name}": value for name, (value, _) in found.items()})
            tell(found, alarms, state.global_step, aloud=state.is_world_process_zero)

    return Watchman()


def tell(found: Mapping[str, tuple[float, str]], alarms: Alarms, step: int, aloud: bool = True) -> None:
    """Warn of each alarm (`aloud`: in one of several processes), and stop at one that is set to.

    Raises:
        UserError: with the alarm, the value and the remedy.
    """
    for name, (_, told) in found.items() if aloud else ():
        _logger.warning("alarm %s at step %d: %s", name, step, told)
    for name, (_, told) in found.items():
        if getattr(alarms, name) == "stop":
            raise UserError(
                f"alarm {name} stops training at step {step}: {told}; the checkpoints before it are kept, "
                f"and alarms.{name}=warn goes on regardless"
            )


def _last(steps: Sequence[Entry], name: str, alarms: Alarms) -> float:
    return fmean(entry[name] for entry in steps[-alarms.window :])


def _entropy(steps: Sequence[Entry], alarms: Alarms) -> tuple[float, str] | None:
    value = _last(steps, "entropy", alarms)
    if value >= alarms.entropy_floor:
        return None
    return value, (
        f"entropy {value:.3g} is below entropy_floor {alarms.entropy_floor:g}: the policy has collapsed; "
        "lower learning_rate, raise temperature or clip_high, or take an earlier checkpoint"
    )


def _duplicates(steps: Sequence[Entry], alarms: Alarms) -> tuple[float, str] | None:
    value = _last(steps, "duplicate_share", alarms)
    if value <= alarms.duplicate_share:
        return None
    return value, (
        f"{value:.0%} of rollouts repeat another of their group, more than duplicate_share "
        f"{alarms.duplicate_share:g}: little is left to compare; raise temperature, or stop earlier"
    )


def _length(steps: Sequence[Entry], alarms: Alarms) -> tuple[float, str] | None:
    first = fmean(entry["length/mean"] for entry in steps[: alarms.window])
    value = _last(steps, "length/mean", alarms) / max(first, 1e-9)
    if 1 / alarms.length_ratio <= value <= alarms.length_ratio:
        return None
    return value, (
        f"reports are {value:.2f} times as long as in the first {alarms.window} steps, beyond length_ratio "
        f"{alarms.length_ratio:g}: look at reports of this checkpoint, and weigh a reward that punishes it"
    )


def _hacking(steps: Sequence[Entry], alarms: Alarms) -> tuple[float, str] | None:
    """A reward that rises while each other one falls, of two rewards at least."""
    size = alarms.window
    names = [name for name in steps[-1] if name.startswith("rewards/") and name.endswith("/mean")]
    if len(names) < 2 or len(steps) < 2 * size:
        return None
    moved = {}
    for name in names:
        first = [entry[name] for entry in steps[:size]]
        spread = max(stdev(first) / size**0.5, 1e-6)
        moved[name.split("/")[1]] = (_last(steps, name, alarms) - fmean(first)) / spread
    best = max(moved, key=lambda name: moved[name])
    others = [value for name, value in moved.items() if name != best]
    if moved[best] < alarms.hacking_spread or max(others) > -alarms.hacking_spread:
        return None
    return moved[best], (
        f"{best} rose by {moved[best]:.1f} of its spread while every other reward fell by at least "
        f"{-max(others):.1f} (hacking_spread {alarms.hacking_spread:g}): lower the weight of {best}, raise "
        "kl, or take an earlier checkpoint"
    )


_RAISED = {"entropy": _entropy, "duplicates": _duplicates, "length": _length, "hacking": _hacking}
