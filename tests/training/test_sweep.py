"""Sweeps: the grid, what is refused before anything starts, and the table of what was trained."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from unirg.artifact import Artifact, open_artifact
from unirg.cli import main
from unirg.cohort.stage import StageConfig, stage
from unirg.errors import UserError
from unirg.training import policy, sweep

SETTINGS = ["micro_batch=2", "batch_size=2", "max_steps=2"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Artifact, Artifact]:
    store = str(tmp_path_factory.mktemp("world"))
    cohort = stage(StageConfig(studies=8, size=64, workers=1), store)
    return cohort, policy.base(policy.BaseConfig(), cohort, store)


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as left:
        main(["sweep", "sft", *arguments])
    return int(left.value.code or 0)


# The grid


def test_a_grid_is_every_combination_the_last_axis_changing_fastest() -> None:
    assert sweep.points(["learning_rate=1e-5, 5e-5", "batch_size=128,256"]) == [
        ("learning_rate=1e-5", "batch_size=128"),
        ("learning_rate=1e-5", "batch_size=256"),
        ("learning_rate=5e-5", "batch_size=128"),
        ("learning_rate=5e-5", "batch_size=256"),
    ]


def test_a_comma_inside_brackets_separates_nothing() -> None:
    grid = ["rewards={bleu2: 1, rouge_l: 2},{bleu2: 1}", "lora.targets=[q_proj, v_proj],[k_proj]"]
    assert [point[0] for point in sweep.points(grid)][::2] == [
        "rewards={bleu2: 1, rouge_l: 2}",
        "rewards={bleu2: 1}",
    ]


@pytest.mark.parametrize(
    ("grid", "said"),
    [
        ([], "a sweep needs a grid"),
        (["batch_size"], "grid 'batch_size' is not of the form key=value,value"),
        (["=1"], "is not of the form"),
        (["batch_size=1,,2"], "is not of the form"),
        (["batch_size=1,1"], "a key or a value comes twice"),
        (["batch_size=1", "batch_size=2"], "a key or a value comes twice"),
    ],
)
def test_a_wrong_grid_is_refused(grid: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        sweep.points(grid)


def test_the_papers_grid_resolves_point_by_point() -> None:
    grid = ["learning_rate=1e-5,5e-5", "batch_size=128,256,512"]
    assert len(sweep.check("sft", "paper/sft", [], grid, weights="s3://store/weights/0")) == 6


@pytest.mark.parametrize(
    ("algorithm", "recipe", "weights", "said"),
    [
        ("sft", "paper/sft", "", "seed=0: the validation's score `bertscore` needs its scorer's weights"),
        ("grpo", "toy_real/grpo_step1", "", "seed=0: the reward `bertscore` needs its scorer's weights"),
        ("grpo", "toy_real/grpo_step2", "s3://store/weights/0", "seed=0: the reward `errors` needs a judge"),
        ("sft", "toy/sft", "s3://store/weights/0", "seed=0: the validation's score `errors` needs a judge"),
    ],
)
def test_points_that_would_lack_a_scorer_or_a_judge_are_refused(
    algorithm: str, recipe: str, weights: str, said: str
) -> None:
    with pytest.raises(UserError, match=said):
        sweep.check(algorithm, recipe, [], ["seed=0"], weights=weights)


@pytest.mark.parametrize(
    ("overrides", "grid", "said"),
    [
        (
            [],
            ["learning_rat=1,2"],
            "2 of 2 points are refused, and none is started: learning_rat=1: ",
        ),
        ([], ["epochs=1,-1", "seed=0,1"], "2 of 4 points are refused.*epochs=-1 seed=0: .*epochs = -1"),
        (["micro_batch=32"], ["batch_size=256,300"], "batch_size=300: batch_size = 300 is no multiple of"),
        (
            [],
            ["learning_rate=1e-5,0.00001"],
            "0.00001: the same training as learning_rate=1e-5",
        ),
        ([], ["save_steps=10,20"], "the same training as save_steps=10"),
    ],
)
def test_bad_points_are_refused_together_with_their_reasons(
    overrides: list[str], grid: list[str], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        sweep.check("sft", None, overrides, grid)


def test_what_has_no_points_is_refused() -> None:
    with pytest.raises(UserError, match="no sweep of base: there are sweeps of sft and grpo"):
        sweep.check("base", None, [], ["seed=0,1"])


def test_one_bad_point_or_a_missing_input_starts_nothing(
    world: tuple[Artifact, Artifact], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cohort, base = world
    grid = ["--store", str(tmp_path / "store"), "--grid"]
    own = ["--cohort", cohort.uri, "--parent", base.uri]
    assert run(*own, *grid, "learning_rate=1e-3,-1", *SETTINGS) == 2
    assert "1 of 2 points are refused" in capsys.readouterr().err
    assert run("--cohort", cohort.uri, "--parent", cohort.uri, *grid, "seed=0,1", *SETTINGS) == 2
    assert "was made by stage cohort" in capsys.readouterr().err
    for output in ("table.xlsx", "nowhere/table.csv"):
        assert run(*own, *grid, "seed=0,1", "--output", str(tmp_path / output), *SETTINGS) == 2
        assert "cannot write the table" in capsys.readouterr().err
    assert not (tmp_path / "store").exists()


# The table


def test_a_sweep_is_tabulated_and_run_again_repeats_nothing(
    world: tuple[Artifact, Artifact], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cohort, base = world
    table = tmp_path / "table.csv"
    own = ["--cohort", cohort.uri, "--parent", base.uri, "--store", str(tmp_path / "store")]
    arguments = [*own, "--grid", "learning_rate=1e-3,1e30", "--output", str(table), *SETTINGS]
    # The second diverges: its row says so, and the exit code too, but the first one is there.
    assert run(*arguments) == 2
    told = capsys.readouterr()
    assert "1 of 2 points failed" in told.err
    assert "best: learning_rate=1e-3" in told.out
    head, good, bad = csv.reader(table.read_text().splitlines())
    assert head == ["learning_rate", "steps", "loss", "checkpoint"]
    assert good[:2] == ["1e-3", "2"]
    assert float(good[2]) > 0
    assert bad[0] == "1e30"
    assert bad[-1].startswith("failed: ")
    made = open_artifact(good[-1], "sft")
    written = made.path("model/config.json").stat().st_mtime_ns
    more = [*own, "--grid", "learning_rate=1e-3", "--output", str(tmp_path / "again.md"), *SETTINGS]
    assert run(*more) == 0
    assert made.path("model/config.json").stat().st_mtime_ns == written
    assert (tmp_path / "again.md").read_text().splitlines()[1] == "| --- | --- | --- | --- |"
    done = sweep.tabulate(sweep.SweepConfig(points=(("learning_rate=1e-3",),)), [made], made.store)
    assert done.path(sweep.CSV).read_text().splitlines() == [",".join(head), ",".join(good)]
    assert done.manifest.counts["best"] == "learning_rate=1e-3"


def test_the_best_point_is_chosen_by_radcliq_then_by_loss() -> None:
    rows = [
        sweep.Row(("a=1",), "x", (("loss", 0.1), ("validation/radcliq_v1", 1.2))),
        sweep.Row(("a=2",), "y", (("loss", 0.2), ("validation/radcliq_v1", 0.9))),
        sweep.Row(("a=3",), failed="loss is nan | at step 3"),
    ]
    assert sweep.best(rows) is rows[1]
    assert sweep.best([sweep.Row(("a=1",), "x", (("loss", 0.1),)), rows[2]]) is not None
    assert sweep.best(rows[2:]) is None
    text = sweep.as_text(rows).splitlines()
    assert text[-1] == "best: a=2"
    assert text[1].split() == ["1", "0.1", "1.2", "x"]
    assert sweep.as_markdown(rows).splitlines()[-1] == "| 3 |  |  | failed: loss is nan \\| at step 3 |"
