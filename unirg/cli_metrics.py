"""`unirg metrics`: scores of any reports in a file, from a laptop, and what scores there are."""

from __future__ import annotations

import json
import math
import os
import sys
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from unirg import storage, telemetry
from unirg.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

    from unirg.evaluation.statistics import Array
    from unirg.metrics.chexprompt import Judge
    from unirg.metrics.engine import Engine
    from unirg.metrics.pairs import Compared

app = typer.Typer(no_args_is_help=True, help="Score reports in a file; list the scores.")

RESAMPLES = 10_000
METADATA = b"unirg"
"""Key of the Parquet schema's metadata: JSON of what decided the scores."""


@app.command("list")
def list_scores() -> None:
    """Every score: its range, which way is better, what it needs, and how ReXrank reports it."""
    from unirg.metrics.catalog import CATALOG, JUDGE, scorers

    rows = [("name", "score", "range", "better", "needs", "source", "on ReXrank")]
    for name, score in CATALOG.items():
        low, high = (f"{bound:g}" if math.isfinite(bound) else "" for bound in (score.low, score.high))
        needs = "a judge" if score.scorer == JUDGE else ", ".join(sorted(scorers([name])))
        better = "higher" if score.higher_is_better else "lower"
        rows.append(
            (name, score.label, f"{low} … {high}".strip(), better, needs, score.source, score.rexrank)
        )
    _print_table(rows)


@app.command("score")
def score(
    predictions: Annotated[str, typer.Option(help="CSV, JSONL or ReXrank JSON: study_id, candidate, …")],
    metrics: Annotated[str, typer.Option(help="Names with commas between; `unirg metrics list`.")],
    references: Annotated[str, typer.Option(help="File of the references, if not in the first one.")] = "",
    form: Annotated[
        Literal["report", "findings", "bare_findings", "given"] | None,
        typer.Option(help="Text of a reference; default: report where there are sections, else given."),
    ] = None,
    weights: Annotated[str, typer.Option(help="Directory or URI of the scorers' weights.")] = "",
    precision: Annotated[Literal["fp32", "bf16", "int8"], typer.Option(help="Of the encoders.")] = "fp32",
    device: Annotated[str, typer.Option(help="Where the encoders run, as torch names it.")] = "cpu",
    threads: Annotated[int, typer.Option(min=0, help="Of the CPU; 0: as torch decides.")] = 0,
    cache: Annotated[str, typer.Option(help="File that keeps what was computed; may be shared.")] = "",
    judge_url: Annotated[str, typer.Option(help="Endpoint that counts errors (CheXprompt).")] = "",
    judge_model: Annotated[str, typer.Option(help="The judge's model.")] = "",
    judge_calls: Annotated[int, typer.Option(min=0, help="Requests to the judge at most; 0: any.")] = 0,
    output: Annotated[str, typer.Option(help="Parquet file to write, a row for each study.")] = "",
    seed: Annotated[int, typer.Option(help="Of the bootstrap.")] = 0,
) -> None:
    """Score candidates against their references: means with 95% intervals, and a row for each study."""
    from unirg.metrics.encoder import Compute
    from unirg.metrics.engine import Engine
    from unirg.metrics.pairs import FORMS, read

    names = [name.strip() for name in metrics.split(",") if name.strip()]
    if not names:
        raise UserError("--metrics names no score: `unirg metrics list` shows them all")
    target = _target(output)
    judge = _judge(names, judge_url, judge_model, judge_calls)
    with telemetry.span("metrics"):
        engine = Engine(names, weights, Compute(precision, device), cache, judge)
        studies, used = read(predictions, references, form)
        if threads:
            import torch

            torch.set_num_threads(threads)
        found = _scored(engine, studies)
    if target:
        decided = {"reference": FORMS[used], "precision": precision, "judge": judge_model or None}
        _write(target, found, decided | {"identity": dict(engine.identity)})
    print(f"reference: {FORMS[used]}")
    _print_means(found, engine, seed)


@dataclass(frozen=True)
class _Found:
    """The scores of each study."""

    names: Sequence[str]
    studies: Sequence[Compared]
    values: Array
    """(studies, names), NaN where there is none."""
    reasons: Sequence[dict[str, str]]
    """Score -> why there is none, for each study."""

    def table(self) -> pa.Table:
        import numpy as np
        import pyarrow as pa

        columns: dict[str, pa.Array] = {
            "study_id": pa.array([study.study_id for study in self.studies], pa.string()),
            "patient_id": pa.array([study.patient_id or None for study in self.studies], pa.string()),
        }
        for column, name in enumerate(self.names):
            values = self.values[:, column]
            columns[name] = pa.array(values, mask=np.isnan(values))
            columns[f"{name}_reason"] = pa.array([why.get(name) for why in self.reasons], pa.string())
        return pa.table(columns)


