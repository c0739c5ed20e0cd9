"""The engine over scorers that count what is asked of them: nothing twice, nothing lost, nothing hidden."""

from __future__ import annotations

import math
import threading
import tracemalloc
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unirg.errors import UserError
from unirg.metrics import catalog, engine, radcliq
from unirg.metrics.bleu import bleu
from unirg.metrics.catalog import CATALOG
from unirg.metrics.chexprompt import CATEGORIES, Errors, Judge, Verdict
from unirg.metrics.engine import Engine
from unirg.metrics.reader import ENTRY, Recent
from unirg.metrics.scorer import Pair, Row
from unirg.metrics.verdicts import scores
from unirg.telemetry import Progress


class Counting:
    """A scorer that reads a text's length and counts every call."""

    def __init__(self, name: str, kept: Literal["texts", "pairs"] = "texts", identity: str = "1") -> None:
        self.name, self.kept, self.identity = name, kept, identity
        self.scores = tuple(score.name for score in CATALOG.values() if score.scorer == name)
        self.read_texts: Counter[str] = Counter()
        self.compared: Counter[Pair] = Counter()
        self.bytes = 100
        self.gives: dict[str, float] = {}

    def read(self, texts: Sequence[str]) -> list[Any]:
        assert texts, "an empty batch"
        self.read_texts.update(texts)
        return [(text, bytes(self.bytes)) for text in texts]

    def compare(self, candidates: Sequence[Any], references: Sequence[Any]) -> list[Row]:
        pairs = [(a, b) for (a, _), (b, _) in zip(candidates, references, strict=True)]
        self.compared.update(pairs)
        return [{name: self.value(*pair) for name in self.scores} for pair in pairs]

    def value(self, candidate: str, reference: str) -> float:
        return self.gives.get(candidate, len(candidate) / (1 + len(candidate) + len(reference)))

    def pack(self, feature: Any) -> bytes:
        return feature[0].encode()

    def unpack(self, data: bytes) -> Any:
        return data.decode(), bytes(self.bytes)

    def size(self, feature: Any) -> int:
        return self.bytes


Scorers = dict[str, Counting]


@pytest.fixture
def scorers(monkeypatch: pytest.MonkeyPatch) -> Scorers:
    """The scorers that engines load, in place of those with models."""
    kept: dict[str, Literal["texts", "pairs"]] = {"bertscore": "pairs", "ratescore": "pairs"}
    made = {name: Counting(name, kept.get(name, "texts")) for name in catalog.scorers(CATALOG)}
    monkeypatch.setattr(engine, "_loaded", lambda name, directory, compute: made[name])
    return made


class Counts(Judge):
    """A judge that counts the candidate's words as omissions, and what it is asked."""

    def __init__(self) -> None:
        super().__init__("http://127.0.0.1:9/v1", "counts")
        self.asked: list[Pair] = []
        self.silent: set[str] = set()
        self.before: Any = lambda: None

    def score(self, pairs: Sequence[Pair]) -> list[Verdict]:
        self.before()
        self.asked += pairs
        return [self._verdict(candidate) for candidate, _ in pairs]

    def _verdict(self, candidate: str) -> Verdict:
        if candidate in self.silent:
            return Verdict(None, "HTTP 500")
        none = {"significant": 0, "insignificant": 0}
        counts = dict.fromkeys(CATEGORIES, none) | {
            "omission": {"significant": len(candidate.split()), "insignificant": 1}
        }
        return Verdict(Errors.model_validate(counts))


PAIRS = [("heart large", "heart normal"), ("clear", "clear lungs"), ("heart large", "clear lungs"), ("", "x")]
EVERY = list(CATALOG)


def test_every_score_asked_for_is_in_exactly_one_of_values_and_missing(scorers: Scorers) -> None:
    scorers["bertscore"].gives["clear"] = math.nan
    for judge in (None, Counts()):
        for scored in Engine(EVERY, judge=judge).score(PAIRS):
            assert sorted([*scored.values, *scored.missing]) == sorted(EVERY)


def test_no_score_is_given_that_was_not_asked_for(scorers: Scorers) -> None:
    (scored,) = Engine(["radcliq_v1", "sembscore", "radcliq_v1"]).score(PAIRS[:1])
    assert list(scored.values) == ["radcliq_v1", "sembscore"]
    assert scored.missing == {}


def test_results_come_in_order_with_duplicates(scorers: Scorers) -> None:
    pairs = PAIRS * 3 + PAIRS[::-1]
    found = [scored.values["radgraph"] for scored in Engine(["radgraph"], window=5).score(pairs)]
    assert found == [scorers["radgraph"].value(*pair) for pair in pairs]


