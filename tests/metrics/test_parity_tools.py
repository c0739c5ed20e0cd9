"""The parity run and the speed benchmarks, as far as they go without the packages: tiny, on a CPU."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import DebertaV2Config

from benchmarks import metrics as speed
from benchmarks.gpu import metrics as gpu
from parity import compare, corpus, deviations, originals, weights
from unirg.metrics.chexbert import CheXbert, labels
from unirg.metrics.encoder import Compute, load_config, load_tokenizer, token_ids
from unirg.metrics.radgraph import Entity, Graph, RadGraph, Relation

TEXTS = corpus.made_up(24)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parity") / "weights"
    weights.build(folder, TEXTS, weights.TINY)
    return folder


def test_random_weights_predict_every_class_of_every_condition(built: Path) -> None:
    classes = np.array([labels(reading) for reading in CheXbert(built / "chexbert", Compute()).read(TEXTS)])
    assert [len(set(head)) for head in classes.T] == [4] * 13 + [2]


def test_random_weights_find_entities_and_relations(built: Path) -> None:
    graphs = RadGraph(built / "radgraph", Compute()).read(TEXTS)
    assert np.mean([len(graph.entities) for graph in graphs]) >= 2
    assert np.mean([len(graph.relations) for graph in graphs]) >= 1


def test_a_tokenizer_normalises_as_its_file_says(built: Path) -> None:
    directory = built / "ratescore" / "ner"
    config = load_config(DebertaV2Config, directory)
    text = "  A \ufb01rst\n\nnodule of \u00bd cm \u2026 "
    expected = Tokenizer.from_file(str(directory / "tokenizer.json")).encode(text).ids
    assert token_ids(load_tokenizer(directory, config), [text], 512) == [expected]


def test_weights_that_are_there_are_not_built_again(built: Path) -> None:
    before = (built / "chexbert" / "model.safetensors").stat().st_mtime_ns
    weights.build(built, TEXTS, weights.TINY)
    assert (built / "chexbert" / "model.safetensors").stat().st_mtime_ns == before


def test_originals_hold_what_the_packages_look_for(built: Path, tmp_path: Path) -> None:
    originals.write(tmp_path, built)
    pickled = torch.load(tmp_path / "cache" / "chexbert" / "chexbert.pth", weights_only=True)
    assert {name.split(".")[1] for name in pickled["model_state_dict"]} == {"bert", "linear_heads"}
    place = tmp_path / "cache" / "radgraph" / "0.1.18" / "radgraph"
    assert {path.name for path in place.iterdir()} == {"config.json", "vocabulary", "weights.th"}
    for name in (
        "bert-base-uncased",
        "distilroberta-base",
        "encoders/radgraph",
        originals.NER,
        originals.SYNONYMS,
    ):
        assert (tmp_path / "hub" / name / "config.json").is_file()


def test_a_graph_is_written_as_the_package_writes_it() -> None:
    graph = Graph(
        (Entity("clear", "OBS-DP", 3, 3), Entity("lungs", "ANAT-DP", 1, 1)), (Relation(0, 1, "located_at"),)
    )
    assert compare.as_upstream(graph) == {
        "1": {
            "tokens": "clear",
            "label": "OBS-DP",
            "start_ix": 3,
            "end_ix": 3,
            "relations": [["located_at", "2"]],
        },
        "2": {"tokens": "lungs", "label": "ANAT-DP", "start_ix": 1, "end_ix": 1, "relations": []},
    }


def test_a_score_off_by_more_than_the_tolerance_and_weak_weights_fail_the_run() -> None:
    found = compare.Findings()
    found.score("near", [0.5, 0.25], [0.5, 0.250009])
    found.strength("relations a report", 1.5)
    assert not found.failures
    found.score("far", [0.5], [0.50002])
    found.score("nothing", [0.5], [float("nan")])
    found.strength("relations a report", 0.5)
    assert [failure.split()[0] for failure in found.failures] == ["far", "nothing", "too"]


def test_lower_precisions_are_measured_against_fp32(built: Path, capsys: pytest.CaptureFixture[str]) -> None:
    deviations.show(built, corpus.evaluation_pairs(3, TEXTS), ["int8"])
    shown = capsys.readouterr().out
    assert "int8 against fp32, 3 pairs" in shown
    assert "radcliq_v1" in shown


def test_shapes_repeat_no_candidate() -> None:
    groups = corpus.group_pairs(2, 5, TEXTS)
    assert len(groups) == len({candidate for candidate, _ in groups}) == 10
    assert len({text for pair in groups for text in pair}) == 12
    assert len({text for pair in corpus.evaluation_pairs(7, TEXTS) for text in pair}) == 14


def test_the_engine_and_its_floor_are_timed(built: Path) -> None:
    pairs = corpus.group_pairs(1, 3, TEXTS)
    assert speed.ours(built, speed.METRICS[1], pairs, Compute()).cpu > 0
    took, tokens = speed.Floor(built / "radgraph" / "encoder", "fp32").seconds(pairs)
    assert took.cpu > 0
    assert tokens in speed.BUDGETS


def test_the_gpu_script_runs_on_a_cpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told = ["metrics.py", "--device", "cpu", "--precision", "fp32", "--tiny", "--groups", "2"]
    monkeypatch.setattr(sys, "argv", told)
    gpu.main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[: len(gpu.SCORES)]] == list(gpu.SCORES)
    assert "no ratio" in lines[-1]
