"""CheXbert (Smit et al., EMNLP 2020): SembScore in both its readings, and the labels of 14 conditions.

SembScore, -1 to 1, higher is better:
- `sembscore`: cosine of CheXbert's embeddings (its first token's last hidden state). This is ReXrank's: the
  code that it runs (rajpurkarlab/CXR-Report-Metric, `CXRMetric/CheXbert/src/encode.py`, `logits=False`).
- `sembscore_labels`, 0 to 1: cosine of the two vectors of 14 labels, the reading that the paper (Yu et al.,
  Patterns 2023) and the field describe. A label is 1 where CheXbert says positive or uncertain, else 0.
  Where neither text has a label of 1 the vectors are equal and score 1; where only one has, 0.

Text as in the original: white space collapsed and stripped, WordPiece, cut to the 512 tokens of BERT, the
last of them [SEP]. An empty text is [CLS] [SEP]: it has an embedding and labels like any other.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from unirg import storage
from unirg.config import canonical_json
from unirg.metrics import weights
from unirg.metrics.conditions import POSITIVE, UNCERTAIN
from unirg.metrics.encoder import Compute, load_config, load_tokenizer, prepared, run, token_ids
from unirg.metrics.findings_terms import CONDITIONS
from unirg.metrics.scorer import Row

if TYPE_CHECKING:
    from unirg.metrics.chexbert_network import CheXbertNetwork

VERSION = 1
"""Raised whenever the same weights would give another score."""
_FILES = ("config.json", "model.safetensors", "tokenizer.json")
_LIMIT = 512
_LOGITS = 4 * (len(CONDITIONS) - 1) + 2


class Reading(NamedTuple):
    """What CheXbert reads of one text."""

    embedding: NDArray[np.float32]
    """(width,)"""
    logits: NDArray[np.float32]
    """(54,): of the 14 conditions one after the other, 4 of each and 2 of No Finding."""


def labels(reading: Reading) -> NDArray[np.int64]:
    """(14,) classes of `conditions.LABELS`, in the order of `findings_terms.CONDITIONS`."""
    return _classes(reading.logits)


class CheXbert:
    """The scorer; `TextScorer` documents its members."""

    name = "chexbert"
    scores = ("sembscore", "sembscore_labels")
    kept: Literal["texts", "pairs"] = "texts"

    def __init__(self, directory: Path, compute: Compute) -> None:
        """
        Args:
            directory: config.json, model.safetensors and the tokenizer's files, as `unirg weights fetch
                chexbert` writes them.

        Raises:
            UserError: a file is missing, or the weights are not CheXbert's.
        """
        weights.require(directory, self.name, _FILES)
        self._compute = compute
        self._network = load_network(directory)
        self._network.bert = prepared(self._network.bert, compute)
        # The heads stay in float32, whatever the encoder's precision: they cost nothing.
        self._network.linear_heads.eval().requires_grad_(False)
        config = self._network.bert.config
        self._tokenizer = load_tokenizer(directory, config)
        self._width = config.hidden_size
        self._limit = min(_LIMIT, config.max_position_embeddings)
        settings = [self.name, VERSION, weights.identity(directory), compute.precision]
        self.identity = storage.sha256(canonical_json(settings))[:16]

    def read(self, texts: Sequence[str]) -> list[Reading]:
        sequences = token_ids(self._tokenizer, [" ".join(text.split()) for text in texts], self._limit)
        embeddings = np.empty((len(texts), self._width), np.float32)
        logits = np.empty((len(texts), _LOGITS), np.float32)
        padding = self._tokenizer.pad_token_id
        for rows, found in run(self._network.embedding, sequences, padding, self._compute):
            embedding = found.cpu()
            embeddings[rows] = embedding.numpy()
            logits[rows] = np.concatenate([head.numpy() for head in self._network.heads(embedding)], axis=1)
        return [Reading(*reading) for reading in zip(embeddings, logits, strict=True)]

    def compare(self, candidates: Sequence[Reading], references: Sequence[Reading]) -> list[Row]:
        if not candidates:
            return []
        a, b = (
            np.stack([reading.embedding for reading in side]).astype(np.float64)
            for side in (candidates, references)
        )
        said, expected = (
            np.isin(_classes(np.stack([reading.logits for reading in side])), (POSITIVE, UNCERTAIN))
            for side in (candidates, references)
        )
        return [
            dict(zip(self.scores, pair, strict=True))
            for pair in zip(_cosine(a, b).tolist(), _label_cosine(said, expected).tolist(), strict=True)
        ]

    def pack(self, feature: Reading) -> bytes:
        return np.concatenate(feature).astype("<f4").tobytes()

    def unpack(self, data: bytes) -> Reading:
        values = np.frombuffer(data, "<f4").astype(np.float32)
        return Reading(values[:-_LOGITS], values[-_LOGITS:])

    def size(self, feature: Reading) -> int:
        return feature.embedding.nbytes + feature.logits.nbytes


def load_network(directory: Path) -> CheXbertNetwork:
    """CheXbert's network with the weights of a directory, on the CPU in float32.

    Raises:
        UserError: they are not of this architecture.
    """
    from transformers import BertConfig

    from unirg.metrics.chexbert_network import CheXbertNetwork

    network = CheXbertNetwork(load_config(BertConfig, directory)).float()
    path = directory / "model.safetensors"
    # The public checkpoint also holds BERT's pooler, which CheXbert never asks, and a table of positions.
    weights.fit(network, weights.load_tensors(path), path, ("bert.pooler.", "bert.embeddings.position_ids"))
    return network


def _classes(logits: NDArray[np.float32]) -> NDArray[np.int64]:
    """(..., 54) logits -> (..., 14) classes."""
    four = logits[..., :-2].reshape(*logits.shape[:-1], -1, 4).argmax(-1)
    return np.concatenate([four, logits[..., -2:].argmax(-1)[..., None]], axis=-1)


def _cosine(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    return (a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))


def _label_cosine(said: NDArray[np.bool_], expected: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Cosine of vectors of zeros and ones, (pairs, 14) each; of two zero vectors 1, of one 0."""
    lengths = np.sqrt(said.sum(1) * expected.sum(1))
    cosine = (said & expected).sum(1) / np.maximum(lengths, 1)
    return np.where((said == expected).all(1), 1.0, cosine)
