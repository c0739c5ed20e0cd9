"""BERTScore on a tiny random RoBERTa: the definition in plain loops, text handling, loading, and its laws."""

from __future__ import annotations

import functools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from tests.metrics import tiny
from unirg.errors import UserError
from unirg.metrics.bertscore import BertScore
from unirg.metrics.encoder import Compute, Precision

TEXTS = [*tiny.HOSTILE[:-2], *tiny.WORDS.replace("?", ".").split("."), tiny.WORDS]
BUDGETS = (1, 40, 512, 100_000)
BASELINE = 0.8473319
EMPTY = -5.5502


@functools.cache
def _scorer(directory: Path, budget: int = 0, precision: Precision = "fp32") -> BertScore:
    return BertScore(directory, Compute(precision=precision, tokens=budget))


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.bertscore(tmp_path_factory.mktemp("bertscore"))


@pytest.fixture(scope="module")
def scorer(directory: Path) -> BertScore:
    return _scorer(directory)


@pytest.fixture
def copy(directory: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(directory, tmp_path / "bertscore"))


def _score(scorer: BertScore, candidate: str, reference: str) -> float:
    (row,) = scorer.compare(scorer.read([candidate]), scorer.read([reference]))
    return row["bertscore"]


# The definition, from tokens to score, each step in the plainest way


def _ids(directory: Path, text: str) -> list[int]:
    """By the tokenizers library, which puts the space before the first word where it is told to."""
    from tokenizers import Tokenizer, pre_tokenizers

    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    words = tokenizer.encode(text, add_special_tokens=False).ids
    return [0, *words[:510], 2]


