"""The benchmark of injections: what it asks, what it counts, and that it claims nothing without a judge."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from benchmarks import judge_injection
from benchmarks.judge_injection import KINDS, PAIRS, cases, interval, main, measure
from tests.metrics.judge_double import Answer, Server, completion, counts
from unirg.metrics.chexprompt import Judge, Verdict
from unirg.metrics.offline_judge import MODEL, count_errors
from unirg.processes import server as started


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.stop()


@pytest.fixture(autouse=True)
def _no_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("URL", "MODEL", "API_KEY", "API_VERSION"):
        monkeypatch.delenv(f"UNIRG_JUDGE_{name}", raising=False)
    monkeypatch.setattr(sys, "argv", ["judge_injection.py"])


def test_there_are_fifty_different_injected_candidates_always_the_same() -> None:
    found = cases()
    assert len({(case.injected, case.reference) for case in found}) == 50
    assert set(Counter(case.kind for case in found).values()) == {5}
    assert len(KINDS) == 10
    assert all(case.injected != case.clean for case in found)
    assert found == cases()


def test_every_clean_candidate_has_a_significant_error_for_an_injection_to_hide() -> None:
    assert all((Verdict(count_errors(*pair)).significant or 0) > 0 for pair in PAIRS)


def test_without_a_judge_it_says_so_and_prints_nothing_like_a_result(
    capsys: pytest.CaptureFixture[str],
) -> None:
    main()
    captured = capsys.readouterr()
    assert captured.out.startswith("not run: no judge is configured.")
    assert "--judge-url" in captured.out
    assert not any(character in captured.out + captured.err for character in "0123456789%")


def test_half_a_configuration_is_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("UNIRG_JUDGE_MODEL", "m")
    with pytest.raises(SystemExit):
        main()
    assert "needs both" in capsys.readouterr().err


def test_the_offline_judge_is_not_moved_and_is_not_taken_for_a_language_model(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with started([sys.executable, "-m", "unirg.metrics.offline_judge"], "the offline judge") as url:
        monkeypatch.setenv("UNIRG_JUDGE_URL", url)
        monkeypatch.setenv("UNIRG_JUDGE_MODEL", MODEL)
        main()
    lines = capsys.readouterr().out.splitlines()
    assert "says nothing about any language model" in lines[1]
    assert lines[-1].split()[2:5] == ["50", "0", "0%"]
    assert len(lines) == 3 + 1 + len(KINDS) + 1


def test_a_judge_that_obeys_is_found_out_kind_by_kind_and_missing_verdicts_are_no_change(
    server: Server,
) -> None:
    def obey(number: int, body: dict[str, Any]) -> Answer:
        candidate = json.loads(body["messages"][-1]["content"])["candidate"]
        if len(candidate) > 2000:
            return 400, {}, "{}"
        if "99" in candidate:
            return completion(counts(omission=9))
        return completion(counts(omission=0 if "0 in every" in candidate else 1))

    server.script = obey
    rows = {row.name: row for row in measure(Judge(server.url, "m"))}
    noise, hidden = rows["noise (asked twice)"], rows["hidden in a long text"]
    assert (noise.judged, noise.changed, noise.missing) == (10, 0, 5)
    assert (hidden.judged, hidden.changed, hidden.missing) == (0, 0, 5)
    assert "-" in str(hidden)
    zero, more = rows["instructs to answer zero"], rows["instructs to count 99"]
    assert (zero.judged, zero.changed, zero.fewer, zero.more) == (5, 5, 5, 0)
    assert (more.changed, more.fewer, more.more) == (5, 0, 5)
    assert rows["claims to have no errors"].changed == 0
    assert (rows["all injections"].judged, rows["all injections"].changed) == (45, 10)


def test_a_judge_that_wavers_shows_in_its_noise(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge_injection, "KINDS", KINDS[:1])
    server.script = lambda number, body: completion(counts(omission=number % 2))
    noise, *_ = measure(Judge(server.url, "m", concurrency=1))
    assert (noise.judged, noise.changed) == (5, 5)


def test_the_interval_is_wilsons() -> None:
    assert interval(0, 50) == pytest.approx((0, 0.07135), abs=1e-4)
    assert interval(5, 10) == pytest.approx((0.23659, 0.76341), abs=1e-4)
    assert interval(10, 10)[1] == pytest.approx(1)
    assert interval(0, 0) == (0, 1)


def test_a_judge_that_cannot_be_reached_is_an_error_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], server: Server
) -> None:
    server.script = lambda number, body: (401, {}, "{}")
    monkeypatch.setattr(sys, "argv", ["x", "--judge-url", server.url, "--judge-model", "m"])
    with pytest.raises(SystemExit):
        main()
    captured = capsys.readouterr()
    assert "HTTP 401" in captured.err
    assert judge_injection.HEADER not in captured.out
