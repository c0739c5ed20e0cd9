"""The ablations' driver: which tasks in what order, what it makes of an evaluation, how Ctrl-C ends it."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipelines import ablations, orders
from pipelines.ablations import ARMS, SYSTEMS, Task, in_order
from pipelines.orders import HOW, ORDERS, Finding, Order, judged, system, verdict_of
from tests.runs import ROOT
from unirg.config import Config, load
from unirg.errors import UserError
from unirg.evaluation.evaluate import EvaluateConfig
from unirg.evaluation.report.render import ReportConfig
from unirg.scoring.archive import ScoreConfig
from unirg.training.policy import BaseConfig
from unirg.training.sweep import CONFIGS

GIVEN = ablations.tasks("http://127.0.0.1:1")
BETTER_LOW = {"errors", "radcliq_v1"}


def settings(task: Task) -> tuple[str, list[str]]:
    """(recipe, overrides) of a task's command line."""
    recipe = next(word for word in task.verb if word.startswith("--recipe=")).removeprefix("--recipe=")
    return recipe, [word for word in task.verb if not word.startswith("-") and "=" in word]


def test_every_arm_starts_from_one_that_comes_before_it_and_all_from_the_captions() -> None:
    names = [arm.name for arm in ARMS]
    assert len(set(names)) == len(names)
    parents = {arm.name: arm.parent for arm in ARMS}
    for arm in ARMS[2:]:
        assert names.index(arm.parent) < names.index(arm.name)
        root = arm.name
        while parents[root] != "untrained":
            root = parents[root]
        assert root == "captions"


def test_only_the_base_is_trained_on_captions_and_every_arm_is_scored_on_the_same_studies() -> None:
    assert [arm.name for arm in ARMS if arm.cohort != "stage"] == ["captions"]
    scored = [task for name, task in GIVEN.items() if name.startswith("score ")]
    assert len(scored) == len(SYSTEMS) * len(HOW)
    for task in scored:
        assert load(ScoreConfig, *settings(task)).splits == ("test",)
        assert dict(task.inputs)["--cohort="] == "stage"


def test_each_system_is_scored_greedily_and_sampled() -> None:
    temperatures = {
        name.removeprefix("score "): load(ScoreConfig, *settings(task)).temperature
        for name, task in GIVEN.items()
        if name.startswith("score ")
    }
    assert temperatures == {
        system(name, how): float(how == "sampled") for name in SYSTEMS for how in ("greedy", "sampled")
    }


def test_every_task_of_training_resolves_into_a_configuration() -> None:
    models: dict[str, type[Config]] = {"base": BaseConfig, **CONFIGS}
    for arm in ARMS:
        load(models[arm.algorithm], *settings(GIVEN[f"train {arm.name}"]))


def test_the_evaluation_compares_what_the_orders_speak_of_and_the_report_resolves() -> None:
    config = load(EvaluateConfig, *settings(GIVEN["evaluate"]))
    assert set(config.systems) == {system(name, how) for name in SYSTEMS for how in HOW}
    for order in ORDERS:
        assert {order.metric} <= {"composite", "errors", *config.scores}
        for how in HOW:
            assert (system(order.a, how), system(order.b, how)) in config.comparisons
    named = {name for pair in (*config.prior_pairs, *config.regression_pairs) for name in pair}
    assert named <= set(config.systems)
    checkpoints = {option.split("=")[1] for option, _ in GIVEN["evaluate"].inputs if "checkpoint" in option}
    assert {*config.ablations, *config.ablations.values()} <= checkpoints
    assert load(ReportConfig, *settings(GIVEN["report"])).focus in config.systems


def test_a_command_line_names_the_artifacts_that_it_takes() -> None:
    task = Task(("score", "--recipe=toy/score"), (("--predictions=sft, sampled=", "score sft, sampled"),))
    made = {"score sft, sampled": "runs/x/score/1"}
    assert task.command(made)[-1] == "--predictions=sft, sampled=runs/x/score/1"


