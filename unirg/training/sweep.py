"""A grid of settings: every point a training like any other, then one table of them.

Each point is an artifact of its own, so a sweep that is run again, or with more values, repeats nothing. All
points are resolved before the first one starts: a value that would be refused after a day is refused at once.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unirg import artifact, checkpoint, config, telemetry
from unirg.artifact import Artifact, open_artifact
from unirg.errors import UserError
from unirg.training import train
from unirg.training.grpo import GRPOConfig, check_rewards
from unirg.training.settings import TrainConfig, accumulation, check_validation
from unirg.training.sft import SFTConfig

VERSION = 1
CSV, MARKDOWN = "sweep.csv", "sweep.md"
CONFIGS: dict[str, type[TrainConfig]] = {"sft": SFTConfig, "grpo": GRPOConfig}
BEST = "validation/radcliq_v1"
"""What the best point is chosen by, the lowest; where nothing validates, by the final loss."""


@dataclass(frozen=True)
class Row:
    """One point and what came of it."""

    point: tuple[str, ...]
    """Its overrides, `key=value`."""
    uri: str = ""
    """Of its checkpoint; empty where it failed."""
    numbers: tuple[tuple[str, float], ...] = ()
    """Steps, final loss and reward, and the validation's scores."""
    failed: str = ""
    """Why it has no checkpoint."""


def points(grid: Sequence[str]) -> list[tuple[str, ...]]:
    """Every combination of the values, the last key's changing fastest.

    Args:
        grid: `key=value,value,...`; a comma inside brackets separates nothing.

    Raises:
        UserError: an axis without key or value, a key or a value that comes twice.
    """
    if not grid:
        raise UserError("a sweep needs a grid: --grid key=value,value")
    axes: dict[str, list[str]] = {}
    for axis in grid:
        key, equals, text = axis.partition("=")
        key, values = key.strip(), [value.strip() for value in _split(text)]
        if not equals or not key or "" in values:
            raise UserError(f"grid {axis!r} is not of the form key=value,value")
        if key in axes or len(set(values)) < len(values):
            raise UserError(f"grid {axis!r}: a key or a value comes twice")
        axes[key] = values
    return list(itertools.product(*([f"{key}={value}" for value in values] for key, values in axes.items())))


def _split(text: str) -> list[str]:
    """Parts between commas that no bracket holds."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "[{") - (letter in "]}")
        if letter == "," and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def check(
    algorithm: str,
    recipe: str | None,
    overrides: Sequence[str],
    grid: Sequence[str],
    judge_url: str = "",
    weights: str = "",
) -> list[tuple[str, ...]]:
    """The points of a grid, each of which resolves into a configuration that has what it needs.

    Raises:
        UserError: an algorithm without points, or points that are refused: each is named with its reason.
    """
    if algorithm not in CONFIGS:
        raise UserError(f"no sweep of {algorithm}: there are sweeps of {' and '.join(CONFIGS)}")
    given: dict[str, Any] = {"judge_url": judge_url} if judge_url else {}
    found, wrong, seen = points(grid), [], dict[bytes, tuple[str, ...]]()
    for point in found:
        try:
            settings = config.load(CONFIGS[algorithm], recipe, [*overrides, *point], **given)
            _check(settings, bool(weights))
        except UserError as error:
            wrong.append(f"{' '.join(point)}: {error}")
            continue
        same = seen.setdefault(config.canonical_json(config.identity(settings)), point)
        if same != point:
            wrong.append(f"{' '.join(point)}: the same training as {' '.join(same)}")
    if wrong:
        raise UserError(
            f"{len(wrong)} of {len(found)} points are refused, and none is started: {'; '.join(wrong)}"
        )
    return found


def _check(settings: TrainConfig, weights: bool) -> None:
    """Refuse now what would be after the other points are trained."""
    assert isinstance(settings, SFTConfig | GRPOConfig)
    accumulation(settings.batch_size, settings.micro_batch, settings.processes)
    check_validation(settings, weights)
    if isinstance(settings, GRPOConfig):
        check_rewards(settings, weights)


def sweep(
    algorithm: str,
    recipe: str | None,
    overrides: Sequence[str],
    grid: Sequence[str],
    cohort: str,
    parent: str,
    store: str,
    judge_url: str = "",
    weights: str = "",
) -> list[Row]:
    """Train every point, one after another.

    A point that training itself refuses (a loss that is not finite) is a row with its reason, and the others
    go on.

    Raises:
        UserError: points or inputs that are refused; nothing is started then.
    """
    found = check(algorithm, recipe, overrides, grid, judge_url, weights)
    open_artifact(cohort, "cohort")
    open_artifact(parent, checkpoint.STAGES)
    if weights:
        open_artifact(weights, "weights")
    rows = []
    for number, point in enumerate(found, 1):
        print(f"sweep: {number} of {len(found)}: {' '.join(point)}", file=sys.stderr, flush=True)
        try:
            made = train(algorithm, recipe, [*overrides, *point], cohort, parent, store, judge_url, weights)
        except UserError as error:
            rows.append(Row(point, failed=str(error)))
        else:
            rows.append(row(point, made))
    return rows


def row(point: Sequence[str], made: Artifact) -> Row:
    """What a checkpoint's log says of its training."""
    log = [json.loads(line) for line in made.path(checkpoint.LOG).read_text().splitlines()]
    numbers = {"steps": float(made.manifest.counts["steps"])}
    for name in ("loss", "reward"):
        if told := [entry[name] for entry in log if name in entry]:
            numbers[name] = float(told[-1])
    validated = [entry for entry in log if any(name.startswith("validation/") for name in entry)]
    if made.manifest.config.get("export") == "best":  # else the weights are those of the last one
        validated.sort(key=lambda entry: -float(entry.get(BEST, math.inf)))
    if validated:
        numbers |= {n: float(v) for n, v in validated[-1].items() if n.startswith("validation/")}
    return Row(tuple(point), made.uri, tuple(numbers.items()))


