"""`unirg gate`, `promote`, `rollback` and a person's word: what they print, how they end, the audit."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import toy
from tests.lifecycle import promotions
from tests.lifecycle.gate_world import CONFIG, GateWorld
from tests.lifecycle.promotions import SERVICE, SETTINGS, Killed, World
from unirg import artifact, cli
from unirg.artifact import Artifact
from unirg.config import Config
from unirg.lifecycle import gate, promote
from unirg.lifecycle.registry import Version

# What the databases do is tests/lifecycle/test_registry.py's.
pytestmark = pytest.mark.parametrize("tracking_uri", ["sqlite"], indirect=True)

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return toy.make_cohort(str(tmp_path_factory.mktemp("promote") / "store"), 6)


@pytest.fixture
def call(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tracking_uri: str
) -> Call:
    """Call the command line on the test's own stores; (exit code, what it printed, what it told)."""
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("UNIRG_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking_uri)
    monkeypatch.setenv("UNIRG_ACTOR", "Ada")

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as left:
            cli.main(list(arguments))
        printed = capsys.readouterr()
        return int(left.value.code or 0), printed.out, printed.err

    return run


@pytest.fixture
def world(
    tmp_path: Path, tracking_uri: str, cohort: Artifact, monkeypatch: pytest.MonkeyPatch
) -> Iterator[World]:
    with promotions.world(tmp_path, tracking_uri, cohort) as (made, kubeconfig):
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
        yield made


@pytest.fixture
def how(tmp_path: Path, world: World) -> list[str]:
    """Arguments of a promotion: where the champion is served, how it is tried."""
    serving, recipe = tmp_path / "serve.yaml", tmp_path / "promote.yaml"
    serving.write_text(world.production(service="").serve.model_dump_json())
    recipe.write_text(SETTINGS.model_dump_json())
    return [f"cluster.service={SERVICE}", "--serving", str(serving), "--recipe", str(recipe)]


class Judged(Config):
    name: str


def judged(world: World, name: str, passed: bool, champion: Version | None) -> Version:
    """A version with a gate's verdict."""
    content = {"passed": passed, "champion": champion and {"name": "old", "digest": champion.digest}}
    with artifact.draft(world.store, gate.STAGE, gate.VERSION, Judged(name=name), {}) as draft:
        (draft.out / gate.FILE).write_text(json.dumps(content))
        verdict = draft.commit()
    return world.version(name, {promote.VERDICT: verdict.uri})


def one_line(found: tuple[int, str, str], said: str) -> None:
    """A mistake is told in one line, on stderr, with exit code 2."""
    code, out, err = found
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1, err
    assert said in err


def test_what_passed_is_promoted_and_rolled_back(call: Call, world: World, how: list[str]) -> None:
    first = judged(world, "first", True, None)
    code, out, err = call("promote", "1", *how)
    assert (code, out) == (0, f"{first.uri}\n")
    assert "promoted: 0 of 4 requests failed" in err
    second = judged(world, "second", True, first)
    assert call("promote", second.uri, *how, "--why", "the week's")[:2] == (0, f"{second.uri}\n")
    assert world.served() == (second.digest, None)
    back = call("rollback", *how[:3], "--why", "misses effusions", "--who", "Grace")
    assert back[:2] == (0, f"{first.uri}\n")
    assert (world.champion(), world.served()) == (1, (first.digest, None))
    told = [("promote", "1", "Ada"), ("promote", "2", "Ada"), ("rollback", "1", "Grace")]
    assert world.audit() == told
    assert [one.why for one in world.registry.history()] == ["", "the week's", "misses effusions"]


def test_what_did_not_pass_against_this_champion_is_kept(call: Call, world: World, how: list[str]) -> None:
    first = judged(world, "first", False, None)
    code, out, err = call("promote", "1", *how)
    assert (code, out) == (1, "")
    assert err.endswith("kept: version 1 has not passed the gate, and nobody approved it\n")
    assert call("promote", "1", *how, "--approve", "--why", "the first one")[0] == 0
    assert world.audit() == [("approve", "1", "Ada"), ("promote", "1", "Ada")]
    # A verdict over nobody says nothing of a model that has a champion to beat, nor does none.
    judged(world, "second", True, None)
    world.version("third")
    assert [call("promote", number, *how)[0] for number in "23"] == [1, 1]
    assert world.served() == (first.digest, None)
    code, _, err = call("promote", "9", *how)
    assert (code, "has no version 9: it has 1, 2, 3" in err) == (2, True)


def test_a_failing_canary_ends_with_1_and_the_champion_stays(
    call: Call, world: World, how: list[str]
) -> None:
    first = judged(world, "first", True, None)
    second = judged(world, "second", True, first)
    assert call("promote", "1", *how)[0] == 0
    world.breaks(second)
    code, out, err = call("promote", "2", *how)
    assert (code, out) == (1, "")
    assert "rolled back: " in err
    assert "HTTP 500" in err
    assert (world.champion(), world.served()) == (1, (first.digest, None))


def test_the_champion_once_more_changes_nothing_and_finishes_what_a_kill_left(
    call: Call, world: World, how: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = judged(world, "first", True, None)
    second = judged(world, "second", True, first)
    assert call("promote", "1", *how)[0] == 0

    def die(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patches:
        patches.setattr(promote, "_roll_out", die)
        with pytest.raises(Killed):
            cli.main(["promote", "2", *how])
    assert world.served() == (first.digest, second.digest)
    for _ in range(2):
        code, out, err = call("promote", "2", *how)
        assert (code, out) == (0, f"{second.uri}\n")
        assert err.endswith("version 2 is champion already\n")
        assert world.served() == (second.digest, None)
    assert world.audit() == [("promote", "1", "Ada"), ("promote", "2", "Ada")]
    assert len(world.registry.history()) == 2


def test_a_person_s_word_is_in_the_registry_and_in_the_audit(
    call: Call, world: World, how: list[str]
) -> None:
    judged(world, "first", True, None)
    assert call("registry", "refuse", "1", "--why", "misses effusions", "--who", "Dr No")[0] == 0
    code, _, err = call("promote", "1", *how)
    assert (code, "kept: version 1 was refused by Dr No" in err) == (1, True)
    assert call("registry", "approve", "1", "--why", "looked again")[0] == 0
    assert call("promote", "1", *how)[0] == 0
    assert world.audit() == [("refuse", "1", "Dr No"), ("approve", "1", "Ada"), ("promote", "1", "Ada")]


def test_mistakes_are_one_line_with_the_remedy(
    call: Call, world: World, how: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    one_line(call("rollback", *how[:3], "--why", "x"), "model unirg has no champion yet: promote one")
    one_line(call("promote", "1", *how), "has no version 1: it has none")
    first = judged(world, "first", True, None)
    one_line(call("promote", "1", *how[1:]), "cluster.service is empty: name the service")
    one_line(call("promote", "1", "cluster.reach=gateway", *how), "cluster.reach=gateway splits requests")
    one_line(call("promote", "/nowhere", *how), "no artifact at /nowhere")
    one_line(call("promote", world.cohort.uri, *how), "was made by stage cohort")
    one_line(call("promote", "1", *how, "--cohort", first.uri), "sft")
    one_line(call("promote", "1", *how, "--approve", "--why", "x" * 201), "at most 200 each")
    one_line(call("promote", "1", *how, "--approve", "--why", "two\nlines"), "write each in one line")
    one_line(call("promote", "1", "cluster.sevice=cxr", *how[1:]), "sevice")
    assert call("promote", "1", *how)[0] == 0
    one_line(call("rollback", *how[:3], "--why", "x"), "had no champion before this one: promote another")
    assert call("rollback", *how[:3])[0] == 2
    assert world.audit() == [("promote", "1", "Ada")]


def test_the_gate_s_verdict_is_printed_and_its_exit_code_says_it(call: Call, tmp_path: Path) -> None:
    world = GateWorld(tmp_path / "store")
    rules = tmp_path / "gate.yaml"
    blind = CONFIG.guards.model_copy(update={"condition_margin": None})
    rules.write_text(CONFIG.model_copy(update={"guards": blind}).model_dump_json())
    sides = {name: f"{name}={world.side(name).checkpoint.uri}" for name in ("old", "new")}
    old = 0.5 + world.noise(0)

    def judge(gain: float) -> tuple[int, str, str]:
        evaluation = world.evaluation({"old": world.columns(old), "new": world.columns(old + gain)})
        arguments = ("--challenger", sides["new"], "--champion", sides["old"], "--recipe", str(rules))
        return call("gate", evaluation.uri, *arguments)

    code, out, err = judge(0.1)
    assert code == 0, err
    assert gate.read(artifact.open_artifact(out.strip(), "gate"))["passed"]
    assert err.startswith("new passes the gate.\n")
    code, out, err = judge(-0.1)
    assert code == 1
    assert not gate.read(artifact.open_artifact(out.strip(), "gate"))["passed"]
    assert err.startswith("new fails the gate (superiority over old: bleu2")
    evaluation = world.evaluation({"old": world.columns(old), "new": world.columns(old)}).uri
    new = sides["new"].partition("=")[2]
    for judged, challenger, said in [
        (evaluation, "new", "'new': write NAME=CHECKPOINT, with the system's name in the evaluation"),
        (evaluation, f"={new}", "write NAME=CHECKPOINT"),
        (evaluation, new, "write NAME=CHECKPOINT"),
        (evaluation, "new=/nowhere", "no artifact at /nowhere"),
        (new, sides["new"], "evaluate"),
    ]:
        one_line(call("gate", judged, "--challenger", challenger, "--recipe", str(rules)), said)