def test_a_task_begins_when_its_inputs_are_made_and_two_are_under_way_at_once() -> None:
    together = threading.Barrier(2, timeout=10)
    begun: list[str] = []

    def run(name: str, command: list[str]) -> str:
        begun.append(name)
        if name in ("left", "right"):
            together.wait()
        return f"uri of {name}, " + " ".join(command)

    made = in_order(
        {
            "last": Task(("evaluate",), (("--a=", "left"), ("--b=", "right"))),
            "left": Task(("train",), (("--parent=", "first"),)),
            "right": Task(("score",), (("--checkpoint=", "first"),)),
            "first": Task(("stage",)),
        },
        run,
    )
    assert [begun[0], begun[-1]] == ["first", "last"]
    assert made["left"] == "uri of left, train --parent=uri of first, stage"
    assert made["last"].startswith("uri of last, evaluate --a=uri of left, train")


def test_a_task_that_fails_stops_the_run_before_what_needs_it() -> None:
    begun = []

    def run(name: str, command: list[str]) -> str:
        begun.append(name)
        raise UserError(f"{name}: the disk is full")

    with pytest.raises(UserError, match="stage: the disk is full"):
        in_order({"stage": Task(("stage",)), "train": Task(("train",), (("--cohort=", "stage"),))}, run)
    assert begun == ["stage"]


def test_a_verb_that_refuses_is_told_with_the_tasks_name_and_its_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    environment = {"UNIRG_STORE": str(tmp_path), "PYTHONPATH": str(ROOT)}
    with (tmp_path / "log").open("w") as log, pytest.raises(UserError, match=r"^stage: .*no recipe named"):
        ablations.run("stage", ["stage", "--recipe=toy/stagf"], environment, log)
    assert "no recipe named toy/stagf" in capsys.readouterr().out
    assert "no recipe named toy/stagf" in (tmp_path / "log").read_text()


@pytest.mark.parametrize(
    ("low", "high", "higher", "margin", "verdict"),
    [
        (0.01, 0.05, True, 0.0, "holds"),
        (-0.01, 0.05, True, 0.0, "not shown"),
        (-0.05, -0.01, True, 0.0, "contradicted"),
        (-0.05, -0.01, False, 0.0, "holds"),
        (-0.05, 0.01, False, 0.0, "not shown"),
        (0.01, 0.05, False, 0.0, "contradicted"),
        (0.01, 0.04, False, 0.05, "holds"),
        (-0.01, 0.06, False, 0.05, "not shown"),
        (0.06, 0.09, False, 0.05, "contradicted"),
        (-0.06, 0.09, True, 0.05, "not shown"),
        (0.0, 0.0, True, 0.0, "not shown"),
        (None, None, True, 0.0, "not shown"),
    ],
)
def test_an_order_holds_where_the_whole_interval_is_on_its_side(
    low: float | None, high: float | None, higher: bool, margin: float, verdict: str
) -> None:
    assert verdict_of(low, high, higher, margin) == verdict


def evaluation(differences: Mapping[tuple[str, str, str], tuple[float, float, float]]) -> dict[str, Any]:
    """Aggregates with one mean for all, and these (difference, low, high) of (a, b, metric)."""
    metrics = {
        name: {"label": name, "higher_is_better": name not in BETTER_LOW, "judged": False, "modelled": True}
        for name in {"bertscore", *orders.PANELS}
    }
    where = {"split": "test", "setting": "report", "corpus": None, "institution": None}
    mean = {"mean": 0.5, "low": 0.4, "high": 0.6, "n": 9, "missing": 0}
    names = [system(name, how) for name in SYSTEMS for how in HOW]
    pairs = [(a, b, metric) for a, b in orders.comparisons() for metric in metrics]
    numbers = {pair: differences.get(pair, (0.0, -0.1, 0.1)) for pair in pairs}
    here = [
        {**where, "a": a, "b": b, "metric": metric, "difference": found, "low": low, "high": high}
        for (a, b, metric), (found, low, high) in numbers.items()
    ]
    elsewhere = [
        record | other | {"low": 7.0, "high": 9.0}
        for record in here
        for other in ({"institution": "north"}, {"split": "zero_shot"}, {"setting": "findings"})
    ]
    return {
        "metrics": metrics,
        "systems": [{"name": name, "kind": "policy", "note": ""} for name in names],
        "groups": [{**where, "studies": 300, "patients": 120}],
        "values": [{**where, **mean, "system": name, "metric": m} for name in names for m in metrics],
        "comparisons": here + elsewhere,
        "composite": {"bertscore": 1.0},
        "scorers": "toy scorers",
        "judge": "judge <b>",
    }


