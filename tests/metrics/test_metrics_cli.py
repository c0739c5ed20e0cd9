"""`unirg metrics` as a user meets it: the table, the file, the mistakes."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.canary import CANARY
from tests.metrics.test_engine import Counting
from unirg import cli, cli_metrics, processes
from unirg.evaluation.statistics import bootstrap
from unirg.metrics import catalog, engine
from unirg.metrics.bleu import bleu
from unirg.metrics.catalog import CATALOG
from unirg.metrics.rouge import rouge_l

Run = Callable[..., tuple[int, str, str]]
TEXTS = [
    ("The heart is large.", "The heart is normal."),
    ("Clear lungs.", "Lungs are clear."),
    ("No edema.", "No edema."),
]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Call `unirg metrics`; (exit code, what it printed, what it said on stderr)."""
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as left:
            cli.main(["metrics", *arguments])
        printed = capsys.readouterr()
        return int(left.value.code or 0), printed.out, printed.err

    return call


@pytest.fixture
def submission(tmp_path: Path) -> str:
    """A submission in ReXrank's form: three studies, and one without a prediction."""
    studies = {
        f"CXR{n}": {"section_findings": reference, "section_impression": "", "model_prediction": candidate}
        for n, (candidate, reference) in enumerate(TEXTS)
    }
    studies["CXR9"] = {"section_findings": CANARY, "section_impression": "", "model_prediction": math.nan}  # type: ignore[dict-item]
    path = tmp_path / "submission.json"
    path.write_text(json.dumps(studies))
    return str(path)


def cells(printed: str, label: str) -> list[str]:
    """The cells of the printed line that begins with the label."""
    (line,) = [line for line in printed.splitlines() if line.startswith(f"{label}  ")]
    return [cell for cell in line.split("  ") if cell]


def test_a_submission_is_scored_with_intervals_and_what_is_missing(run: Run, submission: str) -> None:
    code, out, err = run("score", "--predictions", submission, "--metrics", "bleu2, rouge_l")
    assert code == 0
    assert "reference: Findings: X Impression: Y, a missing part left out" in out
    values = np.array(
        [[f(c, f"Findings: {r}") for f in (bleu, rouge_l)] for c, r in TEXTS] + [[math.nan] * 2]
    )
    expected = bootstrap(values, ["a", "b", "c", "d"], cli_metrics.RESAMPLES, 0)
    for column, label in enumerate(("BLEU-2", "ROUGE-L")):
        low, high = expected.low[column], expected.high[column]
        interval = f"[{low:.4f}, {high:.4f}]"
        found = [cell.strip() for cell in cells(out, label)]
        assert found[:5] == [label, f"{expected.mean[column]:.4f}", interval, "3", "1"]
    assert "missing: bleu2 of 1, rouge_l of 1 studies: no candidate" in out
    assert "metrics: 3 reports in" in err
    assert CANARY not in out + err


def test_the_file_has_a_row_for_each_study_and_says_what_decided_the_scores(
    run: Run, submission: str, tmp_path: Path
) -> None:
    target = tmp_path / "scores.parquet"
    code, _, _ = run(
        "score",
        "--predictions",
        submission,
        "--metrics",
        "bleu2",
        "--form",
        "findings",
        "--output",
        str(target),
    )
    assert code == 0
    table = pq.read_table(target)
    assert table["study_id"].to_pylist() == ["CXR0", "CXR1", "CXR2", "CXR9"]
    expected = [bleu(candidate, f"Findings: {reference}") for candidate, reference in TEXTS]
    assert table["bleu2"].to_pylist() == [*expected, None]
    assert table["bleu2_reason"].to_pylist() == [None, None, None, "no candidate"]
    decided = json.loads(table.schema.metadata[cli_metrics.METADATA])
    assert decided["reference"] == "Findings: X"
    assert decided["identity"] == dict(engine.Engine(["bleu2"]).identity)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    assert CANARY.encode() not in target.read_bytes()


