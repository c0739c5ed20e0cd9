"""The network behind RadGraph: DyGIE++ (Wadden et al., EMNLP 2019), trained by Jain et al. (2021).

A word is the mean of its wordpieces' encodings. A span, of up to `max_span_width` words, is [first word;
last word; embedding of its width]. From there on there are three feed-forward networks: one gives a span a
score for each entity label, one says how much a span deserves to take part in relations, and one gives a pair
of such spans, as [a; b; a * b], a score for each relation type. "Nothing" has the score 0 everywhere.

Parameters bear the names of the public `weights.th`, so that it loads as it is. The first layer of each
network is linear in the parts of its input: it is applied to each word, width and span once, and summed.

Keys used of the AllenNLP configuration: `model.feature_size`, `model.max_span_width`,
`model.feedforward_params.{num_layers, hidden_dims, dropout}`, `model.modules.relation.spans_per_word`,
`model.modules.coref.coref_prop` (must be 0) and `dataset_reader.max_span_width`; the scorer also reads
`dataset_reader.token_indexers.bert.max_length`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from unirg.errors import UserError

ENCODER = "_embedder.token_embedder_bert._matched_embedder.transformer_model"

_PAIRS = 8192
"""Pairs of spans scored at a time: bounds memory, at 50 MB for a BERT-base encoder."""


@dataclass(frozen=True)
class Labels:
    """What the network can predict, in the order of its outputs."""

    dataset: str
    """The namespace in the vocabulary and in the names of the parameters: "radgraph", "radgraph-xl"."""
    entities: tuple[str, ...]
    relations: tuple[str, ...]

    @classmethod
    def read(cls, vocabulary: Path, dataset: str) -> Labels:
        """The labels of a dataset in an AllenNLP vocabulary; of the only one there, if that has another name.

        Raises:
            UserError: there is neither, or a file does not start with the empty label.
        """
        ending = "__ner_labels"
        found = sorted(path.stem.removesuffix(ending) for path in vocabulary.glob(f"*{ending}.txt"))
        if dataset not in found:
            if len(found) != 1:
                raise UserError(
                    f"{vocabulary} holds labels for {', '.join(found) or 'nothing'}, not for {dataset}: "
                    f"name a directory with the weights of {dataset}"
                )
            dataset = found[0]
        entities = _lines(vocabulary / f"{dataset}{ending}.txt")
        relations = _lines(vocabulary / f"{dataset}__relation_labels.txt")
        if entities[:1] != [""] or len(entities) < 2 or not relations:
            raise UserError(
                f"{vocabulary} is no vocabulary of RadGraph: {dataset}{ending}.txt starts with an empty "
                "line, and each file holds a label; fetch the weights again"
            )
        return cls(dataset, tuple(entities[1:]), tuple(relations))

    def write(self, vocabulary: Path) -> None:
        """The labels as AllenNLP keeps them: a line each, the empty label for no entity first."""
        vocabulary.mkdir(parents=True, exist_ok=True)
        for kind, labels in (("ner", ("", *self.entities)), ("relation", self.relations)):
            path = vocabulary / f"{self.dataset}__{kind}_labels.txt"
            path.write_text("".join(f"{label}\n" for label in labels), encoding="utf-8")
        (vocabulary / "non_padded_namespaces.txt").write_text("*labels\n*tags\n", encoding="utf-8")


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise UserError(f"{path} is missing: fetch the weights of {path.parent.parent.name} again") from None


def setting(config: dict[str, Any], path: str) -> Any:
    """The value at a dotted path of the configuration.

    Raises:
        UserError: there is none.
    """
    value: Any = config
    for name in path.split("."):
        if not isinstance(value, dict) or name not in value:
            raise UserError(f"the config.json of RadGraph has no {path}: fetch its weights again")
        value = value[name]
    return value


@dataclass(frozen=True)
class Tokens:
    """A text as the network reads it."""

    segments: list[list[int]]
    """Ids of the wordpieces, cut to the encoder's length, each segment with [CLS] before and [SEP] after."""
    pieces: list[int]
    """Wordpieces of each word; 0 for one that the tokenizer drops."""


