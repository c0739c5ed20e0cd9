"""A cycle that is killed at every stage, and two that begin at once: one piece of work, one promotion."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests import runs
from tests.lifecycle import hospital as hospitals
from tests.lifecycle import lives
from tests.lifecycle.arrivals import SITE_KEY, drawn
from tests.lifecycle.hospital import Hospital, Wards, even, served
from tests.serving.kserve import KServe
from unirg import journal
from unirg.journal import Entry
from unirg.lifecycle import store
from unirg.lifecycle.cycle import Cycles, End

pytestmark = pytest.mark.timeout(900)
STUDIES, NEW = 90, 12
COMPARED = ("cohort", "sft", "serve", "evaluate", "gate")
"""Stages whose artifacts hold no times; their keys know where the deliveries lay, and when."""
Place = tuple[Hospital, Wards, KServe]


def opened(stack: ExitStack, folder: Path, tracking_uri: str, monkeypatch: pytest.MonkeyPatch) -> Place:
    """A hospital with a bad champion, and a delivery from which a good challenger will come."""
    monkeypatch.setenv("UNIRG_SITE_KEY", SITE_KEY)
    monkeypatch.setenv("UNIRG_ACTOR", "the scheduler")
    folder.mkdir()

    def leads(kubeconfig: Path) -> None:
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig))

    found = stack.enter_context(hospitals.hospital(folder, tracking_uri, leads))
    found[0].prepare(drawn(STUDIES))
    found[0].site.deliver("d1", drawn(NEW, seed=1))
    found[1].next = even(1.0)
    return found


@pytest.fixture
def place(tmp_path: Path, tracking_uri: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    with ExitStack() as stack:
        yield opened(stack, tmp_path / "hospital", tracking_uri, monkeypatch)


def _what(entry: Entry) -> tuple[str, str, str]:
    """What an entry of the audit is about; nothing is recorded twice."""
    about = entry.subjects
    where = about.get("service", about.get("registry", ""))
    return entry.action, where, about.get("artifact", about.get("change", about.get("decision", "")))


def ended(place: Place) -> End:
    """How the one cycle ended, once all is seen to be as one undisturbed run leaves it."""
    hospital, _, kserve = place
    (cycle,) = Cycles(hospital.store).all()
    end = cycle.ended()
    assert end is not None
    assert end.outcome == "promoted", end
    assert [one.version for one in hospital.registry.history()] == [1, 2]
    assert hospital.champion() == 2
    assert served(kserve) == hospital.registry.version(2).digest
    assert hospital.anchored() == []
    done = Counter(_what(entry) for entry in journal.read(hospital.store))
    assert [one for one, count in done.items() if count > 1] == []
    told = [run for run in store.runs(hospital.tracking_uri, "retrain") if run.status != "FINISHED"]
    assert told == []
    runs.assert_nothing_half_written(Path(hospital.store))
    return end


def digests(hospital: Hospital) -> list[tuple[str, str]]:
    """(stage, content) of what was made."""
    found = ((name.split("/")[0], digest) for name, digest in runs.digests(Path(hospital.store)).items())
    return sorted(one for one in found if one[0] in COMPARED)


@pytest.mark.parametrize(
    ("tracking_uri", "which"),
    [
        ("sqlite", "few"),
        *(pytest.param(database, "all", marks=pytest.mark.soak) for database in ("sqlite", "postgresql")),
    ],
    indirect=["tracking_uri"],
)
def test_a_cycle_that_is_killed_at_every_stage_ends_as_an_undisturbed_one(
    place: Place, which: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hospital = place[0]
    died = lives.killed(hospital, which)
    for stage in ("watch", "cohort", "weights", "sft", "serve", "score", "evaluate", "gate", "report"):
        assert any(name.startswith(f"before commit {stage} ") for name in died), died
        if which == "few":  # else the life dies within the commit, and the next one finds it done
            assert any(name.startswith(f"after commit {stage} ") for name in died), died
    for what in ("replace with a canary", "create_model_version", "replace without a canary", "end.json"):
        assert any(name.startswith("before") and what in name for name in died), died
        assert any(name.startswith("after") and what in name for name in died), died
    end = ended(place)
    with ExitStack() as stack:
        own = f"sqlite:///{tmp_path}/undisturbed.db"
        undisturbed = opened(stack, tmp_path / "undisturbed", own, monkeypatch)
        assert undisturbed[0].run("week") is not None
        other = ended(undisturbed)
        assert (end.outcome, end.version) == (other.outcome, other.version)
        assert digests(hospital) == digests(undisturbed[0])


def test_of_two_schedulers_at_once_one_does_the_work(place: Place) -> None:
    hospital = place[0]
    assert os.environ["UNIRG_ACTOR"] == "the scheduler"
    said = lives.together(hospital, "a", "b")
    assert sum("Executing task" in one and "'gate'" in one for one in said) == 1, said
    (idle,) = (one for one in said if "is at work on cycle 1" in one)
    assert "'grow'" not in idle
    ended(place)
    # The one that came too late finds nothing to do when it comes again.
    assert (hospital.run("b") or End(outcome="kept", why="", cohort="")).outcome == "nothing new"
