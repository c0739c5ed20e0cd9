"""BERTScore (Zhang et al., ICLR 2020): F1 of tokens matched greedily by the cosine of their hidden states.

1 for identical texts and about 0 for unrelated ones, by the rescaling (F - b) / (1 - b); no lower bound of
its own; higher is better. ReXrank's setting (rajpurkarlab/CXR-Report-Metric, `run_eval.py`, over the package
bert-score): distilroberta-base, layer 5, no idf weights, rescaled with the published b = 0.8473319.

As in the package: runs of spaces become one, the text is stripped, its first word is tokenised like any
other, with a space before it, and it is cut to 512 tokens with the last </s> kept. A token's best match may
be <s> or </s>, but these two do not count as tokens to be matched. So an empty text has none: F is 0, and
the score -b / (1 - b) = -5.5502.
Mended: the package takes the cosine 0 of padding for a possible match where a batch has any, so that a score
may depend on its batch; here only tokens match.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError

from unirg import storage
from unirg.config import Config, canonical_json
from unirg.errors import UserError
from unirg.metrics import weights
from unirg.metrics.encoder import (
    Compute,
    hidden_states,
    load_config,
    load_tokenizer,
    prepared,
    run,
    token_ids,
)
from unirg.metrics.scorer import Row

if TYPE_CHECKING:
    from transformers import RobertaConfig, RobertaModel

VERSION = 1
"""Raised whenever the same weights would give another score."""
_FILES = ("config.json", "model.safetensors", "tokenizer.json", "bertscore.json")
_LIMIT = 512
_BLOCK = 4096
"""Tokens of candidates that meet one reference at once: bounds the memory of a comparison."""


class Setting(Config):
    """What `bertscore.json` beside the weights says."""

    layer: int = Field(ge=1)
    """Whose hidden states are matched; layers above it are not loaded."""
    baseline_f1: float = Field(lt=1)
    """b: the mean F of unrelated sentences."""


class Tokens(NamedTuple):
    """What the encoder reads of one text."""

    states: NDArray[np.float32]
    """(tokens, width), each of length 1; special tokens included."""
    counted: NDArray[np.bool_]
    """(tokens,): no special token."""


class BertScore:
    """The scorer; `TextScorer` documents its members."""

    name = "bertscore"
    scores = ("bertscore",)
    # The states of a text take hundreds of kilobytes.
    kept: Literal["texts", "pairs"] = "pairs"

    def __init__(self, directory: Path, compute: Compute) -> None:
        """
        Args:
            directory: config.json, model.safetensors and the tokenizer of a RoBERTa, and bertscore.json, as
                `unirg weights fetch bertscore` writes them.

        Raises:
            UserError: a file is missing, or the weights are not those of the architecture.
        """
        weights.require(directory, self.name, _FILES)
        from transformers import RobertaConfig

        config = load_config(RobertaConfig, directory)
        self._setting = _setting(directory / "bertscore.json", config.num_hidden_layers)
        self._compute = compute
        self._tokenizer = load_tokenizer(directory, config)
        # RoBERTa counts positions from the padding's id on.
        self._limit = min(_LIMIT, config.max_position_embeddings - config.pad_token_id - 1)
        self._width = config.hidden_size
        self._model = prepared(_encoder(directory, config, self._setting.layer), compute)
        settings = [self.name, VERSION, weights.identity(directory), compute.precision]
        self.identity = storage.sha256(canonical_json(settings))[:16]

    def read(self, texts: Sequence[str]) -> list[Tokens]:
        sequences = token_ids(self._tokenizer, [_as_tokenised(text) for text in texts], self._limit)
        special = (self._tokenizer.cls_token_id, self._tokenizer.sep_token_id)
        features: dict[int, Tokens] = {}
        padding = self._tokenizer.pad_token_id
        for rows, found in run(hidden_states(self._model), sequences, padding, self._compute):
            unit = (found / found.norm(dim=-1, keepdim=True)).cpu().numpy()
            for states, row in zip(unit, rows, strict=True):
                counted = ~np.isin(sequences[row], special)
                features[row] = Tokens(states[: len(counted)].copy(), counted)
        return [features[row] for row in range(len(texts))]

    def compare(self, candidates: Sequence[Tokens], references: Sequence[Tokens]) -> list[Row]:
        # Candidates of one reference, a GRPO group, meet it in one product of matrices.
        groups: dict[int, list[int]] = defaultdict(list)
        for pair, reference in enumerate(references):
            groups[id(reference.states)].append(pair)
        f1 = np.empty(len(candidates))
        for pairs in groups.values():
            for block in _blocks(pairs, [len(candidates[pair].counted) for pair in pairs]):
                f1[block] = _f1([candidates[pair] for pair in block], references[block[0]])
        baseline = self._setting.baseline_f1
        return [{"bertscore": score} for score in ((f1 - baseline) / (1 - baseline)).tolist()]

    def pack(self, feature: Tokens) -> bytes:
        return feature.states.astype("<f4").tobytes() + feature.counted.tobytes()

    def unpack(self, data: bytes) -> Tokens:
        count = len(data) // (4 * self._width + 1)
        states = np.frombuffer(data, "<f4", count * self._width).astype(np.float32)
        return Tokens(states.reshape(count, self._width), np.frombuffer(data[-count:], np.bool_))

    def size(self, feature: Tokens) -> int:
        return feature.states.nbytes + feature.counted.nbytes


def _as_tokenised(text: str) -> str:
    """ReXrank's white space, and before the first word the space that RoBERTa's tokens of a word begin with.

    That space is put here because transformers 5 ignores `add_prefix_space` in a call.
    """
    stripped = re.sub(" +", " ", text).strip()
    return f" {stripped}" if stripped else ""


def _blocks(pairs: Sequence[int], lengths: Sequence[int]) -> Iterator[list[int]]:
    """The pairs in order, cut where their lengths would exceed `_BLOCK`."""
    block: list[int] = []
    total = 0
    for pair, length in zip(pairs, lengths, strict=True):
        if block and total + length > _BLOCK:
            yield block
            block, total = [], 0
        block.append(pair)
        total += length
    yield block


def _f1(candidates: Sequence[Tokens], reference: Tokens) -> NDArray[np.float64]:
    """F of each candidate against one reference, not rescaled; 0 where a side has no token that counts."""
    lengths = [len(candidate.counted) for candidate in candidates]
    starts = np.cumsum([0, *lengths[:-1]])
    counted = np.concatenate([candidate.counted for candidate in candidates])
    cosines = np.concatenate([candidate.states for candidate in candidates]) @ reference.states.T
    matched = np.add.reduceat(cosines.max(1) * counted, starts, dtype=np.float64)
    found = np.maximum.reduceat(cosines, starts).sum(1, dtype=np.float64, where=reference.counted)
    precision = matched / np.maximum(1, np.add.reduceat(counted, starts, dtype=np.int64))
    recall = found / max(1, reference.counted.sum())
    total = precision + recall
    return np.divide(2 * precision * recall, total, out=np.zeros_like(total), where=total != 0)


def _setting(path: Path, layers: int) -> Setting:
    try:
        setting = Setting.model_validate(json.loads(path.read_bytes()))
    except (ValueError, ValidationError) as error:
        raise UserError(
            f'{path} is not {{"layer": number, "baseline_f1": number below 1}}: write it so, or fetch again'
        ) from error
    if setting.layer > layers:
        raise UserError(f"{path}: layer {setting.layer} of a model of {layers}: name one that it has")
    return setting


def _encoder(directory: Path, config: RobertaConfig, layer: int) -> RobertaModel:
    """The encoder up to its hidden states of the layer."""
    from transformers import RobertaModel

    unused = tuple(f"encoder.layer.{above}." for above in range(layer, config.num_hidden_layers))
    config.num_hidden_layers = layer
    model = RobertaModel(config, add_pooling_layer=False).float()
    path = directory / "model.safetensors"
    # A checkpoint of a language model holds its encoder under this prefix, beside the head.
    tensors = {name.removeprefix("roberta."): value for name, value in weights.load_tensors(path).items()}
    ignored = (*unused, "pooler.", "lm_head.", "embeddings.position_ids")
    weights.fit(model, tensors, path, ignored)
    return model