def test_a_text_is_read_once_and_a_pair_compared_once(scorers: Scorers) -> None:
    list(Engine(["sembscore", "bertscore"]).score(PAIRS * 5))
    for name in ("chexbert", "bertscore"):
        assert scorers[name].read_texts == Counter(
            dict.fromkeys({text for pair in PAIRS for text in pair}, 1)
        )
        assert scorers[name].compared == Counter(PAIRS)


def test_only_scorers_that_are_needed_are_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = []

    def load(name: str, directory: Path, compute: Any) -> Counting:
        loaded.append(name)
        return Counting(name)

    monkeypatch.setattr(engine, "_loaded", load)
    scoring = Engine(["bleu2", "radcliq_v0", "rouge_l"])
    assert loaded == []
    list(scoring.score(PAIRS))
    list(scoring.score(PAIRS))
    assert sorted(loaded) == ["bertscore", "chexbert", "radgraph"]


def test_references_are_read_once_over_all_windows_and_calls(scorers: Scorers) -> None:
    groups = [[(f"candidate {step} {n}", f"reference {n % 3}") for n in range(12)] for step in range(4)]
    scoring = Engine(["sembscore", "bertscore"], window=5)
    for group in groups:
        list(scoring.score(group))
    for name in ("chexbert", "bertscore"):
        assert set(scorers[name].read_texts.values()) == {1}


def test_features_of_candidates_are_kept_only_where_they_are_small(scorers: Scorers) -> None:
    scoring = Engine(["sembscore", "bertscore"], window=1)
    list(scoring.score([("a", "reference"), ("a", "reference b")]))
    assert scorers["chexbert"].read_texts["a"] == 1
    assert scorers["bertscore"].read_texts["a"] == 2


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 40))), st.integers(0, 5000))
def test_features_kept_in_memory_are_those_used_last_within_the_bound(
    puts: list[tuple[int, int]], bound: int
) -> None:
    recent, sizes = Recent(bound), {number: 1 + number * 4 for number, _ in puts}
    used: list[int] = []
    for number, _ in puts:
        if recent.get(bytes([number])) is None:
            recent.put(bytes([number]), number, sizes[number])
        used = [other for other in used if other != number] + [number]
        held = [other for other in used if recent.get(bytes([other]))]
        assert recent.held == sum(sizes[other] + ENTRY for other in held) <= bound
        assert held == used[len(used) - len(held) :]


def test_pairs_are_taken_a_window_at_a_time(scorers: Scorers) -> None:
    taken = 0

    def endless() -> Iterator[Pair]:
        nonlocal taken
        while True:
            taken += 1
            yield f"candidate {taken}", "reference"

    found = list(islice(Engine(["sembscore"], window=10).score(endless()), 25))
    assert len(found) == 25
    assert taken == 30


def test_a_window_of_long_texts_is_shorter(scorers: Scorers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "CHARACTERS", 100)
    pairs = [("x" * 30 + str(n), "reference") for n in range(9)]
    assert [len(window) for window in engine._windows(pairs, 1000)] == [3, 3, 3]
    assert [len(window) for window in engine._windows([("x" * 500, "r")] * 2 + [("", "")], 1000)] == [1, 1, 1]
    assert [len(window) for window in engine._windows([("x" * 30, "r")] * 50, 40)] == [40, 10]


def test_memory_does_not_grow_with_the_number_of_pairs(scorers: Scorers) -> None:
    scorers["chexbert"].bytes = scorers["bertscore"].bytes = 2000

    def peak(count: int) -> int:
        scoring = Engine(["sembscore", "bertscore"], window=100, memory=400_000)
        tracemalloc.start()
        for _ in scoring.score((f"candidate {n}", f"reference {n // 2}") for n in range(count)):
            for scorer in scorers.values():
                scorer.read_texts.clear()
                scorer.compared.clear()
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    assert peak(10_000) < 1.1 * peak(1_000)


def test_progress_is_told_in_pairs(scorers: Scorers, capsys: pytest.CaptureFixture[str]) -> None:
    told = Progress("scoring", 16, "pairs", every_s=0)
    list(Engine(["sembscore"], window=4).score(PAIRS * 4, told))
    assert told.done == 16
    assert "scoring: 4 of 16 pairs" in capsys.readouterr().err


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_no_finite_number_is_missing_with_a_reason(scorers: Scorers, value: float) -> None:
    scorers["bertscore"].gives["clear"] = value
    found = list(Engine(["bertscore", "radcliq_v1"]).score(PAIRS))
    assert found[1].values == {}
    assert found[1].missing["bertscore"] == "its value is not a finite number"
    assert found[1].missing["radcliq_v1"] == "bertscore is missing: its value is not a finite number"
    assert all(scored.missing == {} for scored in (found[0], found[2], found[3]))