def _scored(engine: Engine, studies: Sequence[Compared]) -> _Found:
    import numpy as np

    told = telemetry.Progress("metrics", sum(study.pair is not None for study in studies), "reports")
    scored = engine.score((study.pair for study in studies if study.pair), told)
    values = np.full((len(studies), len(engine.scores)), np.nan)
    reasons = []
    for row, study in enumerate(studies):
        if study.pair is None:
            reasons.append(dict.fromkeys(engine.scores, study.reason))
            continue
        found = next(scored)
        values[row] = [found.values.get(name, np.nan) for name in engine.scores]
        reasons.append(found.missing)
    told.finish()
    return _Found(engine.scores, studies, values, reasons)


def _judge(names: Sequence[str], url: str, model: str, calls: int) -> Judge | None:
    from unirg.metrics.catalog import JUDGE, lookup
    from unirg.metrics.chexprompt import Judge
    from unirg.metrics.judge_endpoint import Budget

    judged = [name for name in names if lookup(name).scorer == JUDGE]
    if not judged:
        return None
    if not (url and model):
        raise UserError(
            f"{judged[0]} needs a judge: name its endpoint and model, --judge-url and --judge-model"
        )
    key = os.environ.get("UNIRG_JUDGE_API_KEY", "none")
    return Judge(url, model, key, budget=Budget(calls=calls or None))


def _target(output: str) -> Path | None:
    """Where the Parquet file goes; refused now rather than after hours of work."""
    if not output:
        return None
    path = storage.local_path(output)
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise UserError(f"{path} cannot be written: name a file in a folder that exists and is yours")
    return path


def _write(path: Path, found: _Found, decided: dict[str, object]) -> None:
    """Write the file whole or not at all."""
    import pyarrow.parquet as pq

    table = found.table().replace_schema_metadata({METADATA: json.dumps(decided, sort_keys=True)})
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with storage.explained(str(path)):
            pq.write_table(table, aside)
            with aside.open("rb") as file:
                os.fsync(file.fileno())
            aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    print(f"{path}: {len(found.studies)} studies", file=sys.stderr)


def _print_means(found: _Found, engine: Engine, seed: int) -> None:
    """A line for each score: mean over studies, interval by bootstrap over patients, counts."""
    from unirg.evaluation.statistics import bootstrap
    from unirg.metrics.catalog import lookup
    from unirg.metrics.radcliq import board_value

    # A study of nobody named is a patient of its own.
    patients = [study.patient_id or f"study {study.study_id}" for study in found.studies]
    estimate = bootstrap(found.values, patients, RESAMPLES, seed)
    rows = [("score", "mean", "95% interval", "n", "missing", "identity")]
    for column, name in enumerate(found.names):
        mean, low, high = (float(each[column]) for each in (estimate.mean, estimate.low, estimate.high))
        rest = str(estimate.n[column]), str(estimate.missing[column]), engine.identity[name]
        rows.append((lookup(name).label, _number(mean), _interval(low, high), *rest))
        if name == "radcliq_v1" and (value := board_value(mean)) is not None:
            # One over the mean; of an interval that holds 0 the reciprocals are no interval.
            ends = (1 / high, 1 / low) if low * high > 0 else (math.nan, math.nan)
            rows.append(("1/RadCliQ-v1", _number(value), _interval(*ends), *rest))
    _print_table(rows)
    over = "studies" if not any(study.patient_id for study in found.studies) else "patients"
    print(f"intervals: bootstrap over {len(set(patients))} {over}, {RESAMPLES} resamples, seed {seed}")
    whose: dict[str, list[str]] = {}
    for missing in found.reasons:
        for name, reason in missing.items():
            whose.setdefault(reason, []).append(name)
    for reason, names in whose.items():
        counts = ", ".join(f"{name} of {count}" for name, count in Counter(names).items())
        print(f"missing: {counts} studies: {reason}")


def _number(value: float) -> str:
    return f"{value:.4f}" if math.isfinite(value) else "-"


def _interval(low: float, high: float) -> str:
    return f"[{low:.4f}, {high:.4f}]" if math.isfinite(low) and math.isfinite(high) else "-"


def _print_table(rows: Sequence[Sequence[str]]) -> None:
    """Rows in aligned columns; the first one names them."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