def verdicts(found: list[Finding]) -> dict[tuple[str, str, str, str], str]:
    return {(one.order.a, one.order.b, one.order.metric, one.how): one.verdict for one in found}


def test_an_evaluation_is_judged_order_by_order_for_greedy_and_for_sampled_reports() -> None:
    found = verdicts(
        judged(
            evaluation(
                {
                    ("sft + rl", "sft", "composite"): (0.03, 0.01, 0.05),
                    ("sft + rl, sampled", "sft, sampled", "composite"): (-0.03, -0.05, -0.01),
                    ("step 2", "step 1", "errors"): (-0.3, -0.4, -0.2),
                    ("step 2", "step 1", "radcliq_v1"): (0.02, 0.01, 0.04),
                }
            )
        )
    )
    assert len(found) == len(ORDERS) * len(HOW)
    assert found.pop(("sft + rl", "sft", "composite", "greedy")) == "holds"
    assert found.pop(("sft + rl", "sft", "composite", "sampled")) == "contradicted"
    assert found.pop(("step 2", "step 1", "errors", "greedy")) == "holds"
    assert found.pop(("step 2", "step 1", "radcliq_v1", "greedy")) == "holds"
    assert set(found.values()) == {"not shown"}


def test_the_table_gives_each_order_its_difference_with_the_interval() -> None:
    data = evaluation({("sft + rl", "sft", "composite"): (0.03, 0.01, 0.05)})
    rows = list(orders.lines(judged(data)))
    assert re.fullmatch(
        r"holds +SFT and RL are above SFT +greedy +composite: sft \+ rl - sft +"
        r"\+0\.030 \[\+0\.010, \+0\.050\]",
        rows[0],
    )
    margin = [row for row in rows if f"margin {orders.RADCLIQ_MARGIN}" in row]
    assert len(margin) == len(HOW)


def test_a_pair_that_shares_no_scored_study_is_said_to_be_unscored() -> None:
    order = Order("one is above the other", "a", "b", "composite")
    one = Finding(order, "greedy", "not shown", "Composite", {"difference": None, "low": None})
    assert next(orders.lines([one])).endswith("not scored")


def test_the_page_shows_every_system_and_order_loads_nothing_and_escapes_names() -> None:
    data = evaluation({})
    found = judged(data)
    text = orders.page(data, found, list(SYSTEMS))
    for name in SYSTEMS:
        assert f">{name}</text>" in text
    assert text.count("<td>not shown</td>") == len(found)
    assert "300 held-out studies of 120 patients" in text
    assert "toy scorers and judge &lt;b&gt;" in text
    assert "<b>" not in text
    assert not re.search(r"(?:src|href)=\"(?!#)", text.replace("xlink:href", "href"))


def test_ctrl_c_ends_every_process_and_says_that_the_same_command_goes_on(tmp_path: Path) -> None:
    with (tmp_path / "output").open("w") as output:
        driver = subprocess.Popen(
            [sys.executable, "-m", "pipelines.ablations", "--store", str(tmp_path / "store")],
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            start_new_session=True,
        )
    try:
        until = time.monotonic() + 60
        children: list[psutil.Process] = []
        while len([child for child in children if "unirg.cli" in " ".join(child.cmdline())]) < 2:
            assert driver.poll() is None, (tmp_path / "output").read_text()
            assert time.monotonic() < until
            time.sleep(0.05)
            children = psutil.Process(driver.pid).children(recursive=True)
        driver.send_signal(signal.SIGINT)
        assert driver.wait(45) == 130
    finally:
        driver.kill()
        driver.wait()
    assert psutil.wait_procs(children, 5)[1] == []
    said = (tmp_path / "output").read_text()
    assert said.endswith("ablations: interrupted; finished work is kept, the same command goes on\n")
    assert "done in" not in said  # what was ended was not finished
    assert "Traceback" not in said