@dataclass(frozen=True)
class Scores:
    """What the network gives for a batch of texts; the scores are ready for a cross entropy."""

    spans: Tensor
    """(spans, 3): text, first word, last word inclusive; ordered so. Words are counted from their text's."""
    entities: Tensor
    """(spans, 1 + labels): column 0 is no entity, 1 + i is `Labels.entities[i]`."""
    pairs: Tensor
    """(pairs, 2): rows of `spans`, source and target; all ordered pairs of a text's kept spans."""
    relations: Tensor
    """(pairs, 1 + types): column 0 is no relation, 1 + i is `Labels.relations[i]`."""


class FeedForward(nn.Module):
    """Linear layers, each followed by ReLU and dropout; the caller computes the first linear one."""

    def __init__(self, width: int, config: dict[str, Any]) -> None:
        super().__init__()
        layers = int(setting(config, "model.feedforward_params.num_layers"))
        sizes, rates = (
            value if isinstance(value, list) else [value] * layers
            for value in (
                setting(config, "model.feedforward_params.hidden_dims"),
                setting(config, "model.feedforward_params.dropout"),
            )
        )
        self.out = int(sizes[-1])
        self._linear_layers = nn.ModuleList(
            nn.Linear(before, after) for before, after in zip([width, *sizes[:-1]], sizes, strict=True)
        )
        self._dropout = nn.ModuleList(nn.Dropout(rate) for rate in rates)

    @property
    def first(self) -> nn.Linear:
        return cast(nn.Linear, self._linear_layers[0])

    def forward(self, sums: Tensor) -> Tensor:
        """(rows, hidden) before the first ReLU -> (rows, out)."""
        for number, dropout in enumerate(self._dropout):
            if number:
                sums = self._linear_layers[number](sums)
            sums = dropout(functional.relu(sums))
        return sums


class SpanScorer(nn.ModuleDict):
    """Scores of spans: a feed-forward network and a linear layer, under AllenNLP's names."""

    def __init__(self, width: int, out: int, config: dict[str, Any]) -> None:
        hidden = FeedForward(width, config)
        super().__init__(
            {
                "0": nn.ModuleDict({"_module": hidden}),
                "1": nn.ModuleDict({"_module": nn.Linear(hidden.out, out)}),
            }
        )

    def forward(self, words: Tensor, widths: Tensor, first: Tensor, last: Tensor) -> Tensor:
        """(words, width), (max width, feature) and the places of the spans' words -> (spans, out)."""
        hidden: FeedForward = self["0"]["_module"]
        size = words.shape[1]
        start, end, width = hidden.first.weight.split([size, size, widths.shape[1]], dim=1)
        sums = (words @ start.T)[first] + (words @ end.T)[last]
        sums = sums + functional.linear(widths, width, hidden.first.bias)[last - first]
        return self["1"]["_module"](hidden(sums))


