"""What the demo shows of its tasks: their own lines, all of them, and why one failed."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from kfp.dsl import Metrics
from kfp.local import logging_utils

from pipelines.demo import Console
from unirg.errors import UserError
from unirg.telemetry import InternalError


@pytest.fixture
def terminal() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def console(terminal: io.StringIO) -> Console:
    made = Console(terminal, io.StringIO(), {"train-2": "train sft"})
    made.write("02:34:00.969 - INFO - Executing task \x1b[96m'train-2'\x1b[0m\n")
    return made


def shown(terminal: io.StringIO) -> list[str]:
    return [line.strip() for line in terminal.getvalue().splitlines()]


def test_every_line_of_a_task_is_shown_also_while_kfp_indents_what_is_printed(
    console: Console, terminal: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout", console)
    with logging_utils.indented_print():
        for step in range(4):
            print(f"sft: step {step}\n", end="")
    assert shown(terminal) == [f"train sft  sft: step {step}" for step in range(4)]


def test_kfps_own_lines_and_json_stay_in_the_log(console: Console, terminal: io.StringIO) -> None:
    text = '    {\n        "inputs": {}\n    }\n    [KFP Executor 2026 INFO]: Looking\n'
    text += "    Traceback (most recent call last):\n"
    console.write(text)
    assert shown(terminal) == []
    assert text in console.log.getvalue()


def test_of_a_tasks_outputs_the_terminal_has_the_uri_and_no_artifact_of_the_ui(
    console: Console, terminal: io.StringIO
) -> None:
    outputs = {"Output": "s3://store/evaluate/1", "metrics": Metrics("metrics", "s3://root/x", {"a/b": 1.0})}
    console.write("\n".join(logging_utils.make_log_lines_for_outputs(outputs)) + "\n")
    assert shown(terminal) == ["train sft  Output: 's3://store/evaluate/1'"]


def test_a_line_that_comes_in_pieces_is_shown_once_and_whole(console: Console, terminal: io.StringIO) -> None:
    for piece in ("    ", "sft: 1 of", " 2 steps", "\n"):
        console.write(piece)
    assert shown(terminal) == ["train sft  sft: 1 of 2 steps"]


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("unirg.errors.UserError: the disk is full", UserError),
        ("unirg.artifact.ArtifactError: the disk is full", UserError),
        ("unirg.telemetry.InternalError: the disk is full", InternalError),
    ],
)
def test_a_tasks_failure_is_told_with_the_tasks_name_and_the_log(
    console: Console, line: str, kind: type[Exception]
) -> None:
    console.write(f"    {line}\n")
    failure = console.failure(Path("x/kfp.log"))
    assert type(failure) is kind
    assert str(failure) == "train sft: the disk is full (log: x/kfp.log)"


def test_a_task_that_was_killed_is_named_as_our_failure_with_its_log(console: Console) -> None:
    failure = console.failure(Path("x/kfp.log"))
    assert isinstance(failure, InternalError)
    assert "train sft" in str(failure)
    assert "x/kfp.log" in str(failure)
