"""Toy scorers: their data says what the phantoms are, and their weights load, repeat, resume and learn."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from unirg import storage
from unirg.artifact import Artifact
from unirg.cohort.corpora.phantom import Phantom
from unirg.cohort.corpora.phantom.markup import Passage, join, render
from unirg.config import load
from unirg.errors import UserError
from unirg.metrics import ratescore, weights_fetch
from unirg.metrics import weights as public
from unirg.metrics.engine import Engine
from unirg.metrics.radgraph import words_v1
from unirg.training import scorers, scorers_data, scorers_fit, scorers_quality
from unirg.training.scorers import TOYS, ToyScorers, WeightsConfig, weights

TINY = WeightsConfig(toy=ToyScorers(hidden_size=32, studies=40, steps=10), workers=1)


@pytest.fixture(scope="module")
def reports() -> list[Passage]:
    return scorers_data.reports(80, 5)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return weights(TINY, str(tmp_path_factory.mktemp("made")))


# Data


def test_every_entity_is_where_its_report_has_its_words_however_the_report_was_changed(
    reports: list[Passage],
) -> None:
    changed = [passage for batch in scorers_data.batches(reports, 20, 16, seed=1) for passage in batch]
    for passage in [*reports, *changed]:
        assert all(passage.text[e.start : e.end] == e.text for e in passage.entities)
        assert all(r.source != r.target < len(passage.entities) for r in passage.relations)
    assert len({passage.text for passage in changed}) > 200


def test_a_report_put_together_from_its_sentences_is_the_report(reports: list[Passage]) -> None:
    for report in reports:
        assert join(scorers_data.sentences(report)) == report


def test_words_in_disorder_state_nothing(reports: list[Passage]) -> None:
    broken = [scorers_data.garbled(report, random.Random(0)) for report in reports]
    assert [scorers_data.conditions(passage) for passage in broken] == [{}] * len(reports)
    assert [sorted(a.text.split()) for a in broken] == [sorted(b.text.split()) for b in reports]


def test_the_conditions_of_a_report_are_those_of_the_picture() -> None:
    corpus = Phantom(80, 5)
    rows, studies = corpus.truth().to_pylist(), corpus.records()
    for row, study, report in zip(rows, studies, scorers_data.reports(80, 5), strict=True):
        stated = scorers_data.conditions(report)
        positive = {name for name, state in stated.items() if state == "positive"} - {"Lung Opacity"}
        shown = {finding["condition"] for finding in row["findings"]}
        assert positive <= shown
        assert not study.findings or positive == shown


@pytest.mark.parametrize(
    ("sentence", "stated"),
    [
        ("There is no [pleural](A:p) [effusion](N:o @p).", {"Pleural Effusion": "negative"}),
        ("The [heart](A:h) is [normal](O @h) in [size](A >h).", {"Cardiomegaly": "negative"}),
        ("[Mass](O), [scarring](U).", {"Lung Lesion": "positive", "Lung Opacity": "uncertain"}),
        ("A [pacemaker](O).", {"Support Devices": "positive", "No Finding": "positive"}),
        ("[edema](N). [edema](U). [edema](O).", {"Edema": "positive"}),
        ("Frontal radiograph.", {}),
    ],
)
def test_a_sentence_states(sentence: str, stated: dict[str, str]) -> None:
    found = scorers_data.conditions(render(sentence))
    assert {name: found[name] for name in stated} == stated
    assert set(found) - set(stated) <= {"No Finding"}


def test_spans_are_the_words_of_the_entities(reports: list[Passage]) -> None:
    for report in reports:
        words = words_v1(report.text)
        spans = scorers_data.spans(report, words)
        assert [" ".join(words[a : b + 1]) for a, b in spans] == [e.text for e in report.entities]
        assert max((b - a for a, b in spans), default=0) < scorers_fit.SPAN_WIDTH


def test_tags_give_the_entities_back(reports: list[Passage]) -> None:
    for report in reports:
        pieces = [match.span() for match in re.finditer(r"\s?\w{1,3}|\s?[^\w\s]", report.text)]
        tags = ["O", *scorers_data.tags(report, pieces), "O"]
        found = ratescore.entities(["[CLS]", *map(str, pieces), "[SEP]"], tags)
        texts = [report.text[pieces[a - 1][0] : pieces[b - 1][1]].strip() for a, b, _ in found]
        assert texts == [e.text for e in report.entities]
        assert [kind for *_, kind in found] == [scorers_data.rate_type(e) for e in report.entities]


def test_worse_reports_differ_from_the_true_one(reports: list[Passage]) -> None:
    worse = scorers_quality.worsened(reports, seed=0)
    kinds = {"true", "altered", "dropped", "added", "another's", "broken"}
    assert {kind for one in worse for kind in one} == kinds
    assert all(one[kind] != one["true"] for one in worse for kind in one.keys() - {"true", "another's"})


# Weights


def test_the_metrics_load_toy_weights_by_their_uri(made: Artifact) -> None:
    report = "Findings: The heart is normal in size. Impression: Small left pleural effusion."
    names = ["bertscore", "sembscore", "radgraph_simple", "ratescore", "radcliq_v1"]
    same, other = Engine(names, weights=made.uri).score([(report, report), ("", report)])
    assert same.values["bertscore"] == pytest.approx(1, abs=1e-4)
    assert same.values["sembscore"] == pytest.approx(1, abs=1e-4)
    assert set(same.values) == set(names) == set(other.values)


def test_each_directory_says_where_it_is_from_and_how_good_it_is(made: Artifact) -> None:
    quality = json.loads(made.path(scorers.QUALITY).read_text())
    assert quality == made.manifest.counts
    for name in TOYS:
        record = public.read_record(made.directory / name)
        assert "toy" in record["source"]
        assert record["identity"] == public.identity(made.directory / name)
        assert record["quality"].items() <= quality.items()


def test_a_run_that_broke_off_goes_on_where_it_was_and_ends_in_the_same_bytes(
    made: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[str] = []
    original = dict(scorers_fit.FITS)

    def broken(config: WeightsConfig, found: Sequence[Passage], folder: Path) -> None:
        (folder / "config.json").write_text("half of it")
        raise KeyboardInterrupt

    def counted(name: str) -> Any:
        def fit(config: WeightsConfig, found: Sequence[Passage], folder: Path) -> None:
            trained.append(name)
            original[name](config, found, folder)

        return fit

    last = TOYS[-1]
    for name in TOYS:
        monkeypatch.setitem(scorers_fit.FITS, name, broken if name == last else counted(name))
    with pytest.raises(KeyboardInterrupt):
        weights(TINY, str(tmp_path))
    assert not list(tmp_path.glob("weights/*"))
    monkeypatch.setitem(scorers_fit.FITS, last, counted(last))
    again = weights(TINY, str(tmp_path))
    assert trained == list(TOYS)
    assert again.digest == made.digest
    assert again.uri.rsplit("/", 1)[1] == made.uri.rsplit("/", 1)[1]


def test_training_leaves_the_callers_random_numbers_and_threads_alone() -> None:
    import torch

    torch.manual_seed(3)
    before, threads = torch.random.get_rng_state(), torch.get_num_threads()
    with scorers._reproducible(0):
        torch.rand(5)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.get_num_threads() == threads


def test_a_short_training_learns_entities(tmp_path: Path) -> None:
    config = WeightsConfig(toy=ToyScorers(steps=150))
    found = scorers_data.reports(200, 0)
    with scorers._reproducible(0):
        scorers_fit.radgraph(config, found, tmp_path)
    held_out = scorers_data.reports(40, 1)
    assert scorers_quality.radgraph(tmp_path, held_out)["radgraph_entity_f1"] > 0.5


@pytest.mark.parametrize("part", ["seed", "steps"])
def test_what_changes_the_weights_changes_their_identity(part: str, tmp_path: Path) -> None:
    from unirg.artifact import action_key

    changes: dict[str, list[str]] = {"seed": ["seed=1"], "steps": ["toy.steps=2"]}
    other = load(WeightsConfig, "toy/weights", changes[part])
    keys = {action_key("weights", 1, config, {}) for config in (load(WeightsConfig, "toy/weights"), other)}
    assert len(keys) == 2
    same = load(WeightsConfig, "toy/weights", ["workers=7"])
    assert action_key("weights", 1, same, {}) in keys


# Collected


def test_weights_that_are_there_are_collected_as_they_are(made: Artifact, tmp_path: Path) -> None:
    config = WeightsConfig(source=made.uri, scorers=("chexbert", "bertscore"))
    taken = weights(config, str(tmp_path))
    assert {name.split("/")[0] for name in taken.manifest.files} == {"chexbert", "bertscore"}
    assert public.identity(taken.directory / "chexbert") == public.identity(made.directory / "chexbert")
    assert taken.manifest.inputs["chexbert"].digest == public.identity(made.directory / "chexbert")


def test_other_weights_at_the_same_place_are_another_artifact(tmp_path: Path) -> None:
    config = WeightsConfig(source=str(tmp_path / "mine"), scorers=("chexbert",))
    (tmp_path / "mine/chexbert").mkdir(parents=True)
    digests = set()
    for content in ("one", "two"):
        (tmp_path / "mine/chexbert/config.json").write_text(content)
        digests.add(weights(config, str(tmp_path / "store")).digest)
    assert len(digests) == 2


def test_a_source_without_a_scorer_is_named(made: Artifact, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no weights of radgraph-xl \(it has bertscore, chexbert"):
        weights(WeightsConfig(source=made.uri, scorers=("radgraph-xl",)), str(tmp_path))
    with pytest.raises(UserError, match="did you mean chexbert"):
        weights(WeightsConfig(source=made.uri, scorers=("chexbart",)), str(tmp_path))


def test_from_the_hub_only_what_is_missing_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNIRG_WEIGHTS", str(tmp_path / "weights"))
    (tmp_path / "weights/chexbert").mkdir(parents=True)
    fetched = []

    def fetch(name: str, destination: Path) -> Path:
        fetched.append(name)
        (destination / name).mkdir()
        (destination / name / "config.json").write_text(name)
        return destination / name

    monkeypatch.setattr(weights_fetch, "fetch", fetch)
    config = WeightsConfig(source="hub", scorers=("chexbert", "radgraph"))
    made = weights(config, str(tmp_path / "store"))
    assert fetched == ["radgraph"]
    assert storage.sha256(b"radgraph") == made.manifest.files["radgraph/config.json"].sha256