def _definition(directory: Path, candidate: str, reference: str) -> float:
    from transformers import RobertaConfig, RobertaModel

    model = RobertaModel(RobertaConfig.from_pretrained(directory)).eval()
    tensors = load_file(directory / "model.safetensors")
    model.load_state_dict({name[8:]: value for name, value in tensors.items() if name.startswith("roberta.")})
    sides = []
    for text in (candidate, reference):
        ids = _ids(directory, text)
        with torch.no_grad():
            layers = model(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states
        vectors = layers[2][0].double()
        sides.append((ids, vectors / vectors.norm(dim=-1, keepdim=True)))

    def share(ours: int, theirs: int) -> float:
        best = [
            float((sides[theirs][1] @ vector).max())
            for token, vector in zip(*sides[ours], strict=True)
            if token not in (0, 2)
        ]
        return sum(best) / len(best)

    precision, recall = share(0, 1), share(1, 0)
    f1 = 2 * precision * recall / (precision + recall)
    return (f1 - BASELINE) / (1 - BASELINE)


@pytest.mark.parametrize(
    ("candidate", "reference"),
    [
        ("The heart is enlarged.", "No pleural effusion is seen, the lungs are clear."),
        ("opacity", "The lungs are clear"),
        ("Heart XXXX.\nNo edema.", "heart, xxxx"),
        ("effusion " * 300 + "heart", "effusion " * 520),
    ],
)
def test_a_score_is_what_the_definition_says(directory: Path, candidate: str, reference: str) -> None:
    expected = _definition(directory, candidate.strip(), reference.strip())
    assert _score(_scorer(directory), candidate, reference) == pytest.approx(expected, abs=5e-6)


@given(st.text(min_size=1, max_size=40).map(str.strip).filter(bool))
@settings(max_examples=50)
def test_the_first_word_is_tokenised_as_after_a_space(directory: Path, text: str) -> None:
    (found,) = _scorer(directory).read([text])
    spaces_as_one = " ".join(piece for piece in text.split(" ") if piece)
    assert len(found.counted) == len(_ids(directory, spaces_as_one))


def test_the_first_word_reads_as_it_does_within_a_sentence(directory: Path) -> None:
    # "Ġheart" is one token, "heart" several: what transformers 5 makes of it when asked in the call.
    tokenizer = _scorer(directory)._tokenizer
    assert len(tokenizer("lungs", add_prefix_space=True)["input_ids"]) > 3
    assert len(_scorer(directory).read(["lungs"])[0].counted) == 3


# Text handling


def test_a_text_scores_one_against_itself_however_it_is_spaced(scorer: BertScore) -> None:
    assert _score(scorer, "No   effusion is seen. ", "\tNo effusion  is seen.") == pytest.approx(1, abs=1e-5)


def test_a_line_break_within_a_text_stays(scorer: BertScore) -> None:
    assert _score(scorer, "No effusion\nis seen.", "No effusion is seen.") < 0.9999


@pytest.mark.parametrize("blank", ["", " ", "\n\t", "\u2028"])
def test_a_text_without_a_token_has_the_score_of_f_0(scorer: BertScore, blank: str) -> None:
    empty, other = scorer.read([blank, "The lungs are clear."])
    assert empty.counted.tolist() == [False, False]
    rows = scorer.compare([empty, other, empty], [other, empty, empty])
    assert [row["bertscore"] for row in rows] == pytest.approx([EMPTY] * 3, abs=1e-4)


def test_a_long_text_is_cut_to_512_tokens_with_the_last_one_kept(scorer: BertScore) -> None:
    far, full = scorer.read(["effusion " * 5000, "effusion " * 510])
    assert len(far.counted) == len(full.counted) == 512
    assert np.flatnonzero(~far.counted).tolist() == [0, 511]
    assert far.states == pytest.approx(full.states, abs=1e-5)


def test_a_lone_surrogate_is_read_as_a_question_mark(scorer: BertScore) -> None:
    assert _score(scorer, "edema \ud83d seen", "edema ? seen") == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("text", tiny.HOSTILE, ids=lambda text: ascii(text[:20]))
def test_any_text_gets_a_finite_score_and_one_against_itself(scorer: BertScore, text: str) -> None:
    same = _score(scorer, text, text)
    assert same == pytest.approx(1 if text.strip() else EMPTY, abs=1e-4)
    assert np.isfinite(_score(scorer, text, tiny.WORDS))


def test_only_layers_up_to_the_setting_are_run(directory: Path) -> None:
    assert len(_scorer(directory)._model.encoder.layer) == 2


# Laws: nothing but the two texts decides a score


@functools.cache
def _alone(directory: Path, candidate: str, reference: str) -> float:
    return _score(_scorer(directory), candidate, reference)


@settings(max_examples=20)
@given(
    st.lists(st.tuples(st.sampled_from(TEXTS), st.sampled_from(TEXTS)), min_size=1, max_size=12),
    st.sampled_from(BUDGETS),
)
def test_batch_order_and_duplicates_change_no_score(
    directory: Path, pairs: list[tuple[str, str]], budget: int
) -> None:
    scorer = _scorer(directory, budget)
    texts = sorted({text for pair in pairs for text in pair})
    features = dict(zip(texts, scorer.read(texts), strict=True))
    rows = scorer.compare([features[pair[0]] for pair in pairs], [features[pair[1]] for pair in pairs])
    for pair, row in zip(pairs, rows, strict=True):
        assert row["bertscore"] == pytest.approx(_alone(directory, *pair), abs=1e-5)


def test_a_group_of_one_reference_scores_each_candidate_as_if_alone(directory: Path) -> None:
    # RadEval's idf weights over the references of a call make these all -5.55.
    scorer = _scorer(directory)
    candidates = [f"{text} effusion" for text in TEXTS] * 8
    reference = scorer.read([tiny.WORDS]) * len(candidates)
    scores = [row["bertscore"] for row in scorer.compare(scorer.read(candidates), reference)]
    assert scores == pytest.approx([_alone(directory, text, tiny.WORDS) for text in candidates], abs=1e-5)
    assert len({round(score, 4) for score in scores}) > 10


def test_nothing_to_read_and_nothing_to_compare_is_nothing(scorer: BertScore) -> None:
    assert scorer.read([]) == []
    assert scorer.compare([], []) == []


def test_packed_tokens_come_back_exactly(scorer: BertScore) -> None:
    for feature in scorer.read(TEXTS):
        back = scorer.unpack(scorer.pack(feature))
        assert np.array_equal(back.states, feature.states)
        assert np.array_equal(back.counted, feature.counted)
        assert back.states.dtype == np.float32
        assert scorer.size(feature) == len(scorer.pack(feature))


# Largest deviation from fp32 on this network, whose random weights are ten times the usual size; the
# rescaling makes 6.5 of each deviation of F.
@pytest.mark.parametrize(("precision", "tolerance"), [("bf16", 0.1), ("int8", 0.4)])
def test_a_lower_precision_stays_within_its_tolerance(
    directory: Path, precision: Precision, tolerance: float
) -> None:
    rows = []
    for each in ("fp32", precision):
        features = _scorer(directory, 0, each).read(TEXTS)
        rows.append(_scorer(directory, 0, each).compare(features, features[-1:] * len(features)))
    for exact, lower in zip(*rows, strict=True):
        assert lower["bertscore"] == pytest.approx(exact["bertscore"], abs=tolerance)


# Loading


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "bertscore.json"])
def test_a_missing_file_is_named_with_the_command_that_gets_it(copy: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(UserError, match=rf"{name} is missing.*unirg weights fetch bertscore"):
        BertScore(copy, Compute())


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ('{"layer": 2}', "is not"),
        ('{"layer": 0, "baseline_f1": 0.8}', "is not"),
        ('{"layer": 2, "baseline_f1": 1.0}', "is not"),
        ('{"layer": 2, "baseline_f1": NaN}', "is not"),
        ('{"layer": 4, "baseline_f1": 0.8}', "layer 4 of a model of 3"),
        ("{", "is not"),
    ],
)
def test_a_setting_that_means_nothing_is_refused(copy: Path, setting: str, message: str) -> None:
    (copy / "bertscore.json").write_text(setting)
    with pytest.raises(UserError, match=message):
        BertScore(copy, Compute())


def test_weights_without_a_layer_are_refused_and_unused_ones_are_not_needed(copy: Path) -> None:
    tensors = load_file(copy / "model.safetensors")
    needed = {name: value for name, value in tensors.items() if ".layer.2." not in name}
    save_file(needed, copy / "model.safetensors")
    BertScore(copy, Compute())
    save_file({k: v for k, v in needed.items() if ".layer.1." not in k}, copy / "model.safetensors")
    with pytest.raises(UserError, match=r"encoder.layer.1.*is missing"):
        BertScore(copy, Compute())


def test_weights_without_the_prefix_of_a_language_model_load_as_well(copy: Path, directory: Path) -> None:
    tensors = load_file(copy / "model.safetensors")
    bare = {name.removeprefix("roberta."): value for name, value in tensors.items()}
    save_file(bare, copy / "model.safetensors")
    pair = ("The heart is enlarged.", "The lungs are clear.")
    assert _score(BertScore(copy, Compute()), *pair) == _alone(directory, *pair)


def test_the_identity_follows_weights_setting_and_precision_but_not_the_batch(
    directory: Path, copy: Path
) -> None:
    whole = _scorer(directory).identity
    assert BertScore(copy, Compute(tokens=7)).identity == whole
    assert _scorer(directory, 0, "bf16").identity != whole
    (copy / "bertscore.json").write_text(json.dumps({"layer": 1, "baseline_f1": BASELINE}))
    assert BertScore(copy, Compute()).identity != whole
