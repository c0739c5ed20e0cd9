"""A year of a hospital in some weeks: the champion changes exactly when it should."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lifecycle import hospital as hospitals
from tests.lifecycle.arrivals import SITE_KEY, drawn
from tests.lifecycle.hospital import (
    FIRST,
    WEEKLY,
    Hospital,
    Wards,
    even,
    served,
    worse_for_the_old,
)
from tests.serving.kserve import KServe
from unirg.artifact import open_artifact
from unirg.lifecycle import gate, store

pytestmark = pytest.mark.timeout(600)


@pytest.fixture
def place(
    tmp_path: Path, tracking_uri: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Hospital, Wards, KServe]]:
    monkeypatch.setenv("UNIRG_SITE_KEY", SITE_KEY)
    monkeypatch.setenv("UNIRG_ACTOR", "the scheduler")

    def leads(kubeconfig: Path) -> None:
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig))

    with hospitals.hospital(tmp_path, tracking_uri, leads) as found:
        found[0].prepare(drawn(FIRST))
        yield found


def test_the_champion_changes_exactly_when_it_should(place: tuple[Hospital, Wards, KServe]) -> None:
    hospital, wards, kserve = place

    def cycle(run: str, outcome: str, champion: int) -> str:
        end = hospital.run(run)
        assert end is not None
        assert (end.outcome, hospital.champion()) == (outcome, champion), end
        found = hospital.registry.champion()
        assert found is not None
        assert served(kserve) == found.digest
        assert hospital.anchored() == []
        return end.verdict

    # New data, and a challenger that is no better.
    hospital.site.deliver("d1", drawn(WEEKLY, seed=1))
    verdict = gate.read(open_artifact(cycle("week-1", "kept", 1)))
    assert [rule["kind"] for rule in verdict["rules"] if rule["passed"] is False] == ["primary"]
    # Nothing arrives.
    trained = len(hospital.registry.versions())
    cycle("week-2", "nothing new", 1)
    # The same delivery once more.
    hospital.site.deliver("d3", drawn(WEEKLY, seed=1))
    cycle("week-3", "nothing new", 1)
    assert len(hospital.registry.versions()) == trained
    # A better one.
    hospital.site.deliver("d4", drawn(WEEKLY, seed=2))
    wards.next = even(0.5)
    cycle("week-4", "promoted", 3)
    # One that is better for most, and worse for some.
    hospital.site.deliver("d5", drawn(WEEKLY, seed=3))
    wards.next = worse_for_the_old(1.0)
    verdict = gate.read(open_artifact(cycle("week-5", "kept", 3)))
    (primary,) = (rule for rule in verdict["rules"] if rule["kind"] == "primary")
    assert primary["passed"], primary["sentence"]
    failed = {rule["name"]: rule["failed_by"] for rule in verdict["rules"] if rule["passed"] is False}
    assert all(name.startswith("age 65-79") and by > 0 for name, by in failed.items()), failed
    # A better one that cannot answer.
    hospital.site.deliver("d6", drawn(WEEKLY, seed=4))
    wards.next, wards.broken = even(1.0), True
    cycle("week-6", "rolled back", 3)
    runs = [run for run in store.runs(hospital.tracking_uri, "retrain") if not run.parent_id]
    assert [(run.name, run.tags["outcome"]) for run in reversed(runs)] == [
        ("retrain-1", "kept"),
        ("retrain-2", "nothing new"),
        ("retrain-3", "nothing new"),
        ("retrain-4", "promoted"),
        ("retrain-5", "kept"),
        ("retrain-6", "rolled back"),
    ]
    # Two champions, of whom the second came to the service by a canary; the last challenger left it again.
    assert [hospital.actions().count(one) for one in ("promote", "rollback")] == [3, 2]