class RadGraphNetwork(nn.Module):
    """DyGIE++ with its modules for entities and relations."""

    def __init__(self, config: dict[str, Any], labels: Labels, encoder_config: Any) -> None:
        """
        Args:
            config: the AllenNLP configuration; the module's text lists the keys it reads.
            encoder_config: transformers' configuration of the text encoder, a BERT.

        Raises:
            UserError: the configuration lacks a key, or asks for what RadGraph does not have.
        """
        from transformers import MODEL_MAPPING

        super().__init__()
        self.labels = labels
        self.span_width = int(setting(config, "dataset_reader.max_span_width"))
        self.spans_per_word = float(setting(config, "model.modules.relation.spans_per_word"))
        known_widths = int(setting(config, "model.max_span_width"))
        if not 1 <= self.span_width <= known_widths:
            raise UserError(f"dataset_reader.max_span_width is {self.span_width}, not 1 to {known_widths}")
        if config["model"]["modules"].get("coref", {}).get("coref_prop", 0):
            raise UserError("model.modules.coref.coref_prop is not 0: RadGraph has no coreference")

        # Not `AutoModel.from_config`: beside a training under ZeRO-3 that makes weights without a size.
        encoder = MODEL_MAPPING[type(encoder_config)](encoder_config)
        feature = int(setting(config, "model.feature_size"))
        size = 2 * encoder.config.hidden_size + feature
        entities, relations = f"{labels.dataset}__ner_labels", f"{labels.dataset}__relation_labels"
        pair = FeedForward(3 * size, config)
        self._embedder = _nested(ENCODER.split(".")[1:], encoder)
        self._endpoint_span_extractor = _nested(
            ["_span_width_embedding"], nn.Embedding(known_widths, feature)
        )
        self._ner = _nested(["_ner_scorers", entities], SpanScorer(size, len(labels.entities), config))
        self._relation = nn.ModuleDict(
            {
                "_mention_pruners": _nested([relations, "_scorer"], SpanScorer(size, 1, config)),
                "_relation_feedforwards": _nested([relations], pair),
                "_relation_scorers": _nested([relations], nn.Linear(pair.out, len(labels.relations))),
            }
        )
        # The same modules within reach; held in a plain dict, so that no parameter has two names.
        self._parts: dict[str, Any] = {
            "widths": self._endpoint_span_extractor["_span_width_embedding"],
            "entities": self._ner["_ner_scorers"][entities],
            "mentions": self._relation["_mention_pruners"][relations]["_scorer"],
            "pair": pair,
            "relations": self._relation["_relation_scorers"][relations],
        }

    @property
    def encoder(self) -> nn.Module:
        return self.get_submodule(ENCODER)

    def spare(self, names: Iterable[str]) -> list[str]:
        """Prefixes of what a public file may hold beyond this network: the parts of DyGIE++ that RadGraph
        does not use, the heads of other datasets, and a buffer of older transformers."""
        heads = {_head(name) for name in names if name.startswith(("_ner.", "_relation."))}
        own = {_head(name) for name in self.state_dict()}
        return ["_coref.", "_events.", f"{ENCODER}.embeddings.position_ids", *sorted(heads - own)]

    def forward(self, texts: Sequence[Tokens], padding: int = 0) -> Scores:
        """The scores of a batch of texts, each of at least one wordpiece, for training: with gradients.

        For the loss over entities give each row of `Scores.spans` its gold label (0 where it has none), for
        that over relations each row of `Scores.pairs`. A gold pair may be missing, as the spans are pruned;
        what prunes them learns from the relations' loss alone.

        Args:
            padding: id that fills shorter segments up.
        """
        device = next(self.parameters()).device
        rows = [torch.tensor(segment) for text in texts for segment in text.segments]
        ids = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=padding).to(device)
        lengths = torch.tensor([len(row) for row in rows], device=device)
        place = torch.arange(ids.shape[1], device=device)
        states = self.encoder(
            input_ids=ids, attention_mask=(place < lengths[:, None]).long()
        ).last_hidden_state
        pieces = states[(place > 0) & (place < lengths[:, None] - 1)]
        words = self.words(pieces, [count for text in texts for count in text.pieces])
        sizes = torch.tensor([len(text.pieces) for text in texts], device=device)
        spans, first, last = self._spans(sizes)
        widths = self._parts["widths"].weight
        mentions = self._parts["mentions"](words, widths, first, last)[:, 0]
        kept = self._kept(mentions, spans[:, 0], sizes)
        found = list(self._relations(words, first[kept], last[kept], mentions[kept], spans[kept, 0]))
        return Scores(
            spans=spans,
            entities=_with_null(self._parts["entities"](words, widths, first, last)),
            pairs=kept[torch.cat([pairs for pairs, _ in found])],
            relations=torch.cat([scores for _, scores in found]),
        )

    def words(self, pieces: Tensor, counts: Sequence[int]) -> Tensor:
        """(wordpieces, width), how many each word has -> (words, width): means, or zeros for no wordpiece."""
        sizes = torch.tensor(counts, device=pieces.device)
        index = torch.arange(len(pieces), device=pieces.device)
        return functional.embedding_bag(index, pieces, sizes.cumsum(0) - sizes, mode="mean")

    @torch.inference_mode()
    def decode(self, words: Tensor, sizes: Sequence[int]) -> tuple[list[list[int]], list[list[int]]]:
        """What the network finds in a batch of texts.

        Only spans that are entities go into pairs: a relation with any other span is no edge of the graph.

        Args:
            words: (words of all texts, width).
            sizes: words of each text.

        Returns:
            Entities as [text, first word, last word, label], and relations as [source, target, type] where
            source and target are positions among the entities; both sorted.
        """
        counts = torch.tensor(sizes, device=words.device)
        spans, first, last = self._spans(counts)
        widths = self._parts["widths"].weight
        label = _with_null(self._parts["entities"](words, widths, first, last)).argmax(1)
        mentions = self._parts["mentions"](words, widths, first, last)[:, 0]
        entity = label.nonzero()[:, 0]
        kept = torch.zeros_like(label, dtype=torch.bool)
        kept[self._kept(mentions, spans[:, 0], counts)] = True
        chosen = kept[entity].nonzero()[:, 0]
        among = entity[chosen]
        relations: list[list[int]] = []
        for pairs, scores in self._relations(
            words, first[among], last[among], mentions[among], spans[among, 0]
        ):
            kind = scores.argmax(1)
            found = kind.nonzero()[:, 0]
            relations += torch.cat([chosen[pairs[found]], kind[found, None] - 1], dim=1).tolist()
        entities = torch.cat([spans[entity], label[entity, None] - 1], dim=1).tolist()
        return entities, sorted(relations)

    def _spans(self, sizes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """All spans of texts of these many words, as `Scores.spans`; and the places of their first and last
        words among the words of all texts."""
        text = torch.arange(len(sizes), device=sizes.device).repeat_interleave(sizes)
        end = sizes.cumsum(0)
        width = torch.arange(self.span_width, device=sizes.device)
        first = torch.arange(len(text), device=sizes.device)[:, None].expand(-1, self.span_width)
        last = first + width
        inside = last < end[text][:, None]
        first, last = first[inside], last[inside]
        text = text[first]
        before = (end - sizes)[text]
        return torch.stack([text, first - before, last - before], dim=1), first, last

    def _kept(self, scores: Tensor, text: Tensor, sizes: Tensor) -> Tensor:
        """Rows of the best spans, ceil(words x spans_per_word) in each text; of equal ones, the earlier."""
        order = scores.argsort(descending=True, stable=True)
        order = order[text[order].argsort(stable=True)]
        counts = torch.bincount(text, minlength=len(sizes))
        owner = text[order]
        rank = torch.arange(len(order), device=order.device) - (counts.cumsum(0) - counts)[owner]
        room = torch.ceil(sizes.float() * self.spans_per_word).long()
        return order[rank < room[owner]].sort().values

    def _relations(
        self, words: Tensor, first: Tensor, last: Tensor, mentions: Tensor, text: Tensor
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Scores of all ordered pairs of these spans within a text, a part of the pairs at a time.

        Yields:
            (pairs, 2) places among the spans; (pairs, 1 + types) scores.
        """
        pair: FeedForward = self._parts["pair"]
        spans = torch.cat([words[first], words[last], self._parts["widths"](last - first)], dim=1)
        source, target, product = pair.first.weight.split(spans.shape[1], dim=1)
        sources, targets = functional.linear(spans, source, pair.first.bias), spans @ target.T
        for left, right in _pairs(text):
            # a * b is the same in both directions, and it is most of the work.
            both = (spans[left] * spans[right]) @ product.T
            one_way = torch.stack([left, right], dim=1)
            turned = left != right
            pairs = torch.cat([one_way, one_way[turned].flip(1)])
            sums = torch.cat([both, both[turned]]) + sources[pairs[:, 0]] + targets[pairs[:, 1]]
            scores = self._parts["relations"](pair(sums)) + mentions[pairs].sum(1, keepdim=True)
            yield pairs, _with_null(scores)


def _pairs(text: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Places i <= j of two items of one text, given the sorted texts of the items; one part or more."""
    places = torch.arange(len(text), device=text.device)
    partners = torch.searchsorted(text, text, right=True) - places
    left = places.repeat_interleave(partners)
    ahead = torch.arange(len(left), device=text.device) - (partners.cumsum(0) - partners)[left]
    for lefts, steps in zip(left.split(_PAIRS), ahead.split(_PAIRS), strict=True):
        yield lefts, lefts + steps


def _with_null(scores: Tensor) -> Tensor:
    return functional.pad(scores, (1, 0))


def _nested(path: Sequence[str], module: nn.Module) -> nn.ModuleDict:
    """The module below containers of these names."""
    for name in reversed(path):
        module = nn.ModuleDict({name: module})
    return cast(nn.ModuleDict, module)


def _head(name: str) -> str:
    return ".".join(name.split(".")[:3]) + "."
