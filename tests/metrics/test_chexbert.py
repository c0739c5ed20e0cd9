"""CheXbert on a tiny random network: text handling, both SembScores, labels, loading, and its laws."""

from __future__ import annotations

import functools
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
from unirg.metrics.chexbert import CheXbert, Reading, labels, load_network
from unirg.metrics.conditions import BLANK, NEGATIVE, POSITIVE, UNCERTAIN
from unirg.metrics.encoder import Compute, Precision

TEXTS = [*tiny.HOSTILE[:-2], *tiny.WORDS.replace("?", ".").split("."), tiny.WORDS]
BUDGETS = (1, 40, 512, 100_000)


@functools.cache
def _scorer(directory: Path, budget: int = 0, precision: Precision = "fp32") -> CheXbert:
    return CheXbert(directory, Compute(precision=precision, tokens=budget))


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.chexbert(tmp_path_factory.mktemp("chexbert"))


@pytest.fixture(scope="module")
def scorer(directory: Path) -> CheXbert:
    return _scorer(directory)


@pytest.fixture
def copy(directory: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(directory, tmp_path / "chexbert"))


def _reading(classes: list[int], embedding: list[float] | None = None) -> Reading:
    """A reading whose labels are these 14."""
    logits = [float(label == place) for label in classes[:13] for place in range(4)]
    logits += [float(classes[13] == place) for place in range(2)]
    return Reading(np.array(embedding or [1.0, 0.0], np.float32), np.array(logits, np.float32))


# What is read of a text


def test_the_first_token_alone_gives_what_the_full_forward_gives(directory: Path) -> None:
    network = load_network(directory).eval()
    torch.manual_seed(1)
    ids = torch.randint(5, 100, (6, 40))
    mask = (torch.arange(40) < torch.tensor([40, 39, 20, 7, 2, 40])[:, None]).long()
    with torch.inference_mode():
        for used in (mask, None):
            full = network.bert(input_ids=ids, attention_mask=used).last_hidden_state[:, 0]
            embedding = network.embedding(ids, used)
            torch.testing.assert_close(embedding, full, atol=2e-6, rtol=0)
            for ours, theirs in zip(network.heads(embedding), network(ids, used), strict=True):
                torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=0)


def test_the_network_trains(directory: Path) -> None:
    network = load_network(directory).train()
    ids = torch.randint(5, 100, (4, 12))
    losses = []
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-2)
    for _ in range(8):
        logits = network(ids, torch.ones_like(ids))
        loss = sum(torch.nn.functional.cross_entropy(head, torch.ones(4).long()) for head in logits)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert [head.shape for head in logits] == [(4, 4)] * 13 + [(4, 2)]
    assert losses[-1] < losses[0] / 2


def test_white_space_of_any_kind_is_one_space(scorer: CheXbert) -> None:
    plain, spaced = scorer.read(["No effusion. Heart large.", "\r\n No\teffusion.\n\n Heart\xa0large. \x0b"])
    assert np.array_equal(plain.embedding, spaced.embedding)


def test_blank_texts_are_all_the_same_two_tokens(scorer: CheXbert, directory: Path) -> None:
    with torch.inference_mode():
        expected = load_network(directory).eval().embedding(torch.tensor([[2, 3]]))
    for reading in scorer.read(["", " ", "\n\t"]):
        assert reading.embedding == pytest.approx(expected[0].numpy(), abs=1e-5)


def test_a_long_text_is_cut_to_512_tokens_with_the_last_one_kept(scorer: CheXbert) -> None:
    far, full, short = scorer.read(["effusion " * 5000, "effusion " * 510, "effusion " * 509])
    assert far.embedding == pytest.approx(full.embedding, abs=1e-5)
    assert not np.allclose(far.embedding, short.embedding, atol=1e-4)


def test_a_lone_surrogate_is_read_as_a_question_mark(scorer: CheXbert) -> None:
    half, mark = scorer.read(["edema \ud83d seen", "edema ? seen"])
    assert np.array_equal(half.embedding, mark.embedding)


@pytest.mark.parametrize("text", tiny.HOSTILE, ids=lambda text: ascii(text[:20]))
def test_any_text_scores_one_against_itself_and_a_number_against_others(scorer: CheXbert, text: str) -> None:
    ours, other = scorer.read([text, tiny.WORDS])
    same, apart = scorer.compare([ours, ours], [ours, other])
    assert same == pytest.approx({"sembscore": 1, "sembscore_labels": 1}, abs=1e-6)
    assert -1 <= apart["sembscore"] <= 1
    assert 0 <= apart["sembscore_labels"] <= 1


def test_nothing_to_read_and_nothing_to_compare_is_nothing(scorer: CheXbert) -> None:
    assert scorer.read([]) == []
    assert scorer.compare([], []) == []


# Labels, and the two scores


def test_labels_are_the_largest_logits_of_each_condition(scorer: CheXbert, directory: Path) -> None:
    network = load_network(directory).eval()
    readings = scorer.read(TEXTS)
    for reading in readings:
        with torch.inference_mode():
            heads = network.heads(torch.tensor(reading.embedding))
        assert labels(reading).tolist() == [int(head.argmax()) for head in heads]
    assert len({tuple(labels(reading)) for reading in readings}) > 5


