"""Alarms on synthetic histories: each rings for its own trouble alone, once, and a stop says what to do."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from unirg.errors import UserError
from unirg.training.alarms import Alarms, callback, check

STEPS = 40


def history(**changes: Callable[[int], float]) -> list[dict[str, Any]]:
    """A healthy run with noise, but for the entries given as functions of the step."""
    chance = random.Random(0)
    made = []
    for step in range(STEPS):
        entry = {
            "step": step + 1,
            "entropy": 0.6 + chance.gauss(0, 0.05),
            "duplicate_share": 0.1,
            "length/mean": 100 + chance.gauss(0, 5),
            **{f"rewards/{name}/mean": 0.3 + chance.gauss(0, 0.01) for name in ("a", "b", "c")},
        }
        made.append(entry | {name: value(step) for name, value in changes.items()})
    return made


def set_to(**actions: str) -> Alarms:
    return Alarms.model_validate(actions)


def rung(steps: list[dict[str, Any]], alarms: Alarms | None = None) -> dict[str, int]:
    """Alarm -> the step at which it rang, as a trainer that logs these entries one by one."""
    watchman, found = callback(alarms or set_to(**dict.fromkeys(NAMES, "warn"))), {}
    state = SimpleNamespace(log_history=[], global_step=0, is_world_process_zero=True)
    for entry in steps:
        state.log_history.append(dict(entry))
        state.global_step = entry["step"]
        watchman.on_log(None, state, None)
        for name in state.log_history[-1]:
            if name.startswith("alarm/"):
                assert name not in found, "told twice"
                found[name.removeprefix("alarm/")] = entry["step"]
    return found


NAMES = ("entropy", "duplicates", "length", "hacking")


def a_rises(step: int) -> float:
    return 0.3 + 0.01 * step


def falls(step: int) -> float:
    return 0.3 - 0.005 * step


TROUBLES: dict[str, dict[str, Any]] = {
    "entropy": {"entropy": lambda step: 0.6 * 0.8**step},
    "duplicates": {"duplicate_share": lambda step: min(1.0, step / 20)},
    "length": {"length/mean": lambda step: 100 + 10.0 * step},
    "hacking": {"rewards/a/mean": a_rises, "rewards/b/mean": falls, "rewards/c/mean": falls},
}


def test_a_healthy_run_rings_none() -> None:
    assert rung(history()) == {}


@pytest.mark.parametrize("name", NAMES)
def test_each_trouble_rings_its_own_alarm_once_and_not_before_a_window(name: str) -> None:
    found = rung(history(**TROUBLES[name]))
    assert list(found) == [name]
    assert 10 < found[name] < STEPS


def test_reports_that_shrink_ring_as_those_that_grow() -> None:
    assert list(rung(history(**{"length/mean": lambda step: 100 - 2.4 * step}))) == ["length"]


@pytest.mark.parametrize(
    "moves",
    [
        {"rewards/a/mean": a_rises, "rewards/b/mean": a_rises, "rewards/c/mean": falls},
        {"rewards/a/mean": falls, "rewards/b/mean": falls, "rewards/c/mean": falls},
        {"rewards/a/mean": a_rises, "rewards/b/mean": falls},  # c stays where it is
    ],
)
def test_hacking_is_one_reward_that_rises_while_all_others_fall(moves: dict[str, Any]) -> None:
    assert rung(history(**moves)) == {}


def test_a_single_reward_cannot_be_hacked_against_others() -> None:
    steps = history(**{"rewards/a/mean": a_rises})
    for entry in steps:
        del entry["rewards/b/mean"], entry["rewards/c/mean"]
    assert rung(steps) == {}


@pytest.mark.parametrize("name", NAMES)
def test_an_alarm_that_is_off_is_silent(name: str) -> None:
    quiet = set_to(**{**dict.fromkeys(NAMES, "stop"), name: "off"})
    assert rung(history(**TROUBLES[name]), quiet) == {}


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("entropy", r"entropy 0\.\d+ is below entropy_floor 0.02.*lower learning_rate"),
        ("duplicates", r"\d+% of rollouts .* duplicate_share 0.8.*raise temperature"),
        ("length", r"reports are 2\.\d+ times as long .* length_ratio 2: look at"),
        ("hacking", r"a rose by \d+.* lower the weight of a"),
    ],
)
def test_a_stop_names_the_alarm_the_value_and_the_remedy(name: str, remedy: str) -> None:
    with pytest.raises(
        UserError, match=rf"alarm {name} stops training at step \d+: {remedy}.*alarms.{name}=warn"
    ):
        rung(history(**TROUBLES[name]), set_to(**{name: "stop"}))


def test_a_warning_is_in_the_log_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "unirg.training")
    rung(history(**TROUBLES["entropy"]))
    assert [record.message[:22] for record in caplog.records] == ["alarm entropy at step "]


def test_a_resumed_run_raises_what_the_undisturbed_one_does_and_nothing_twice() -> None:
    steps = history(**TROUBLES["duplicates"])
    whole = [check(steps[: end + 1], Alarms()) for end in range(STEPS)]
    first = next(end for end, found in enumerate(whole) if found)
    told = [*steps[:first], steps[first] | {"alarm/duplicates": whole[first]["duplicates"][0]}]
    assert check([*told, *steps[first + 1 :]], Alarms()) == {}


def test_entries_of_validation_are_passed_over() -> None:
    steps = history()
    mixed = [entry for step in steps for entry in (step, {"step": step["step"], "validation/loss": 1.0})]
    assert rung(mixed) == {}


def test_steps_on_rollouts_of_an_earlier_one_tell_nothing_of_rollouts() -> None:
    between = {"entropy": 0.6, "loss": 0.0}
    for trouble, changes in TROUBLES.items():
        steps = history(**changes)
        later = [one for entry in steps for one in (entry, between | {"step": entry["step"]})]
        assert rung(later) == rung(steps), trouble