def best(rows: Sequence[Row]) -> Row | None:
    """The point with the lowest RadCliQ-v1 in validation, or the lowest final loss where none validates."""
    for name in (BEST, "validation/loss", "loss"):
        scored = [(dict(one.numbers)[name], one) for one in rows if name in dict(one.numbers)]
        if scored:
            return min(scored, key=lambda pair: pair[0])[1]
    return None


def table(rows: Sequence[Row]) -> list[list[str]]:
    """Head and rows of the table: the grid's keys, the numbers, the URI or why there is none."""
    keys = [override.partition("=")[0] for override in rows[0].point]
    names = list(dict.fromkeys(name for one in rows for name, _ in one.numbers))
    made = [[*keys, *names, "checkpoint"]]
    for one in rows:
        numbers = dict(one.numbers)
        values = [override.partition("=")[2] for override in one.point]
        shown = [f"{numbers[name]:.6g}" if name in numbers else "" for name in names]
        made.append([*values, *shown, one.uri or f"failed: {one.failed}"])
    return made


def as_text(rows: Sequence[Row]) -> str:
    """For a terminal: columns of even width, and the best point below."""
    cells = table(rows)
    wide = [max(len(line[column]) for line in cells) for column in range(len(cells[0]) - 1)]
    lines = [
        "  ".join([*(f"{cell:>{width}}" for cell, width in zip(line[:-1], wide, strict=True)), line[-1]])
        for line in cells
    ]
    chosen = best(rows)
    return "\n".join([*lines, f"best: {' '.join(chosen.point)}"] if chosen else lines)


def as_csv(rows: Sequence[Row]) -> str:
    """For a spreadsheet."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(table(rows))
    return buffer.getvalue()


def as_markdown(rows: Sequence[Row]) -> str:
    """For a note."""
    head, *lines = ([cell.replace("|", "\\|") for cell in line] for line in table(rows))
    return "".join(f"| {' | '.join(line)} |\n" for line in (head, ["---"] * len(head), *lines))


FORMS = {".csv": as_csv, ".md": as_markdown}


def form_of(output: str) -> str:
    """The kind of file that a table is to be written to.

    Raises:
        UserError: it is neither CSV nor Markdown, or its folder is not there.
    """
    path = Path(output)
    if path.suffix not in FORMS or not path.parent.is_dir():
        raise UserError(f"cannot write the table to {output}: name a {' or '.join(FORMS)} file in a folder")
    return path.suffix


class SweepConfig(config.Config):
    """What a table is of."""

    points: tuple[tuple[str, ...], ...]
    """Overrides of each point, in the order of the checkpoints."""


@telemetry.verb("train.sweep")
def tabulate(settings: SweepConfig, checkpoints: Sequence[Artifact], store: str) -> Artifact:
    """The table of trainings that are done, as an artifact: what a pipeline ends its sweep with."""
    inputs = {f"point {number}": made for number, made in enumerate(checkpoints)}
    with artifact.draft(store, "sweep", VERSION, settings, inputs) as draft:
        if draft.committed:
            return draft.committed
        rows = [row(point, made) for point, made in zip(settings.points, checkpoints, strict=True)]
        (draft.out / CSV).write_text(as_csv(rows))
        (draft.out / MARKDOWN).write_text(as_markdown(rows))
        chosen = best(rows)
        return draft.commit({"points": len(rows), "best": " ".join(chosen.point) if chosen else ""})