def test_the_embedding_score_is_a_cosine() -> None:
    rows = CheXbert.compare(
        object.__new__(CheXbert),
        [_reading([BLANK] * 14, [3, 4])] * 3,
        [_reading([BLANK] * 14, other) for other in ([6.0, 8.0], [4.0, -3.0], [1.0, 0.0])],
    )
    assert [row["sembscore"] for row in rows] == pytest.approx([1, 0, 0.6], abs=1e-7)


def _label_score(candidate: list[int], reference: list[int]) -> float:
    scorer = object.__new__(CheXbert)
    return scorer.compare([_reading(candidate)], [_reading(reference)])[0]["sembscore_labels"]


def test_the_label_score_counts_positive_and_uncertain_as_one() -> None:
    rest = [BLANK] * 10
    assert _label_score([POSITIVE, UNCERTAIN, NEGATIVE, BLANK, *rest], [1, 1, 0, 0, *rest]) == 1
    # Two of ours, three of theirs, one in common.
    assert _label_score([1, 1, 0, 0, *rest], [0, 3, 1, 1, *rest]) == pytest.approx(1 / 6**0.5)


def test_two_reports_without_a_stated_condition_agree_and_one_alone_does_not() -> None:
    nothing, negatives, edema = [BLANK] * 14, [NEGATIVE] * 13 + [BLANK], [POSITIVE] + [BLANK] * 13
    assert _label_score(nothing, negatives) == 1
    assert _label_score(nothing, edema) == 0
    assert _label_score(edema, nothing) == 0


# Laws: nothing but the two texts decides a score


@functools.cache
def _alone(directory: Path, candidate: str, reference: str) -> dict[str, float]:
    scorer = _scorer(directory)
    return scorer.compare(scorer.read([candidate]), scorer.read([reference]))[0]


@settings(max_examples=20)
@given(
    st.lists(st.tuples(st.sampled_from(TEXTS), st.sampled_from(TEXTS)), min_size=1, max_size=12),
    st.sampled_from(BUDGETS),
)
def test_batch_order_and_duplicates_change_no_score(
    directory: Path, pairs: list[tuple[str, str]], budget: int
) -> None:
    scorer = _scorer(directory, budget)
    candidates, references = (scorer.read(side) for side in zip(*pairs, strict=True))
    for pair, row in zip(pairs, scorer.compare(candidates, references), strict=True):
        assert row == pytest.approx(_alone(directory, *pair), abs=1e-5)


def test_packed_readings_come_back_exactly(scorer: CheXbert) -> None:
    for reading in scorer.read(TEXTS):
        back = scorer.unpack(scorer.pack(reading))
        assert np.array_equal(back.embedding, reading.embedding)
        assert np.array_equal(back.logits, reading.logits)
        assert back.embedding.dtype == back.logits.dtype == np.float32
        assert scorer.size(reading) == len(scorer.pack(reading))


# Largest deviation of a score from fp32, on this network, whose random weights are ten times the usual size.
@pytest.mark.parametrize(("precision", "tolerance"), [("bf16", 0.03), ("int8", 0.12)])
def test_a_lower_precision_stays_within_its_tolerance(
    directory: Path, precision: Precision, tolerance: float
) -> None:
    rows = []
    for each in ("fp32", precision):
        readings = _scorer(directory, 0, each).read(TEXTS)
        rows.append(_scorer(directory, 0, each).compare(readings, readings[-1:] * len(readings)))
    for exact, lower in zip(*rows, strict=True):
        assert lower["sembscore"] == pytest.approx(exact["sembscore"], abs=tolerance)


# Loading


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_missing_file_is_named_with_the_command_that_gets_it(copy: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(UserError, match=rf"{name} is missing.*unirg weights fetch chexbert"):
        CheXbert(copy, Compute())


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_file_cut_short_is_refused(copy: Path, name: str) -> None:
    data = (copy / name).read_bytes()
    (copy / name).write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match="cannot read"):
        CheXbert(copy, Compute())


def test_weights_without_a_head_are_refused(copy: Path) -> None:
    tensors = load_file(copy / "model.safetensors")
    del tensors["linear_heads.5.weight"]
    save_file(tensors, copy / "model.safetensors")
    with pytest.raises(UserError, match=r"linear_heads.5.weight is missing"):
        CheXbert(copy, Compute())


def test_a_tokenizer_of_another_model_is_refused(copy: Path) -> None:
    tiny.roberta_tokenizer(copy)
    with pytest.raises(UserError, match="they are not of one model"):
        CheXbert(copy, Compute())


def test_the_identity_follows_weights_and_precision_but_not_the_batch(directory: Path, copy: Path) -> None:
    whole = _scorer(directory).identity
    assert CheXbert(copy, Compute(tokens=7)).identity == whole
    assert _scorer(directory, 0, "bf16").identity != whole
    tensors = load_file(copy / "model.safetensors")
    tensors["linear_heads.0.bias"] += 1
    save_file(tensors, copy / "model.safetensors")
    assert CheXbert(copy, Compute()).identity != whole
