"""The registry on SQLite and PostgreSQL: one version a checkpoint, one champion, and who said what."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.lifecycle.stores import cohort, made
from tests.lifecycle.writers import killed, together
from unirg.artifact import Artifact
from unirg.errors import UserError
from unirg.lifecycle import registry as registries
from unirg.lifecycle import store
from unirg.lifecycle.registry import Outdated, Registry
from unirg.lifecycle.store import Run


@pytest.fixture
def registry(tracking_uri: str) -> Registry:
    return Registry(tracking_uri)


@pytest.fixture
def checkpoints(tmp_path: Path) -> list[Artifact]:
    where = str(tmp_path / "store")
    source = cohort(where, [("s10", "train")])
    return [made(where, "sft", {"cohort": source}, name=f"policy {number}") for number in range(8)]


def uris(checkpoints: list[Artifact]) -> str:
    return " ".join(each.uri for each in checkpoints)


def shown(registry: Registry) -> list[tuple[int, int | None, str]]:
    return [(one.version, one.previous, one.who) for one in registry.history()]


def test_a_checkpoint_has_one_version_with_its_digest_and_its_run(
    registry: Registry, checkpoints: list[Artifact]
) -> None:
    from mlflow import MlflowClient

    run = store.record(registry.tracking_uri, checkpoints[0].manifest.action_key, Run("sft"))
    first = registry.register(checkpoints[0], {"recipe": "toy/sft"}, run)
    assert (first.number, first.uri, first.digest) == (1, checkpoints[0].uri, checkpoints[0].digest)
    assert first.tags["recipe"] == "toy/sft"
    assert registry.register(checkpoints[0], {"recipe": "another"}) == first
    assert registry.register(checkpoints[1]).number == 2
    assert [one.number for one in registry.versions()] == [1, 2]
    assert registry.version(1) == first
    stored = MlflowClient(registry.tracking_uri).get_model_version("unirg", "1")
    assert (stored.run_id, stored.source) == (run.run_id, checkpoints[0].uri)


def test_only_checkpoints_are_registered_and_no_tag_hides_the_registrys_own(
    registry: Registry, checkpoints: list[Artifact]
) -> None:
    evaluation = made(checkpoints[0].store, "evaluate", {})
    with pytest.raises(UserError, match="was made by stage evaluate: name a base or sft or grpo"):
        registry.register(evaluation)
    with pytest.raises(UserError, match="the tag decisions is the registry's own"):
        registry.register(checkpoints[0], {"decisions": "[]"})
    with pytest.raises(UserError, match="no name of a registered model"):
        Registry(registry.tracking_uri, "it's")
    with pytest.raises(UserError, match="no MLflow server takes it"):
        Registry("http://localhost:1").register(checkpoints[0])
    assert registry.versions() == []


def test_the_champion_changes_only_where_the_expected_one_still_is(
    registry: Registry, checkpoints: list[Artifact]
) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(registry.tracking_uri)
    for each in checkpoints[:3]:
        registry.register(each)
    assert registry.champion() is None
    assert registry.history() == []
    registry.set_champion(1, None, "pipeline", "first")
    with pytest.raises(Outdated, match="version 1 is champion, not none as expected"):
        registry.set_champion(2, None, "pipeline")
    registry.set_champion(2, 1, "pipeline", "better")
    with pytest.raises(Outdated, match="version 2 is champion, not 1 as expected"):
        registry.set_champion(3, 1, "pipeline")
    with pytest.raises(UserError, match="to follow itself"):
        registry.set_champion(2, 2, "pipeline")
    with pytest.raises(UserError, match=r"has no version 9: it has 1, 2, 3"):
        registry.set_champion(9, 2, "pipeline")
    rolled_back = registry.set_champion(1, 2, "Dr No", "errors rose")
    assert (rolled_back.version, rolled_back.previous, rolled_back.why) == (1, 2, "errors rose")
    assert shown(registry) == [(1, None, "pipeline"), (2, 1, "pipeline"), (1, 2, "Dr No")]
    champion = registry.champion()
    assert champion is not None
    assert champion.digest == checkpoints[0].digest
    assert int(client.get_model_version_by_alias("unirg", "champion").version) == 1


def test_a_promotion_with_a_key_happens_once(registry: Registry, checkpoints: list[Artifact]) -> None:
    for each in checkpoints[:2]:
        registry.register(each)
    first = registry.set_champion(1, None, "pipeline", key="gate 1")
    registry.set_champion(2, 1, "pipeline", key="gate 2")
    assert registry.set_champion(1, None, "pipeline", key="gate 1") == first
    assert registry.alias() == 2
    assert len(registry.history()) == 2


def test_a_refused_version_becomes_champion_only_after_an_approval(
    registry: Registry, checkpoints: list[Artifact]
) -> None:
    registry.register(checkpoints[0])
    refused = registry.refuse(1, "Dr No", "misses effusions")
    assert refused.decision is not None
    assert (refused.decision.decision, refused.decision.who) == ("refuse", "Dr No")
    with pytest.raises(UserError, match="version 1 was refused by Dr No: approve it first"):
        registry.set_champion(1, None, "pipeline")
    approved = registry.approve(1, "Dr Yes")
    assert [one.decision for one in approved.decisions] == ["refuse", "approve"]
    assert registry.set_champion(1, None, "pipeline").version == 1


def test_a_decision_names_who_and_a_refusal_why(registry: Registry, checkpoints: list[Artifact]) -> None:
    registry.register(checkpoints[0])
    with pytest.raises(UserError, match="nobody says it"):
        registry.approve(1, " ")
    with pytest.raises(UserError, match="version 1 is not refused: say why"):
        registry.refuse(1, "Dr No", "")
    with pytest.raises(UserError, match="at most 200"):
        registry.approve(1, "Dr No", "x" * 201)
    with pytest.raises(UserError, match="has no version 2: it has 1"):
        registry.refuse(2, "Dr No", "absent")
    with pytest.raises(UserError, match="has no version 1: it has none"):
        Registry(registry.tracking_uri, "other").approve(1, "Dr No")
    assert registry.version(1).decision is None


def test_an_alias_moved_by_hand_changes_no_champion_and_is_put_right_by_the_next_promotion(
    registry: Registry, checkpoints: list[Artifact]
) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(registry.tracking_uri)
    for each in checkpoints[:3]:
        registry.register(each)
    registry.set_champion(1, None, "pipeline")
    client.set_registered_model_alias("unirg", "champion", "3")
    client.create_model_version("unirg", "file:///by/hand")
    client.create_model_version("unirg-champions", "file:///by/hand")
    champion = registry.champion()
    assert champion is not None
    assert (champion.number, registry.alias()) == (1, 3)
    assert [one.number for one in registry.versions()] == [1, 2, 3]
    registry.set_champion(2, 1, "pipeline")
    assert registry.alias() == 2


def test_eight_processes_that_register_one_checkpoint_in_an_empty_database_make_one_version(
    empty_database: str, checkpoints: list[Artifact]
) -> None:
    assert together("register", empty_database, checkpoints[0].uri) == [1] * 8
    assert [one.number for one in Registry(empty_database).versions()] == [1]


def test_eight_processes_that_register_their_own_lose_none(
    registry: Registry, checkpoints: list[Artifact]
) -> None:
    numbers = together("register", registry.tracking_uri, uris(checkpoints))
    assert sorted(numbers) == list(range(1, 9))
    by_number = {one.number: one.digest for one in registry.versions()}
    assert [by_number[number] for number in numbers] == [each.digest for each in checkpoints]


def test_of_eight_processes_that_promote_over_the_same_champion_one_does(
    registry: Registry, checkpoints: list[Artifact]
) -> None:
    for each in checkpoints:
        registry.register(each)
    told = together("promote", registry.tracking_uri)
    assert sorted(told)[1:] == ["outdated"] * 7
    (promotion,) = registry.history()
    assert f"{promotion.number}: {promotion.version} by {promotion.who}" in told
    assert registry.alias() == promotion.version


def test_eight_processes_that_promote_for_one_verdict_make_one_promotion(
    registry: Registry, checkpoints: list[Artifact]
) -> None:
    registry.register(checkpoints[0])
    assert len(set(together("promote", registry.tracking_uri, "gate 1"))) == 1
    assert len(registry.history()) == 1


def test_eight_persons_who_decide_at_once_are_all_heard(
    registry: Registry, checkpoints: list[Artifact]
) -> None:
    registry.register(checkpoints[0])
    assert sorted(together("approve", registry.tracking_uri)) == list(range(1, 9))
    assert {one.who for one in registry.version(1).decisions} == {f"person {number}" for number in range(8)}


def test_a_cycle_killed_at_any_step_ends_as_one_that_was_not(
    registry: Registry, checkpoints: list[Artifact]
) -> None:
    kills = killed("cycle", registry.tracking_uri, uris(checkpoints[:2]), "model-{step}")
    assert kills == 9
    for step in range(kills):
        left = Registry(registry.tracking_uri, f"model-{step}")
        assert [one.digest for one in left.versions()] == [each.digest for each in checkpoints[:2]], step
        assert shown(left) == [(1, None, "first cycle"), (2, 1, "second cycle")], step
        assert left.alias() == 2, step
        assert [one.who for one in left.version(2).decisions] == ["Dr No"], step


def test_the_registry_is_imported_without_mlflow() -> None:
    import subprocess
    import sys

    script = "import sys, unirg.lifecycle.registry; sys.exit('mlflow' in sys.modules)"
    place = Path(registries.__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", script], cwd=place, check=False).returncode == 0
