"""Promotion: one change of the champion, by way of a canary, from whatever a kill or a person left behind."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests import toy
from tests.lifecycle import promotions
from tests.lifecycle.promotions import SETTINGS, Killed, World
from unirg.artifact import Artifact
from unirg.cohort.reader import Cohort
from unirg.errors import UserError
from unirg.lifecycle import promote as promoting
from unirg.lifecycle.promote import Decided, promote, record_decisions, roll_back
from unirg.lifecycle.registry import Registry
from unirg.lifecycle.trial import Trial
from unirg.serving import endpoint as endpoints
from unirg.serving.endpoint import LocalEndpoint, ServeConfig
from unirg.serving.rollout import CannotServe, InferenceServiceEndpoint

# What the databases do is tests/lifecycle/test_registry.py's.
pytestmark = pytest.mark.parametrize("tracking_uri", ["sqlite"], indirect=True)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return toy.make_cohort(str(tmp_path_factory.mktemp("promote") / "store"), 6)


@pytest.fixture
def world(
    tmp_path: Path, tracking_uri: str, cohort: Artifact, monkeypatch: pytest.MonkeyPatch
) -> Iterator[World]:
    monkeypatch.setenv("UNIRG_ACTOR", "the scheduler")
    with promotions.world(tmp_path, tracking_uri, cohort) as (made, kubeconfig):
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
        yield made


@contextmanager
def killed(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, after: bool = False) -> Iterator[None]:
    """Die where something is called, or once it has returned."""
    known = getattr(owner, name)

    def called(*arguments: Any, **named: Any) -> Any:
        if after:
            known(*arguments, **named)
        raise Killed

    with monkeypatch.context() as patches:
        patches.setattr(owner, name, called)
        with pytest.raises(Killed):
            yield


# From the first champion on


def test_the_first_champion_has_a_service_made_for_it(world: World) -> None:
    first = world.version("first")
    found = world.promote(first)
    assert (found.outcome, found.why) == ("promoted", "0 of 4 requests failed")
    assert world.champion() == 1
    assert world.served() == (first.digest, None)
    assert world.audit() == [("promote", "1", "pipeline")]


def test_a_canary_that_answers_becomes_everybody_s_model(world: World) -> None:
    first, second = world.version("first"), world.version("second")
    world.promote(first)
    asked = len(world.vllm.asked)
    found = world.promote(second)
    assert found.outcome == "promoted"
    assert found.trial == Trial(4, 0, True, "0 of 4 requests failed")
    assert len(world.vllm.asked) - asked == 4
    assert world.champion() == 2
    assert world.served() == (second.digest, None)
    assert world.audit() == [("promote", "1", "pipeline"), ("promote", "2", "pipeline")]
    assert world.rolled_out() == ["promote"]


def test_users_get_the_champion_alone_until_the_canary_has_passed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = world.version("first"), world.version("second")
    world.promote(first)
    with killed(monkeypatch, promoting, "trial"):
        world.promote(second)
    assert world.champion() == 1
    assert world.served() == (first.digest, second.digest)
    assert world.promote(second).outcome == "promoted"
    assert world.served() == (second.digest, None)


def test_a_canary_that_fails_is_taken_back_and_the_champion_stays(world: World) -> None:
    first, second = world.version("first"), world.version("second")
    world.promote(first)
    world.breaks(second)
    found = world.promote(second)
    assert found.outcome == "rolled back"
    assert "x HTTP 500; 0 may" in found.why
    assert world.champion() == 1
    assert world.served() == (first.digest, None)
    assert world.audit() == [("promote", "1", "pipeline"), ("rollback", "2", "pipeline")]
    assert len(world.registry.history()) == 1
    # Once more, with another model, nothing of it is in the way.
    third = world.version("third")
    assert world.promote(third).outcome == "promoted"
    assert world.served() == (third.digest, None)


def test_a_canary_that_does_not_load_is_taken_back(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = world.version("first"), world.version("second")
    world.promote(first)

    def failed(_: InferenceServiceEndpoint) -> str:
        raise CannotServe("cannot serve it (ModelLoadFailed)")

    monkeypatch.setattr(InferenceServiceEndpoint, "wait", failed)
    found = world.promote(second)
    assert (found.outcome, found.why) == ("rolled back", "cannot serve it (ModelLoadFailed)")
    assert (world.champion(), world.served()) == (1, (first.digest, None))


def test_a_first_model_that_fails_is_no_champion(world: World) -> None:
    first = world.version("first")
    world.breaks(first)
    assert world.promote(first).outcome == "rolled back"
    assert world.champion() is None
    assert world.audit() == [("rollback", "1", "pipeline")]


# What persons say


def test_a_person_s_refusal_keeps_the_champion(world: World) -> None:
    first, second = world.version("first"), world.version("second")
    world.promote(first)
    world.registry.refuse(2, "Dr No", "misses effusions")
    found = world.promote(second)
    assert (found.outcome, found.why) == ("kept", "version 2 was refused by Dr No")
    assert world.served() == (first.digest, None)
    assert world.audit() == [("promote", "1", "pipeline"), ("refuse", "2", "Dr No")]


def test_a_refusal_during_the_trial_takes_the_canary_back(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = world.version("first"), world.version("second")
    world.promote(first)

    def trial(*arguments: Any) -> Trial:
        world.registry.refuse(2, "Dr No", "misses effusions")
        return Trial(4, 0, True, "0 of 4 requests failed")

    monkeypatch.setattr(promoting, "trial", trial)
    found = world.promote(second)
    assert found.outcome == "kept"
    assert "was refused by Dr No" in found.why
    assert world.champion() == 1
    assert world.served() == (first.digest, None)


def test_a_refusal_after_a_kill_takes_the_canary_back(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = world.version("first"), world.version("second")
    world.promote(first)
    with killed(monkeypatch, promoting, "trial"):
        world.promote(second)
    world.registry.refuse(2, "Dr No", "misses effusions")
    assert world.promote(second).outcome == "kept"
    assert world.served() == (first.digest, None)


def test_where_a_person_must_approve_it_waits_and_then_goes_on(world: World) -> None:
    first, second = world.version("first"), world.version("second")
    world.promote(first)
    asked = len(world.vllm.asked)
    found = world.promote(second, approval=True)
    assert found.outcome == "waiting"
    assert "`unirg registry approve 2`, then `unirg promote 2`" in found.why
    assert (world.champion(), world.served(), len(world.vllm.asked)) == (1, (first.digest, None), asked)
    world.registry.approve(2, "Dr Yes")
    assert world.promote(second, approval=True).outcome == "promoted"
    assert world.champion() == 2
    told = [("promote", "1", "pipeline"), ("approve", "2", "Dr Yes"), ("promote", "2", "pipeline")]
    assert world.audit() == told


def test_what_did_not_pass_and_nobody_approved_is_kept(world: World) -> None:
    first, second = world.version("first"), world.version("second")
    world.promote(first)
    found = world.promote(second, passed=False)
    assert found.outcome == "kept"
    assert found.why == "version 2 has not passed the gate, and nobody approved it"
    world.registry.approve(2, "Dr Yes", "for the new scanner")
    assert world.promote(second, passed=False).outcome == "promoted"
    assert world.served() == (second.digest, None)


def test_decisions_are_in_the_audit_once_each_in_their_order(world: World) -> None:
    world.version("first")
    for number in range(2):
        world.registry.refuse(1, "Dr No", f"reason {number}")
        version = world.registry.approve(1, "Dr Yes")
        for _ in range(2):
            record_decisions(world.store, world.registry, version)
    assert world.audit() == [("refuse", "1", "Dr No"), ("approve", "1", "Dr Yes")] * 2


# Others, and kills


def test_where_another_became_champion_meanwhile_no_canary_is_left(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = world.version("first"), world.version("second")
    world.version("third")
    world.promote(first)

    def trial(*arguments: Any) -> Trial:
        world.registry.set_champion(3, 1, "Ada", "by hand", "by hand")
        return Trial(4, 0, True, "0 of 4 requests failed")

    monkeypatch.setattr(promoting, "trial", trial)
    found = world.promote(second)
    assert found.outcome == "superseded"
    assert "version 3 is champion, not 1 as expected" in found.why
    assert world.champion() == 3
    assert world.served() == (first.digest, None)
    assert ("promote", "2", "pipeline") not in world.audit()


def test_with_one_key_it_is_promoted_once(world: World) -> None:
    first = world.version("first")
    assert [world.promote(first, expected=None).outcome for _ in range(3)] == ["promoted"] * 3
    assert len(world.registry.history()) == 1
    assert world.audit() == [("promote", "1", "pipeline")]
    assert len(world.vllm.asked) == 4


@pytest.mark.parametrize(
    ("owner", "name", "after"),
    [
        (promoting, "trial", False),
        (Registry, "set_champion", False),
        (promoting, "record", False),
        (promoting, "_roll_out", False),
        (promoting, "_roll_out", True),
    ],
)
def test_whoever_goes_on_after_a_kill_finishes_it(
    world: World, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, after: bool
) -> None:
    first, second = world.version("first"), world.version("second")
    world.promote(first)
    with killed(monkeypatch, owner, name, after):
        world.promote(second, expected=1)
    assert world.promote(second, expected=1).outcome == "promoted"
    assert world.champion() == 2
    assert world.served() == (second.digest, None)
    assert world.audit() == [("promote", "1", "pipeline"), ("promote", "2", "pipeline")]
    assert world.rolled_out() == ["promote"]


def test_a_killed_take_back_is_done_when_it_is_repeated(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = world.version("first"), world.version("second")
    world.promote(first)
    world.breaks(second)
    with killed(monkeypatch, promoting, "_take_back"):
        world.promote(second)
    assert world.served() == (first.digest, second.digest)
    assert world.promote(second).outcome == "rolled back"
    assert world.served() == (first.digest, None)
    assert world.audit() == [("promote", "1", "pipeline"), ("rollback", "2", "pipeline")]


def test_a_repeat_does_not_roll_out_what_another_has_followed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, third = (world.version(name) for name in ("first", "second", "third"))
    world.promote(first)
    world.promote(second)
    world.promote(third)
    again = world.promote(second, expected=1)
    assert (again.outcome, again.why) == ("promoted", "promoted before")
    assert world.champion() == 3
    assert world.served() == (third.digest, None)


def test_a_canary_of_a_champion_that_was_followed_before_its_roll_out_is_taken_back(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = world.version("first"), world.version("second")
    world.promote(first)
    with killed(monkeypatch, promoting, "_roll_out"):
        world.promote(second, expected=1)
    world.registry.set_champion(1, 2, "Ada", "by hand", "by hand")
    assert world.promote(second, expected=1).outcome == "promoted"
    assert world.champion() == 1
    assert world.served() == (first.digest, None)


# Back


def test_rolling_back_returns_to_the_one_before_in_registry_endpoint_and_audit(world: World) -> None:
    first, second = world.version("first"), world.version("second")
    world.promote(first)
    world.promote(second)
    made = roll_back(world.registry, world.production(), "misses effusions", "Ada")
    assert (made.version, made.previous, made.who, made.why) == (1, 2, "Ada", "misses effusions")
    assert world.champion() == 1
    assert world.served() == (first.digest, None)
    assert world.audit()[-1] == ("rollback", "1", "Ada")
    assert len(world.audit()) == 3
    # What was rolled back may be promoted again.
    assert world.promote(second, key="another").outcome == "promoted"
    assert world.served() == (second.digest, None)


def test_there_is_nothing_before_the_first(world: World) -> None:
    for _ in range(2):
        with pytest.raises(UserError, match="model unirg had no champion before this one: promote another"):
            roll_back(world.registry, world.production(), "no good", "Ada")
        if world.champion() is None:
            world.promote(world.version("first"))
    assert world.champion() == 1


@pytest.mark.parametrize(
    ("owner", "name", "after"), [(Registry, "set_champion", True), (promoting, "_roll_out", False)]
)
def test_a_killed_rollback_goes_on_and_not_back_again(
    world: World, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, after: bool
) -> None:
    first, second = world.version("first"), world.version("second")
    world.promote(first)
    world.promote(second)
    with killed(monkeypatch, owner, name, after):
        roll_back(world.registry, world.production(), "misses effusions", "Ada")
    assert world.served() == (second.digest, None)
    roll_back(world.registry, world.production(), "misses effusions", "Ada")
    assert world.champion() == 1
    assert world.served() == (first.digest, None)
    assert world.audit()[2:] == [("rollback", "1", "Ada")]


def test_a_rollback_takes_the_canary_of_a_killed_promotion_back(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = world.version("first"), world.version("second")
    world.promote(first)
    with killed(monkeypatch, promoting, "_roll_out"):
        world.promote(second)
    roll_back(world.registry, world.production(), "misses effusions", "Ada")
    assert world.champion() == 1
    assert world.served() == (first.digest, None)


def test_a_mistake_in_the_settings_rolls_nothing_back(world: World) -> None:
    world.promote(world.version("first"))
    world.promote(world.version("second"))
    with pytest.raises(UserError, match=r"cluster\.service is empty"):
        roll_back(world.registry, world.production(service=""), "misses effusions", "Ada")
    assert world.champion() == 2
    assert len(world.audit()) == 2


# Where it is served


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"service": ""}, "cluster.service is empty: name the service that the champion is served by"),
        ({"reach": "gateway"}, "cluster.reach=gateway splits requests between two models: promote inside"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_anything(
    world: World, settings: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError) as told:
        world.promote(world.version("first"), **settings)
    assert said in str(told.value)
    assert (world.champion(), world.kserve.services(), world.audit()) == (None, [], [])


def test_another_model_at_the_version_s_place_is_refused(world: World) -> None:
    first = world.version("first")
    with pytest.raises(UserError, match="is another model than version 1: restore it"):
        world.promote(replace(first, digest="0" * 64))
    assert world.champion() is None


def test_on_one_machine_a_process_is_tried_and_none_is_left(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    connected: list[str] = []

    @contextmanager
    def connect(endpoint: LocalEndpoint) -> Iterator[str]:
        connected.append(endpoint.model_digest)
        yield world.vllm.url
        connected.append("closed")

    monkeypatch.setattr(LocalEndpoint, "connect", connect)
    monkeypatch.setattr(endpoints.checkpoint, "check", str)
    production = replace(world.production(), serve=ServeConfig())

    def promoted(name: str) -> str:
        version = world.version(name)
        champion = world.registry.champion()
        over = champion.number if champion else None
        decided = Decided(True, over, name, "gate 1234", "pipeline")
        return promote(SETTINGS, world.registry, version, decided, production).outcome

    first, second = world.version("first"), world.version("second")
    assert [promoted("first"), promoted("second")] == ["promoted", "promoted"]
    assert connected == [first.digest, "closed", second.digest, "closed"]
    roll_back(world.registry, production, "misses effusions", "Ada")
    assert world.champion() == 1
    world.vllm.script = lambda *_: (500, {}, b"{}")
    assert promoted("third") == "rolled back"
    assert world.champion() == 1
    told = [(action, version) for action, version, _ in world.audit()]
    assert told == [("promote", "1"), ("promote", "2"), ("rollback", "1"), ("rollback", "3")]
    assert world.kserve.services() == []


def test_no_word_of_a_report_is_in_the_audit(world: World) -> None:
    version = world.version("first")
    world.breaks(version)
    world.promote(version)
    world.broken.clear()
    world.promote(version)
    told = "".join(path.read_text() for path in Path(world.store, "audit", "entries").rglob("*.json"))
    assert '"rollback"' in told
    assert '"promote"' in told
    for word in ("Report ", "HTTP", *(study.study_id for study in Cohort.open(world.cohort).studies())):
        assert f'"{word}' not in told
