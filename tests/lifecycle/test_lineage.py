"""Lineage: every artifact behind which a withdrawn study stands is listed, and whether a model learned it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.lifecycle.stores import cohort, made, put_shard
from unirg import storage
from unirg.artifact import ArtifactError
from unirg.cohort.withdrawal import Withdrawn, withdraw
from unirg.errors import UserError
from unirg.lifecycle.lineage import Lineage, lineage
from unirg.lifecycle.retention import gc

TRAIN = [("s10", "train"), ("s11", "train"), ("s20", "train")]
TEST = [("s30", "test"), ("s31", "test")]


def world(store: str) -> dict[str, str]:
    """A training run over one cohort, an archive of another scored with its policy; URIs by name."""
    first, second = cohort(store, TRAIN, TEST), cohort(store, [("s40", "test"), ("s50", "test")])
    base = made(store, "base", {"cohort": first})
    hub = made(store, "base", {"cohort": first}, source="hub")
    sft = made(store, "sft", {"cohort": first, "parent": base, "prompts": "3"})
    grpo = made(store, "grpo", {"cohort": first, "parent": sft, "weights": made(store, "weights", {})})
    served = made(store, "serve", {"checkpoint": grpo})
    score = made(store, "score", {"cohort": second, "model": grpo.digest})
    stock = made(store, "score", {"cohort": second, "model": hub.digest}, name="stock")
    evaluation = made(store, "evaluate", {"cohort": second, "predictions:grpo": score})
    found = {"first": first, "second": second, "base": base, "hub": hub, "sft": sft, "grpo": grpo}
    found |= {"serve": served, "score": score, "stock": stock, "evaluate": evaluation}
    return {name: one.uri for name, one in found.items()}


def shown(found: Lineage, names: dict[str, str]) -> dict[str, tuple[int, int]]:
    """Name -> (studies learned, studies held), in the order of the lineage."""
    by_uri = {uri: name for name, uri in names.items()}
    return {by_uri[one.uri]: (len(one.learned), len(one.held)) for one in found.reached}


def test_a_study_of_the_training_split_is_traced_to_every_model_that_learned_it(store: str) -> None:
    names = world(store)
    found = lineage(store, Withdrawn.of(["phantom/s10"]))
    assert shown(found, names) == {
        "first": (0, 1),
        "base": (1, 1),
        "hub": (0, 1),
        "sft": (1, 1),
        "grpo": (1, 1),
        "serve": (1, 1),
        "score": (1, 1),
        "stock": (0, 1),
        "evaluate": (1, 1),
    }
    assert found.reached[0].stage == "cohort"
    assert found.unknown == ()
    assert {study for one in found.reached for study in one.held} == {"phantom/s10"}


def test_a_study_of_another_split_was_held_and_not_learned(tmp_path: Path) -> None:
    names = world(str(tmp_path))
    found = shown(lineage(str(tmp_path), Withdrawn.of(["phantom/s30"])), names)
    assert found["sft"] == found["grpo"] == found["score"] == (0, 1)


def test_a_scored_study_reaches_the_predictions_but_no_model(tmp_path: Path) -> None:
    names = world(str(tmp_path))
    found = shown(lineage(str(tmp_path), Withdrawn.of(["phantom/s40"])), names)
    assert found == {"second": (0, 1), "score": (0, 1), "stock": (0, 1), "evaluate": (0, 1)}


def test_a_patient_is_traced_with_all_studies(tmp_path: Path) -> None:
    names = world(str(tmp_path))
    found = shown(lineage(str(tmp_path), Withdrawn.of(patients=["phantom/p1", "phantom/p3"])), names)
    assert found["grpo"] == (2, 4)


def test_nobody_withdrawn_reaches_nothing(tmp_path: Path) -> None:
    world(str(tmp_path))
    assert lineage(str(tmp_path), Withdrawn()).reached == ()
    assert lineage(str(tmp_path), Withdrawn.of(["iu_xray/s10"])).reached == ()


def test_models_are_still_named_after_their_cohort_was_dropped(store: str) -> None:
    names = world(store)
    one, later = Withdrawn.of(["phantom/s10"]), Withdrawn.of(["phantom/s20"])
    before = [shown(lineage(store, asked), names) for asked in (one, later)]
    withdraw(store, ["phantom/s10"])
    assert gc(store, drop_withdrawn=True).cohorts == [names["first"]]
    for asked, was in zip((one, later), before, strict=True):
        del was["first"]
        assert shown(lineage(store, asked), names) == was


def test_a_parent_in_another_store_is_followed(tmp_path: Path) -> None:
    here, there = str(tmp_path / "here"), str(tmp_path / "there")
    base = made(there, "base", {"cohort": cohort(there, TRAIN)})
    sft = made(here, "sft", {"cohort": cohort(here, TEST), "parent": base})
    (found,) = lineage(here, Withdrawn.of(["phantom/s10"])).reached
    assert (found.uri, len(found.learned)) == (sft.uri, 1)


def test_what_cannot_be_followed_is_named(tmp_path: Path) -> None:
    here, there = str(tmp_path / "here"), tmp_path / "there"
    base = made(str(there), "base", {"cohort": cohort(str(there), TRAIN)})
    made(here, "sft", {"cohort": cohort(here, TEST), "parent": base})
    made(here, "score", {"cohort": cohort(here, TEST), "model": "f00d" * 16})
    there.rename(tmp_path / "gone")
    assert lineage(here, Withdrawn.of(["phantom/s10"])).unknown == (base.uri, "model f00df00df00df00d")


def test_a_missing_shard_and_a_damaged_roll_are_named_rather_than_passed_over(tmp_path: Path) -> None:
    store = str(tmp_path)
    cohort(store, TRAIN)
    shard = put_shard(store, TRAIN)
    path = tmp_path / shard.name
    whole = path.read_bytes()
    path.write_bytes(whole[:100])
    with pytest.raises(ArtifactError, match=f"{shard.sha256}.parquet is damaged"):
        lineage(store, Withdrawn.of(["phantom/s10"]))
    path.unlink()
    with pytest.raises(ArtifactError, match=f"{shard.sha256}.parquet is missing"):
        lineage(store, Withdrawn.of(["phantom/s10"]))
    path.write_bytes(whole)
    storage.put_new(f"{store}/dropped/0123.parquet", b"PAR1")
    with pytest.raises(UserError, match=r"dropped/0123\.parquet is damaged"):
        lineage(store, Withdrawn.of(["phantom/s10"]))


def test_no_store_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no store at"):
        lineage(str(tmp_path / "nowhere"), Withdrawn())