def test_radcliq_is_made_of_its_four_parts(scorers: Scorers) -> None:
    scorers["radgraph"].gives["clear"] = 0.9
    names = ["radcliq_v0", "radcliq_v1", "radgraph", "bertscore", "sembscore", "bleu2"]
    for scored in Engine(names).score(PAIRS):
        parts = [scored.values[name] for name in names[2:]]
        assert scored.values["radcliq_v0"] == radcliq.radcliq_v0(*parts)
        assert scored.values["radcliq_v1"] == radcliq.radcliq_v1(*parts)
    assert scored.values["bleu2"] == bleu(*PAIRS[-1])


def test_a_scorer_that_fails_is_not_hidden(scorers: Scorers, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(texts: Sequence[str]) -> list[Any]:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(scorers["radgraph"], "read", broken)
    with pytest.raises(RuntimeError, match="out of memory"):
        list(Engine(["bleu2", "radgraph"]).score(PAIRS))


def test_an_unknown_score_is_refused_with_the_nearest_right_one() -> None:
    with pytest.raises(UserError, match=r"'radgraf': did you mean radgraph\?"):
        Engine(["bleu2", "radgraf"])
    with pytest.raises(UserError, match=r"did you mean rouge_l\?"):
        Engine(["ROUGE-L"])


def test_no_pairs_no_scores(scorers: Scorers) -> None:
    assert list(Engine(EVERY, judge=Counts()).score([])) == []


# --- the cache


@pytest.mark.parametrize("name", ["sembscore", "bertscore"])
def test_another_engine_finds_in_the_cache_what_the_first_computed(
    scorers: Scorers, tmp_path: Path, name: str
) -> None:
    cache = str(tmp_path / "cache")
    first = list(Engine([name], cache=cache).score(PAIRS))
    scorer = scorers[CATALOG[name].scorer]
    scorer.read_texts.clear()
    assert list(Engine([name], cache=cache).score(PAIRS)) == first
    assert not scorer.read_texts
    assert list(Engine([name]).score(PAIRS)) == first


@pytest.mark.parametrize("name", ["sembscore", "bertscore"])
def test_another_identity_of_a_scorer_finds_nothing(scorers: Scorers, tmp_path: Path, name: str) -> None:
    cache = str(tmp_path / "cache")
    list(Engine([name], cache=cache).score(PAIRS))
    scorer = scorers[CATALOG[name].scorer]
    scorer.read_texts.clear()
    scorer.identity = "2"
    list(Engine([name], cache=cache).score(PAIRS))
    assert len(scorer.read_texts) == len({text for pair in PAIRS for text in pair})


def test_a_missing_score_comes_from_the_cache_as_missing(scorers: Scorers, tmp_path: Path) -> None:
    scorers["bertscore"].gives["clear"] = math.nan
    cache = str(tmp_path / "cache")
    first = list(Engine(["bertscore"], cache=cache).score(PAIRS))
    assert list(Engine(["bertscore"], cache=cache).score(PAIRS)) == first
    assert first[1].missing


def test_only_what_is_not_in_the_cache_is_read(scorers: Scorers, tmp_path: Path) -> None:
    cache = str(tmp_path / "cache")
    list(Engine(["sembscore", "bertscore"], cache=cache).score(PAIRS[:2]))
    for scorer in scorers.values():
        scorer.read_texts.clear()
    list(Engine(["sembscore", "bertscore"], cache=cache).score(PAIRS))
    assert set(scorers["chexbert"].read_texts) == {"", "x"}
    assert set(scorers["bertscore"].read_texts) == {"", "x", "heart large", "clear lungs"}


# --- identity


def test_every_score_has_an_identity_and_composed_ones_follow_their_parts(
    scorers: Scorers,
) -> None:
    before = Engine(EVERY, judge=Counts()).identity
    assert list(before) == EVERY
    scorers["bertscore"].identity = "2"
    after = Engine(EVERY, judge=Counts()).identity
    assert {name for name in EVERY if before[name] != after[name]} == {
        "bertscore",
        "radcliq_v0",
        "radcliq_v1",
    }


def test_errors_have_the_identity_of_their_judge() -> None:
    judge = Counts()
    assert Engine(["errors", "bleu2"], judge=judge).identity["errors"] == judge.identity


# --- the judge


def test_the_judges_counts_become_scores() -> None:
    names = ["errors", "errors_significant", "errors_omission", "errors_false_finding"]
    (scored,) = Engine(names, judge=Counts()).score([("three short words", "r")])
    assert scored.values == dict(zip(names, (4, 3, 4, 0), strict=True))


def test_a_missing_verdict_is_missing_with_the_judges_reason() -> None:
    judge = Counts()
    judge.silent = {"clear"}
    found = list(Engine(["bleu2", "errors", "errors_omission"], judge=judge).score(PAIRS))
    assert found[1].missing == {"errors": "HTTP 500", "errors_omission": "HTTP 500"}
    assert "bleu2" in found[1].values
    assert found[0].missing == {}


def test_without_a_judge_errors_are_missing_and_say_so() -> None:
    (scored,) = Engine(["errors"]).score([("a", "b")])
    assert scored.missing == {"errors": "no judge configured"}


def test_a_judge_that_no_score_needs_is_not_asked() -> None:
    judge = Counts()
    list(Engine(["bleu2"], judge=judge).score(PAIRS))
    assert judge.asked == []


def test_a_verdict_is_kept_and_a_missing_one_asked_again(tmp_path: Path) -> None:
    cache = str(tmp_path / "cache")
    judge = Counts()
    judge.silent = {"clear"}
    first = list(Engine(["errors"], cache=cache, judge=judge).score(PAIRS * 2))
    assert sorted(judge.asked) == sorted(PAIRS)
    judge.asked.clear()
    judge.silent.clear()
    second = list(Engine(["errors"], cache=cache, judge=judge).score(PAIRS))
    assert judge.asked == [("clear", "clear lungs")]
    assert [scored.values for scored in second[2:]] == [scored.values for scored in first[2:4]]
    assert second[1].values == {"errors": 2}


def test_verdicts_are_kept_as_they_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unirg.metrics.verdicts._CHUNK", 2)
    cache = str(tmp_path / "cache")
    judge = Counts()

    def fail_later() -> None:
        if judge.asked:
            raise UserError("the judge cannot be reached")

    judge.before = fail_later
    with pytest.raises(UserError, match="cannot be reached"):
        list(Engine(["errors"], cache=cache, judge=judge).score(PAIRS))
    asked = list(judge.asked)
    judge.before = lambda: None
    list(Engine(["errors"], cache=cache, judge=judge).score(PAIRS))
    assert sorted(judge.asked) == sorted(PAIRS)
    assert len(asked) == 2


def test_the_judge_answers_while_the_encoders_compute(
    scorers: Scorers, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, reading = threading.Event(), threading.Event()
    judge = Counts()

    def answer() -> None:
        asked.set()
        assert reading.wait(20), "the encoders wait for the judge"

    def read(texts: Sequence[str]) -> list[Any]:
        reading.set()
        assert asked.wait(20), "the judge waits for the encoders"
        return Counting.read(scorers["chexbert"], texts)

    judge.before = answer
    monkeypatch.setattr(scorers["chexbert"], "read", read)
    found = list(Engine(["sembscore", "errors"], judge=judge).score(PAIRS))
    assert all(scored.missing == {} for scored in found)


def test_when_a_scorer_fails_the_judge_is_asked_no_more(
    scorers: Scorers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unirg.metrics.verdicts._CHUNK", 1)
    asked, failed = threading.Event(), threading.Event()
    judge = Counts()

    def hold() -> None:
        asked.set()
        failed.wait(20)

    judge.before = hold

    def broken(texts: Sequence[str]) -> list[Any]:
        assert asked.wait(20)
        raise RuntimeError

    monkeypatch.setattr(scorers["chexbert"], "read", broken)
    with pytest.raises(RuntimeError):
        list(Engine(["sembscore", "errors"], judge=judge).score(PAIRS))
    failed.set()
    for thread in threading.enumerate():
        if thread.name == "judge":
            thread.join(20)
    assert len(judge.asked) == 1


# --- the catalog


def test_the_catalog_names_every_score_of_the_judge() -> None:
    judged = [score.name for score in CATALOG.values() if score.scorer == catalog.JUDGE]
    assert list(scores(Verdict(None, "none"))) == judged


def test_what_needs_weights_is_known_by_name() -> None:
    assert catalog.with_weights(["bleu2", "radcliq_v1", "errors", "sembscore"]) == ["radcliq_v1", "sembscore"]
    assert catalog.scorers(["radcliq_v1", "radgraph_xl"]) == [
        "radgraph",
        "bertscore",
        "chexbert",
        "radgraph-xl",
    ]


def test_the_version_of_a_score_changes_with_its_code(monkeypatch: pytest.MonkeyPatch) -> None:
    before = catalog.version(["bertscore", "bleu2"])
    assert catalog.version(["bertscore", "bleu2"]) == before
    monkeypatch.setattr("unirg.metrics.bertscore.VERSION", 99)
    assert catalog.version(["bertscore", "bleu2"]) != before
    assert catalog.version(["bleu2"]) != before
