"""Whoever was killed or came between, the endpoint ends with what the registry says, and without a canary."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kubernetes import Server
from tests.lifecycle.hospital import served
from tests.lifecycle.stores import cohort
from tests.serving.kserve import KServe, make_checkpoint
from unirg import config, journal
from unirg.artifact import Artifact
from unirg.lifecycle.promote import (
    ROLLBACK,
    Decided,
    Production,
    PromoteConfig,
    Promoted,
    finish,
    promote,
    roll_back,
)
from unirg.lifecycle.registry import Registry
from unirg.scoring.archive import ScoreConfig
from unirg.serving import rollout
from unirg.serving.endpoint import ServeConfig
from unirg.serving.rollout import InferenceServiceEndpoint


class Place:
    """Three versions, of which the first is champion and served."""

    def __init__(self, store: str, tracking_uri: str, kserve: KServe) -> None:
        self.store, self.kserve, self.registry = store, kserve, Registry(tracking_uri)
        cluster = {"service": "cxr", "namespace": "unirg", "ready_timeout_s": 20.0}
        serving = config.load(ServeConfig, model_name="unirg", cluster=cluster)
        asked = cohort(store, [("s10", "test")])
        self.production = Production(serving, ScoreConfig(), asked, store)
        self.models = [make_checkpoint(store, seed) for seed in range(3)]
        for model in self.models:
            self.registry.register(model)
        self.registry.set_champion(1, None, "Ada", "", "first")
        finish(self.registry, self.production)

    def endpoint(self, version: int) -> InferenceServiceEndpoint:
        made = self.production.endpoint(self.model(version))
        assert isinstance(made, InferenceServiceEndpoint)
        return made

    def model(self, version: int) -> Artifact:
        return self.models[version - 1]

    def promote(self, version: int, expected: int, key: str) -> Promoted:
        decided = Decided(True, expected, key, "", "Ada")
        return promote(
            PromoteConfig(), self.registry, self.registry.version(version), decided, self.production
        )

    def serves(self) -> int:
        """The version that everybody gets; fails while another is tried."""
        digest = served(self.kserve)
        return next(at for at, model in enumerate(self.models, 1) if model.digest == digest)

    def changes(self) -> list[tuple[str, str]]:
        """(action, version) that the audit has of the champion."""
        return [
            (entry.action, entry.subjects["version"])
            for entry in journal.read(self.store)
            if "change" in entry.subjects and "registry" in entry.subjects
        ]


@pytest.fixture
def place(tmp_path: Path, tracking_uri: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    monkeypatch.setattr(rollout, "POLL_S", 0.02)
    monkeypatch.setattr(rollout, "storage_uri", lambda model: f"s3://models/{model.digest}/model")
    with Server().running() as server:
        kubeconfig = server.kubeconfig(tmp_path / "kubeconfig")
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
        kserve = KServe(kubeconfig)
        with kserve.at_work():
            yield Place(str(tmp_path / "store"), tracking_uri, kserve)


def test_a_rollback_that_is_repeated_does_not_bring_back_what_was_rolled_back(place: Place) -> None:
    place.registry.set_champion(2, 1, "Ada", "", "second")
    finish(place.registry, place.production)
    assert place.serves() == 2
    first = place.registry.set_champion(1, 2, "Ada", "worse", f"{ROLLBACK}2")
    assert place.serves() == 2  # killed before the endpoint had it
    for _ in range(2):
        assert roll_back(place.registry, place.production, "worse", "Ada") == first
        assert place.serves() == 1
    assert place.changes() == [("promote", "1"), ("promote", "2"), ("rollback", "1")]


def test_a_rollback_takes_out_the_canary_of_a_promotion_that_was_killed(place: Place) -> None:
    place.endpoint(2).begin(10)
    place.registry.set_champion(2, 1, "Ada", "", "cycle 1")
    roll_back(place.registry, place.production, "worse", "Ada")
    assert place.serves() == 1
    # The cycle goes on, and finds that somebody came later.
    assert place.promote(2, 1, "cycle 1").outcome == "promoted"
    assert place.serves() == 1
    assert sorted(place.changes()) == [("promote", "1"), ("promote", "2"), ("rollback", "1")]


def test_a_model_that_is_refused_during_its_trial_is_no_canary_any_more(place: Place) -> None:
    place.endpoint(2).begin(10)
    place.registry.refuse(2, "Bea", "misses effusions")
    assert place.promote(2, 1, "cycle 1").outcome == "kept"
    assert place.serves() == 1


def test_a_cycle_with_another_challenger_serves_the_one_that_it_promoted(place: Place) -> None:
    place.endpoint(2).begin(10)
    place.registry.set_champion(2, 1, "Ada", "", "cycle 1")
    found = place.promote(3, 1, "cycle 1")
    assert (found.outcome, place.registry.history()[-1].version) == ("superseded", 2)
    assert place.serves() == 2


def test_a_canary_that_another_made_everybodys_model_is_not_taken_back(place: Place) -> None:
    second = place.endpoint(2)
    second.begin(10)
    second.wait()
    second.promote()
    second.roll_back(only_canary=True)
    assert place.serves() == 2
