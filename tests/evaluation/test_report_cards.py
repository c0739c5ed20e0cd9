"""Cards: what manifests say of a model's making, and what they no longer can."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.evaluation.worlds import World
from unirg import artifact
from unirg.artifact import Artifact
from unirg.cohort.reader import Cohort
from unirg.config import Config
from unirg.evaluation.report.cards import cards


class Recipe(Config):
    """Settings of a run, as the trainers' own have them."""

    source: str = "toy"
    """The model of stage base."""
    seed: int = 0
    """A setting that cards show, though it is zero."""
    rewards: dict[str, float] | None = None
    """Of stage grpo."""
    threads: int = 1
    """A setting that no card shows."""


def made(store: Path, stage: str, counts: dict[str, int], parent: Artifact | None, **config: Any) -> Artifact:
    inputs: dict[str, Artifact | str] = {"parent": parent} if parent else {}
    with artifact.draft(str(store), stage, 1, Recipe(**config), inputs) as draft:
        (draft.out / "weights").write_text(f"{stage} {config}")
        return draft.commit(counts)


@pytest.fixture
def chain(tmp_path: Path) -> list[Artifact]:
    """A base model, its fine-tuning, and reinforcement learning after it."""
    base = made(tmp_path / "store", "base", {"parameters": 526016}, None)
    sft = made(tmp_path / "store", "sft", {"steps": 640, "studies": 1277}, base, seed=7)
    return [base, sft, made(tmp_path / "store", "grpo", {"steps": 20}, sft, rewards={"bleu2": 1.0})]


def test_a_model_is_told_by_its_lineage_from_the_base_on(chain: list[Artifact], world: World) -> None:
    base, sft, grpo = chain
    cohort = world.fill(2).cohort()
    greedy = world.predictions("greedy", cohort, world.answers(1.0), model=grpo)
    sampled = world.predictions("sampled", cohort, world.answers(0.5), model=grpo)
    given = {"rl": greedy, "rl, sampled": sampled, "other": world.predictions("other", cohort, {})}
    found = cards(grpo, None, given, {"rl": grpo}, list(given))
    (model,) = found["models"]
    assert (model["systems"], model["base"], model["parameters"]) == (["rl", "rl, sampled"], "toy", 526016)
    assert model["stages"] == [
        {"stage": "base", "digest": base.digest, "seed": 0},
        {"stage": "sft", "digest": sft.digest, "steps": 640, "studies": 1277, "seed": 7},
        {"stage": "grpo", "digest": grpo.digest, "steps": 20, "seed": 0, "rewards": {"bleu2": 1.0}},
    ]
    assert found["unknown"] == ["other"]
    assert (found["data"], found["measures"]) == (None, {})


def test_a_stage_that_is_gone_is_named_by_its_digest_and_ends_what_is_known(chain: list[Artifact]) -> None:
    _, sft, grpo = chain
    shutil.rmtree(sft.uri)
    (model,) = cards(grpo, None, {}, {"rl": grpo}, ["rl"])["models"]
    assert (model["base"], model["parameters"]) == (None, None)
    assert [(stage["stage"], stage["digest"]) for stage in model["stages"]] == [
        (None, sft.digest),
        ("grpo", grpo.digest),
    ]


def test_places_of_the_cohort_stand_with_their_studies_the_largest_first(world: World, chain: Any) -> None:
    world.add("lone", "test", "normal", place="south")
    cohort = world.fill(4).cohort()
    data = cards(chain[0], Cohort.open(cohort), {}, {}, [])["data"]
    assert [(place["institution"], place["studies"]) for place in data["places"]] == [
        ("north", {"test": 4, "train": 8}),
        ("harbour", {"zero_shot": 8}),
        ("south", {"test": 5}),
    ]
    assert data["hold_out"] == ["harbour"]
