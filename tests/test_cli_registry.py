"""`unirg runs`, `unirg registry` and `unirg lineage` of artifacts on the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.lifecycle.stores import cohort, made
from unirg import cli
from unirg.artifact import Artifact
from unirg.lifecycle import store
from unirg.lifecycle.registry import Registry
from unirg.lifecycle.store import Run

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tracking_uri: str
) -> Call:
    """Call the command line on the test's own stores; (exit code, what it printed, what it told)."""
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("UNIRG_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking_uri)
    monkeypatch.delenv("UNIRG_ACTOR", raising=False)

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as left:
            cli.main(list(arguments))
        printed = capsys.readouterr()
        return int(left.value.code or 0), printed.out, printed.err

    return run


@pytest.fixture
def trained(tmp_path: Path) -> dict[str, Artifact]:
    where = str(tmp_path / "store")
    source = cohort(where, [("s10", "train"), ("s11", "train")], [("s20", "test")])
    base = made(where, "base", {"cohort": source}, source="hub")
    sft = made(where, "sft", {"cohort": source, "parent": base})
    return {"cohort": source, "base": base, "sft": sft, "serve": made(where, "serve", {"checkpoint": sft})}


def test_the_runs_of_a_pipeline_stand_below_it(
    call: Call, tracking_uri: str, trained: dict[str, Artifact]
) -> None:
    assert call("runs") == (0, "", "no runs\n")
    pipeline = store.begin(tracking_uri, "run-1", Run("weekly"), "retrain")
    children = [store.record_stage(pipeline, trained[name]) for name in ("cohort", "sft")]
    store.end(pipeline)
    other = store.record(tracking_uri, "key", Run("alone"))
    code, out, _ = call("runs")
    assert code == 0
    lines = out.splitlines()
    assert {line.split()[0] for line in lines if line[0] != " "} == {other.run_id, pipeline.run_id}
    below = [line for line in lines if line.startswith("  ")]
    assert [line.split()[0] for line in below] == [child.run_id for child in children]
    assert below[1].endswith(f"FINISHED  retrain: sft  {trained['sft'].uri}")
    assert call("runs", "--experiment", "retrain")[1].splitlines() == [
        line for line in lines if other.run_id not in line
    ]
    assert call("runs", "--experiment", "none")[0] == 2


def test_the_lineage_of_the_champion_says_which_data_is_in_it(
    call: Call, tracking_uri: str, trained: dict[str, Artifact]
) -> None:
    uris = {name: one.uri for name, one in trained.items()}
    code, _, err = call("lineage", "champion")
    assert (code, "model unirg has no champion yet" in err) == (2, True)
    registry = Registry(tracking_uri)
    registry.register(trained["sft"])
    registry.set_champion(1, None, "pipeline")
    expected = [
        f"champion  version 1  {uris['sft']}",
        f"data      phantom: test 1, train 2 (learned)  {uris['cohort']}",
        f"behind    cohort    {uris['cohort']}",
        f"behind    base      {uris['base']}",
        f"made      serve     {uris['serve']}",
    ]
    assert call("lineage", "champion") == (0, "\n".join([*expected, ""]), "")
    assert call("lineage", uris["sft"])[1].splitlines() == expected[1:]
    assert call("lineage", "corpus", "phantom")[1].splitlines() == [
        f"made      cohort    {uris['cohort']}",
        f"made      base      {uris['base']}",
        f"made      sft       {uris['sft']}, learned",
        f"made      serve     {uris['serve']}, learned",
    ]


def test_a_mistaken_lineage_is_one_line(call: Call, trained: dict[str, Artifact]) -> None:
    for arguments, said in [
        (["corpus", "west"], "holds studies of west"),
        (["champion", "now"], "champion now: name an artifact's URI"),
        ([trained["sft"].uri, "--study", "phantom/s10"], "name either this or studies and patients"),
        (["/nowhere"], "no artifact at /nowhere"),
    ]:
        code, out, err = call("lineage", *arguments)
        assert (code, out, len(err.splitlines())) == (2, "", 1)
        assert said in err


def test_a_person_approves_and_refuses_under_a_name(
    call: Call, tracking_uri: str, trained: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert call("registry", "list") == (0, "", "model unirg has no versions\n")
    registry = Registry(tracking_uri)
    registry.register(trained["base"])
    registry.register(trained["sft"])
    assert "no decision" in call("registry", "list")[1].splitlines()[0]
    code, _, err = call("registry", "approve", "1")
    assert (code, "name who (UNIRG_ACTOR or --who)" in err) == (2, True)
    assert "approved by Dr Yes" in call("registry", "approve", "1", "--who", "Dr Yes")[1]
    monkeypatch.setenv("UNIRG_ACTOR", "Dr No")
    assert "refused by Dr No" in call("registry", "refuse", "2", "--why", "misses effusions")[1]
    assert call("registry", "refuse", "3", "--why", "absent")[0] == 2
    assert call("registry", "champion") == (0, "", "model unirg has no champion yet\n")
    registry.set_champion(1, None, "pipeline", "first")
    code, out, err = call("registry", "champion")
    assert (code, out) == (0, f"{trained['base'].uri}\n")
    assert err.endswith("version 1 by pipeline (first)\n")
    listed = call("registry", "list")[1].splitlines()
    assert [line[:6] for line in listed] == ["*    1", "     2"]
    assert "refused by Dr No" in listed[1]


def test_an_alias_moved_by_hand_is_told(call: Call, tracking_uri: str, trained: dict[str, Artifact]) -> None:
    from mlflow import MlflowClient

    registry = Registry(tracking_uri)
    registry.register(trained["base"])
    registry.register(trained["sft"])
    registry.set_champion(1, None, "pipeline")
    MlflowClient(tracking_uri).set_registered_model_alias("unirg", "champion", "2")
    code, _, err = call("registry", "list")
    assert code == 0
    assert "MLflow's alias is on version 2, the champion is 1" in err
