"""RaTEScore (Zhao et al., EMNLP 2024): how well two reports' medical entities match, by meaning and by type.

0 to 1, higher is better (outside only where best matches have negative cosines); .5 where a side has no
entity. ReXrank's setting is the package's own (RaTEScore 0.6.0): the networks RaTE-NER-Deberta and
BioLORD-2023-C, and the affinities for long reports.

Sentence by sentence, RaTE-NER tags tokens and the tags become entities of five types; BioLORD's [CLS] state
of an entity's words, 30 tokens at most, is its embedding. Each entity of one report takes the entity of the
other with the highest cosine. The precision is the mean of these cosines, each weighted by the affinity of
the two types and scaled by .872 where one of them negates what the other affirms; the recall is the same
from the other side; the score is their F1. `entities` documents what the package makes of unusual tags.

Mended: the package gives fewer scores than pairs where a text has no sentence of three characters or more,
so that those behind it belong to other pairs; here each pair has its own.
Undefined there: which of equal cosines is the best, as between the same words with two types, is decided by
the last bits of a product. Here equal is what differs by less than 1e-6, and torch.topk decides, as it mostly
does there; `undecided` tells such pairs. So a report scores below 1 against itself where it has such words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from unirg import storage
from unirg.config import canonical_json
from unirg.errors import UserError
from unirg.metrics import sentences, weights
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

VERSION = 1
"""Raised whenever the same weights would give another score."""
TYPES = ("ABNORMALITY", "ANATOMY", "DISEASE", "NON-ABNORMALITY", "NON-DISEASE")
# The package's DEFAULT_MATRIX_LONG: rows are the entity's type, columns its match's, both as TYPES.
# fmt: off
AFFINITY = np.array(
    [
        [.4276119164393705, .6240929990607657, .0034478181112993847, .5431049700217344, .27005425386213877],
        [.7487824274337533, .2856134859160784, .4592143222158069, .02097055139911715, .00013736314126696204],
        [.8396510075734789, .9950209388542061, .8460555030578727, .9820689020512646, .3789136708096537],
        [.16546764653692908, .018670610691852826, .719397354576018, .0009357166071730684, .0927333564267591],
        [.7759420231214385, .1839139293714062, .10073046076318157, .03860183811876373, .34065681486566446],
    ]
)
# fmt: on
NEGATION = 0.8716553966489615
_FILES = tuple(
    f"{part}/{name}"
    for part in ("ner", "synonyms")
    for name in ("config.json", "model.safetensors", "tokenizer.json")
)
_SENTENCE, _ENTITY = 512, 30
"""Tokens at most, special ones included."""
_REMEMBERED = 16_384
"""Sentences and entities that are kept from call to call; an embedding takes 3 KB."""

Entity = tuple[str, int]
"""Its words, and its type's place in TYPES."""
_Value = TypeVar("_Value")


class Entities(NamedTuple):
    """What is read of one text."""

    embeddings: NDArray[np.float32]
    """(entities, width)"""
    types: NDArray[np.int8]
    """(entities,) places in TYPES."""


