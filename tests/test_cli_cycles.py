"""`unirg cycles`: a cycle that cannot go on is ended by a person, and the next run begins another."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from unirg import artifact, journal
from unirg.cli import app
from unirg.config import Config
from unirg.errors import UserError
from unirg.lifecycle.cycle import Begin, Cycle, Cycles, End


@pytest.fixture
def store(tmp_path: Path) -> str:
    return str(tmp_path / "store")


@pytest.fixture
def cohort(store: str) -> str:
    with artifact.draft(store, "cohort", 1, Config(), {}) as draft:
        (draft.out / "index.json").write_text("{}")
        return draft.commit({}).uri


def begun(store: str, cohort: str, run: str) -> Cycle:
    def start(last: Cycle | None) -> Begin:
        ended = last and last.ended()
        used = ended.cohort if ended else cohort
        return Begin(number=last.number + 1 if last else 1, run=run, champion=1, checkpoint="c", cohort=used)

    return Cycles(store).open(run, 3600, start)


def call(store: str, *words: str) -> str:
    found = CliRunner().invoke(app, ["cycles", *words, "--store", store], catch_exceptions=False)
    assert found.exit_code == 0, found.output
    return found.output


def test_an_abandoned_cycle_makes_room_for_the_next(store: str, cohort: str) -> None:
    begun(store, cohort, "a")
    assert "a  open" in call(store, "list")
    call(store, "abandon", "1", "--why", "its increment was removed", "--who", "Ada")
    assert "a  abandoned: its increment was removed" in call(store, "list")
    last = [entry for entry in journal.read(store) if entry.action == "abandon"]
    assert [(one.actor, one.note, one.subjects["cycle"]) for one in last] == [
        ("Ada", "its increment was removed", "1")
    ]
    second = begun(store, "unused", "b")
    assert (second.number, second.begin.cohort) == (2, cohort)


def test_only_the_open_cycle_can_be_abandoned(store: str, cohort: str) -> None:
    cycle = begun(store, cohort, "a")
    with pytest.raises(UserError, match="cycle 2 is not the last one"):
        call(store, "abandon", "2", "--why", "x")
    cycle.end(End(outcome="kept", why="worse", cohort=cohort))
    with pytest.raises(UserError, match=r"cycle 1 has ended \(kept\)"):
        call(store, "abandon", "1", "--why", "x")
    assert [entry.action for entry in journal.read(store) if entry.action == "abandon"] == []


def test_a_cohort_that_is_gone_is_told_with_the_remedy(store: str, cohort: str) -> None:
    cycle = begun(store, f"{cohort}0", "a")
    with pytest.raises(UserError, match="--cohort"):
        call(store, "abandon", "1", "--why", "its cohort was removed")
    assert cycle.ended() is None
    call(store, "abandon", "1", "--why", "its cohort was removed", "--cohort", cohort)
    assert begun(store, "unused", "b").begin.cohort == cohort
