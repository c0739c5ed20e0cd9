"""Temporal categories of studies: where each comes from, what is kept, what is missing and why."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.canary import CANARY
from tests.evaluation.tables import visits
from tests.metrics.judge_double import Answer, Server, completion
from unirg.cohort import priors
from unirg.cohort.corpora.phantom import Phantom
from unirg.evaluation.temporal import CATEGORIES, LABELS, NO_LABELLER, NO_ORDER, NO_TEXT, assign, truth_of
from unirg.metrics.cache import Cache
from unirg.metrics.judge_questions import BROKEN
from unirg.metrics.offline_judge import MODEL
from unirg.metrics.temporal import Labeller
from unirg.study import Study


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    server.script = lambda number, body: _said(body["messages"][-1]["content"])
    yield server
    server.stop()


def _said(content: str) -> Answer:
    """The category that the report names as its only word of findings."""
    report = json.loads(content)["report"]
    for word in ("new_development", "no_change", "progression", "regression"):
        if word in report:
            return completion(json.dumps({"category": word}))
    return completion("I cannot tell.")


def _studies(*findings: str | None) -> list[Study]:
    """One patient who comes again and again."""
    found = visits(1, len(findings))
    return [
        study.model_copy(update={"findings": text, "impression": None})
        for study, text in zip(found, findings, strict=True)
    ]


def _phantoms(studies: int, seed: int) -> tuple[list[Study], Phantom]:
    corpus = Phantom(studies, seed)
    return priors.link(corpus.records()), corpus


def test_every_category_has_the_papers_name() -> None:
    assert tuple(LABELS) == CATEGORIES


def test_a_first_study_is_one_by_its_place_and_no_model_is_asked(server: Server) -> None:
    studies = _studies("progression", "regression")
    found = assign(studies, Labeller(server.url, "m"))
    assert list(found.categories.values()) == ["first_study", "regression"]
    assert len(server.requests) == 1
    assert found.record() == {
        **{"sources": {"order": 1, "truth": 0, "labeller": 1}, "labeller": "m"},
        **{"missing": {}, "agreement": None},
    }


def test_what_has_no_category_is_counted_with_its_reason(server: Server) -> None:
    studies = _studies("first", "CANARY", None, "no_change")
    studies.append(studies[0].model_copy(update={"study_id": "unordered", "encounter": None}))
    found = assign(studies, Labeller(server.url, "m"))
    assert found.categories == {studies[0].study_id: "first_study", studies[3].study_id: "no_change"}
    assert found.record()["missing"] == {BROKEN: 1, NO_TEXT: 1, NO_ORDER: 1}
    without = assign(studies)
    assert without.record()["missing"] == {NO_LABELLER: 2, NO_TEXT: 1, NO_ORDER: 1}
    assert without.record()["labeller"] is None


def test_labels_are_kept_by_digest_and_missing_ones_asked_for_again(server: Server, tmp_path: Path) -> None:
    studies = _studies("first", "progression", f"{CANARY} gibberish")
    path = tmp_path / "labels.sqlite"
    for expected in (3, 5):  # the unanswered one twice each time, the other once
        cache = Cache(path)
        found = assign(studies, Labeller(server.url, "m"), cache=cache)
        cache.close()
        assert len(server.requests) == expected
        assert found.categories[studies[1].study_id] == "progression"
    assert CANARY.encode() not in path.read_bytes()
    assign(studies[:2], Labeller(server.url, "another"), cache=Cache(path))
    assert len(server.requests) == 6


def test_the_truth_counts_and_the_model_is_held_against_it(server: Server) -> None:
    studies = _studies("first", "progression", "regression", "no_change", "gibberish")
    known = dict(zip((s.study_id for s in studies), CATEGORIES, strict=True))  # as drawn, not as written
    found = assign(studies[:4], Labeller(server.url, "m"), lambda study: known.get(study.study_id))
    assert found.categories == {s.study_id: known[s.study_id] for s in studies[:4]}
    assert found.record()["sources"] == {"order": 1, "truth": 3, "labeller": 0}
    assert found.record()["agreement"] == {
        **{"studies": 3, "agree": 0},
        "confusion": [
            {"truth": "new_development", "labelled": "progression", "studies": 1},
            {"truth": "no_change", "labelled": "regression", "studies": 1},
            {"truth": "progression", "labelled": "no_change", "studies": 1},
        ],
    }


def test_where_the_truth_knows_nothing_the_labeller_answers(server: Server) -> None:
    studies = _studies("first", "progression")
    found = assign(studies, Labeller(server.url, "m"), truth_of(None))
    assert found.categories[studies[1].study_id] == "progression"
    assert found.record()["agreement"] is None


def test_the_phantoms_truth_is_read_from_the_cohorts_table() -> None:
    studies, corpus = _phantoms(400, 3)
    found = assign(studies, truth=truth_of(corpus.truth()))
    assert not found.missing
    assert set(found.categories.values()) == set(CATEGORIES)
    table = corpus.truth()
    drawn = Counter(table["temporal_category"].to_pylist())
    named = Counter(found.categories.values())
    assert named["first_study"] == drawn["first"]
    assert named["no_change"] == drawn["none"]
    assert truth_of(table.drop_columns(["temporal_category"]))(studies[0]) is None


def _cut(rows: Sequence[dict[str, object]], studies: Sequence[Study]) -> set[str]:
    """Studies whose impression alone stands for more than the three things that it has room for."""
    found = set()
    for row, study in zip(rows, studies, strict=True):
        things = [f for f in row["findings"] if f["condition"] != "No Finding"]  # type: ignore[attr-defined]
        if study.findings is None and len(things) + len(row["resolved"]) > 3:  # type: ignore[arg-type]
            found.add(study.study_id)
    return found


def test_on_phantoms_the_real_client_agrees_with_the_truth_wherever_the_wording_tells_it(
    judge_url: str,
) -> None:
    studies, corpus = _phantoms(700, 4)
    table = corpus.truth()
    cut = _cut(table.to_pylist(), studies)
    told = [study for study in studies if study.study_id not in cut]
    found = assign(told, Labeller(judge_url, MODEL), truth_of(table))
    agreement = found.record()["agreement"]
    assert agreement["studies"] == agreement["agree"] > 300
    assert {row["truth"] for row in agreement["confusion"]} == set(CATEGORIES) - {"first_study"}
    # Without the truth the labels are the same ones.
    assert assign(told, Labeller(judge_url, MODEL)).categories == found.categories