class RaTEScore:
    """The scorer; `TextScorer` documents its members."""

    name = "ratescore"
    scores = ("ratescore",)
    kept: Literal["texts", "pairs"] = "texts"

    def __init__(self, directory: Path, compute: Compute) -> None:
        """
        Args:
            directory: `ner/` and `synonyms/`, each with config.json, model.safetensors and its tokenizer, as
                `unirg weights fetch ratescore` writes them.

        Raises:
            UserError: a file is missing, or the weights are not those of the architectures.
        """
        from transformers import DebertaV2Config, DebertaV2ForTokenClassification, MPNetConfig, MPNetModel

        weights.require(directory, self.name, _FILES)
        self._compute = compute
        config = load_config(DebertaV2Config, directory / "ner")
        self._tags = _tags(config, directory / "ner")
        self._tokenizer = load_tokenizer(directory / "ner", config)
        self._limit = min(_SENTENCE, config.max_position_embeddings)
        model = _filled(DebertaV2ForTokenClassification(config), directory / "ner")
        self._tagger = prepared(model, compute)

        config = load_config(MPNetConfig, directory / "synonyms")
        self._width = config.hidden_size
        self._synonym_tokenizer = load_tokenizer(directory / "synonyms", config)
        model = _filled(MPNetModel(config, add_pooling_layer=False), directory / "synonyms")
        self._synonyms = prepared(model, compute)

        self._sentences: dict[str, list[Entity]] = {}
        self._embeddings: dict[str, NDArray[np.float32]] = {}
        settings = [self.name, VERSION, sentences.VERSION, AFFINITY.tolist(), NEGATION]
        settings += [weights.identity(directory), compute.precision]
        self.identity = storage.sha256(canonical_json(settings))[:16]

    def read(self, texts: Sequence[str]) -> list[Entities]:
        split = [sentences.split(text) for text in texts]
        tagged = _recall(self._sentences, [sentence for parts in split for sentence in parts], self._entities)
        found = [[entity for sentence in parts for entity in tagged[sentence]] for parts in split]
        words = [word for entities in found for word, _ in entities]
        embeddings = _recall(self._embeddings, words, self._embedded)
        return [
            Entities(
                np.stack([embeddings[word] for word, _ in entities])
                if entities
                else np.empty((0, self._width), np.float32),
                np.array([kind for _, kind in entities], np.int8),
            )
            for entities in found
        ]

    def compare(self, candidates: Sequence[Entities], references: Sequence[Entities]) -> list[Row]:
        return [
            {"ratescore": _f1(candidate, reference)}
            for candidate, reference in zip(candidates, references, strict=True)
        ]

    def pack(self, feature: Entities) -> bytes:
        return feature.types.tobytes() + feature.embeddings.astype("<f4").tobytes()

    def unpack(self, data: bytes) -> Entities:
        count = len(data) // (4 * self._width + 1)
        embeddings = np.frombuffer(data, "<f4", offset=count).astype(np.float32)
        return Entities(embeddings.reshape(count, self._width), np.frombuffer(data, np.int8, count))

    def size(self, feature: Entities) -> int:
        return feature.embeddings.nbytes + feature.types.nbytes

    def _entities(self, texts: Sequence[str]) -> list[list[Entity]]:
        """The entities of each sentence."""
        import torch

        def tag(ids: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
            return self._tagger(input_ids=ids, attention_mask=mask).logits

        tokenizer = self._tokenizer
        sequences = token_ids(tokenizer, texts, self._limit)
        found: dict[int, list[Entity]] = {}
        for rows, logits in run(tag, sequences, tokenizer.pad_token_id, self._compute):
            for row, places in zip(rows, logits.argmax(-1).tolist(), strict=True):
                ids = sequences[row]
                tags = [self._tags[place] for place in places[: len(ids)]]
                # As many tokens go as the text itself has [PAD], from its end.
                real = sum(token != tokenizer.pad_token_id for token in ids)
                tokens = tokenizer.convert_ids_to_tokens(ids[:real])
                found[row] = [
                    (tokenizer.convert_tokens_to_string(tokens[start : end + 1]), TYPES.index(kind))
                    for start, end, kind in entities(tokens, tags)
                ]
        return [found[row] for row in range(len(texts))]

    def _embedded(self, words: Sequence[str]) -> list[NDArray[np.float32]]:
        """The embedding of each entity's words."""
        sequences = token_ids(self._synonym_tokenizer, words, _ENTITY)
        embeddings: NDArray[np.float32] = np.empty((len(words), self._width), np.float32)
        padding = self._synonym_tokenizer.pad_token_id
        for rows, states in run(hidden_states(self._synonyms), sequences, padding, self._compute):
            embeddings[rows] = states[:, 0].cpu().numpy()
        return list(embeddings)


def entities(tokens: Sequence[str], tags: Sequence[str]) -> list[tuple[int, int, str]]:
    """(first token, last token, type) of each entity, as the package decides.

    A B- starts an entity, which ends before the next tag that is no I-; its type is that of its B-, whatever
    its I- say. A tag counts by what follows it, so the last token's, [SEP]'s, counts only for the one before.
    What is unusual:
    - An I- without a B- before it is no part of an entity, unless another entity's end, directly before a
      B-, came in between: then that end counts as its start.
    - An entity that still goes on at [SEP] ends there, but is lost if one of those before it since the last
      O ended directly before a B-.
    - [CLS] and [SEP] in the text itself are passed over, whatever their tag.
    """
    found: list[tuple[int, int, str]] = []
    start: int | None = None
    kind = ""
    ended_before_another = False
    for place, (token, tag, following) in enumerate(zip(tokens, tags, tags[1:], strict=False)):
        if token in ("[CLS]", "[SEP]") or tag == "O":
            continue
        if tag.startswith("B-"):
            start, kind = place, tag[2:]
        if following.startswith("I-"):
            continue
        if start is not None:
            found.append((start, place, kind))
        ended_before_another = following != "O"
        start, kind = (place, tag[2:]) if ended_before_another else (None, "")
    if start is not None and not ended_before_another:
        found.append((start, len(tokens) - 2, kind))
    return found


def undecided(candidate: Entities, reference: Entities) -> bool:
    """Whether an entity has equally good matches of two types: the package's score is then one of several."""
    if not len(candidate.types) or not len(reference.types):
        return False
    cosines = _unit(candidate.embeddings) @ _unit(reference.embeddings).T
    return any(
        len(set(types[row >= row.max() - _EQUAL])) > 1
        for rows, types in ((cosines, reference.types), (cosines.T, candidate.types))
        for row in rows
    )


def _f1(candidate: Entities, reference: Entities) -> float:
    if not len(candidate.types) or not len(reference.types):
        return 0.5
    cosines = _unit(candidate.embeddings) @ _unit(reference.embeddings).T
    precision = _matched(cosines, candidate.types, reference.types)
    recall = _matched(cosines.T, reference.types, candidate.types)
    total = precision + recall
    return 2 * precision * recall / total if total else 0.0


def _matched(cosines: NDArray[np.float64], types: NDArray[np.int8], others: NDArray[np.int8]) -> float:
    """How well the entities of the rows are matched by those of the columns."""
    import torch

    # The choice among equals hangs on the order of all others too, so topk sees ranks: the last bits of a
    # cosine, which change with the batch, change no rank.
    best = torch.from_numpy(_ranks(cosines)).topk(1).indices[:, 0].numpy()
    affinity = AFFINITY[types, others[best]]
    values = cosines[np.arange(len(types)), best] * _NEGATED[types, others[best]]
    return float((affinity * values).sum() / affinity.sum())


def _ranks(cosines: NDArray[np.float64]) -> NDArray[np.int64]:
    """Each value's rank in its row, from 0; values that follow each other by less than `_EQUAL` share one."""
    order = cosines.argsort(1)
    ascending = np.take_along_axis(cosines, order, 1)
    steps = np.diff(ascending, axis=1, prepend=ascending[:, :1]) > _EQUAL
    ranks = np.empty_like(order)
    np.put_along_axis(ranks, order, steps.cumsum(1), 1)
    return ranks


def _unit(embeddings: NDArray[np.float32]) -> NDArray[np.float64]:
    lengths = np.linalg.norm(embeddings.astype(np.float64), axis=1, keepdims=True)
    return embeddings / np.maximum(lengths, 1e-12)


def _negated() -> NDArray[np.float64]:
    """Anatomy is neither negated nor affirmed; of the others one may negate what the other affirms."""
    side = np.array([0 if kind == "ANATOMY" else -1 if kind.startswith("NON-") else 1 for kind in TYPES])
    return np.where(np.outer(side, side) < 0, NEGATION, 1.0)


_NEGATED = _negated()
_EQUAL = 1e-6
"""Cosines nearer to each other are equal: the same words embedded in two batches differ by less."""


def _recall(memory: dict[str, _Value], keys: Sequence[str], read: Any) -> Mapping[str, _Value]:
    """The value of each key: remembered, or read now and remembered, the oldest forgotten for it."""
    known = {key: memory[key] for key in keys if key in memory}
    new = [key for key in dict.fromkeys(keys) if key not in known]
    memory.update(found := dict(zip(new, read(new), strict=True)))
    while len(memory) > _REMEMBERED:
        del memory[next(iter(memory))]
    return known | found


def _tags(config: Any, directory: Path) -> list[str]:
    """The tag of each logit."""
    tags = [config.id2label[place] for place in range(config.num_labels)]
    known = {"O", *(f"{side}-{kind}" for side in "BI" for kind in TYPES)}
    if unknown := sorted(set(tags) - known):
        raise UserError(
            f"{directory / 'config.json'} has the label {unknown[0]}, where RaTEScore knows O, and B- and I- "
            f"of {', '.join(TYPES)}: name the weights of RaTE-NER"
        )
    return tags


def _filled(model: Any, directory: Path) -> Any:
    path = directory / "model.safetensors"
    # What the public checkpoints also hold and no one asks: a pooler and tables of positions.
    ignored = ("pooler.", "embeddings.position_ids", "deberta.embeddings.position_ids")
    weights.fit(model.float(), weights.load_tensors(path), path, ignored)
    return model