def test_studies_of_one_patient_are_drawn_together(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "file.jsonl"
    rows = [
        {
            "study_id": n,
            "patient_id": f"p{n // 2}",
            "candidate": "a b" if n < 2 else "c d",
            "reference": "a b",
        }
        for n in range(4)
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    _, out, _ = run("score", "--predictions", str(path), "--metrics", "rouge_l")
    assert "bootstrap over 2 patients" in out
    assert "[0.0000, 1.0000]" in out


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> dict[str, Counting]:
    made = {name: Counting(name) for name in catalog.scorers(CATALOG)}
    monkeypatch.setattr(engine, "_loaded", lambda name, directory, compute: made[name])
    return made


def test_radcliq_is_shown_as_the_board_shows_it_too(
    run: Run, submission: str, tmp_path: Path, models: dict[str, Counting]
) -> None:
    target = tmp_path / "scores.parquet"
    code, out, _ = run(
        "score", "--predictions", submission, "--metrics", "radcliq_v1,sembscore", "--output", str(target)
    )
    assert code == 0
    mean = np.nanmean(pq.read_table(target)["radcliq_v1"].to_numpy())
    assert cells(out, "1/RadCliQ-v1")[1].strip() == f"{1 / mean:.4f}"
    for name in ("chexbert", "bertscore", "radgraph"):
        assert len(models[name].compared) == 3


@pytest.fixture(scope="module")
def judge_url() -> Iterator[str]:
    with processes.server([sys.executable, "-m", "unirg.metrics.offline_judge"], "the judge") as url:
        yield url


def test_errors_are_counted_by_the_judge_that_is_named(
    run: Run, submission: str, tmp_path: Path, judge_url: str
) -> None:
    arguments = ["score", "--predictions", submission, "--metrics", "errors,bleu2", "--judge-url", judge_url]
    arguments += ["--judge-model", "offline-judge", "--cache", str(tmp_path / "cache")]
    code, first, _ = run(*arguments)
    assert code == 0
    assert cells(first, "Errors per report")[3].strip() == "3"
    arguments[arguments.index(judge_url)] = "http://127.0.0.1:9/v1"
    assert run(*arguments)[1] == first


def test_a_spent_budget_leaves_scores_missing_with_the_reason(
    run: Run, submission: str, judge_url: str
) -> None:
    arguments = ["score", "--predictions", submission, "--metrics", "errors", "--judge-url", judge_url]
    code, out, _ = run(*arguments, "--judge-model", "offline-judge", "--judge-calls", "1")
    assert code == 0
    assert "studies: the budget of 1 calls is spent" in out


def test_the_list_names_every_score(run: Run) -> None:
    code, out, _ = run("list")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()[1:]] == list(CATALOG)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--metrics", "bleu_2"), "did you mean bleu2?"),
        (("--metrics", " , "), "--metrics names no score"),
        (("--metrics", "errors"), "errors needs a judge: name its endpoint and model, --judge-url and"),
        (("--metrics", "sembscore", "--weights", "/nowhere"), "/nowhere"),
        (("--metrics", "bleu2", "--output", "/nowhere/at/all.parquet"), "cannot be written"),
        (("--metrics", "bleu2", "--output", "s3://bucket/x"), "not a local path"),
        (("--metrics", "bleu2", "--references", "/nowhere.csv"), "no file at /nowhere.csv"),
        (("--metrics", "bleu2", "--form", "words"), "words"),
        (("--metrics", "bleu2", "--precision", "fp8"), "fp8"),
        (("--metrics", "bleu2", "--cache", "/proc/cache"), "the cache /proc/cache cannot be used"),
    ],
)
def test_a_users_mistake_ends_with_2_and_one_line_that_names_it(
    run: Run, submission: str, arguments: tuple[str, ...], said: str
) -> None:
    code, out, err = run("score", "--predictions", submission, *arguments)
    assert code == 2
    assert said in out + err
    assert "Traceback" not in out + err
    assert CANARY not in out + err


def test_a_failure_while_writing_leaves_the_old_file(
    run: Run, submission: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "scores.parquet"
    target.write_bytes(b"old")

    def full(table: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq, "write_table", full)
    code, _, err = run("score", "--predictions", submission, "--metrics", "bleu2", "--output", str(target))
    assert code == 2
    assert "free" in err
    assert target.read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["scores.parquet", "submission.json"]
