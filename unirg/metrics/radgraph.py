"""RadGraph F1: how far the graphs of what two reports state agree (Jain et al., NeurIPS Datasets 2021).

A model reads a report's graph: entities, which are spans of words with a label (anatomy, or an observation
that is present, absent or uncertain), and relations between them. Every score is an F1 over what both graphs
hold; range 0 to 1, higher is better, symmetric. Ours takes one text's graph from a batch of any texts.

- `radgraph`, ReXrank's (rajpurkarlab/CXR-Report-Metric, RadGraph v1): the mean of the F1 over the sets of
  entities (words, label) and the F1 over the sets of relations (source, target, type), where both ends are
  entities (words, label). Nothing against nothing is 0, hence an identical report without relations has 0.5.
- `radgraph_simple`, `_partial`, `_complete` (package radgraph 0.1.18; Delbrouck et al., EMNLP Findings 2022):
  one F1 over a single set, which holds of each entity its words and label; the same and whether a relation
  starts at it; the same and each of these relations with its target's words, one item a relation.

Case counts, with one exception that is the package's: `complete` lowers the words of entities with relations
and not those of entities without. Later versions mend it; published numbers have it, so it stays.

A text without a word that the tokenizer knows has an empty graph, where the package fails or reads "None".
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from unirg import storage
from unirg.config import canonical_json
from unirg.errors import UserError
from unirg.metrics import encoder, weights
from unirg.metrics.encoder import Compute
from unirg.metrics.scorer import Row

if TYPE_CHECKING:
    import torch

    from unirg.metrics.radgraph_network import Tokens

Name = Literal["radgraph", "radgraph-xl"]

VERSION = 1
"""Goes up when the same weights give another graph or score."""

_FILES = ("config.json", "model.safetensors", "encoder/config.json")


class Entity(NamedTuple):
    """A span of words with its label."""

    tokens: str
    """Its words, joined by spaces."""
    label: str
    start: int
    """Position of its first word in the text."""
    end: int
    """Position of its last word, inclusive."""


class Relation(NamedTuple):
    """An edge; source and target are positions among the entities."""

    source: int
    target: int
    kind: str


class Graph(NamedTuple):
    """What a report states; entities by position, relations by source and target."""

    entities: tuple[Entity, ...] = ()
    relations: tuple[Relation, ...] = ()


class RadGraph:
    """RadGraph F1 with the weights of a directory; a `scorer.TextScorer` whose feature is a `Graph`."""

    kept: Literal["texts"] = "texts"

    def __init__(self, directory: Path, compute: Compute, name: Name = "radgraph") -> None:
        """
        Args:
            directory: `config.json`, `vocabulary/` and `model.safetensors` of the public archive, and
                `encoder/`, the configuration and the tokenizer of its text encoder.
            name: "radgraph" is PhysioNet's model, the one of ReXrank; "radgraph-xl" the later one, which
                cuts words otherwise.

        Raises:
            UserError: a file is missing, or the weights are not of this architecture.
        """
        weights.require(directory, name, _FILES)
        from transformers import AutoConfig

        from unirg.metrics.radgraph_network import ENCODER, Labels, RadGraphNetwork, setting

        self.name: str = name
        plain = name.replace("-", "_")
        self.scores = (plain, f"{plain}_simple", f"{plain}_partial", f"{plain}_complete")
        settings = [weights.identity(directory), VERSION, name, compute.precision]
        self.identity = storage.sha256(canonical_json(settings))[:16]

        config = _json(directory / "config.json")
        labels = Labels.read(directory / "vocabulary", name)
        encoder_config = AutoConfig.from_pretrained(directory / "encoder")
        network = RadGraphNetwork(config, labels, encoder_config)
        tensors = weights.load_tensors(directory / "model.safetensors")
        weights.fit(network, tensors, directory / "model.safetensors", ignore=network.spare(tensors))
        limit = setting(config, "dataset_reader.token_indexers.bert.max_length")
        self._tokeniser = Tokeniser(directory / "encoder", name, limit)
        self._compute = compute
        self._forward = encoder.hidden_states(encoder.prepared(network.get_submodule(ENCODER), compute))
        self._network = network.eval().requires_grad_(False).to(compute.device)

    def read(self, texts: Sequence[str]) -> list[Graph]:
        """The graph of each text; empty where the text holds nothing the tokenizer knows."""
        found = self._tokeniser(texts)
        graphs = [Graph()] * len(texts)
        rows = [(text, segment) for text, (_, tokens) in enumerate(found) for segment in tokens.segments]
        parts: dict[int, dict[int, torch.Tensor]] = defaultdict(dict)
        sequences = [segment for _, segment in rows]
        for batch, states in encoder.run(self._forward, sequences, self._tokeniser.padding, self._compute):
            whole = []
            for row, state in zip(batch, states, strict=True):
                text, segment = rows[row]
                parts[text][row] = state[1 : len(segment) - 1]  # without [CLS] and [SEP]
                if len(parts[text]) == len(found[text][1].segments):
                    whole.append(text)
            if whole:  # a long text waits for the last of its segments
                pieces = [[part for _, part in sorted(parts.pop(text).items())] for text in whole]
                for text, graph in zip(
                    whole, self._decode([found[text] for text in whole], pieces), strict=True
                ):
                    graphs[text] = graph
        return graphs

    def _decode(
        self, texts: Sequence[tuple[list[str], Tokens]], pieces: Sequence[Sequence[torch.Tensor]]
    ) -> list[Graph]:
        import torch

        flat = torch.cat([part for parts in pieces for part in parts])
        words = self._network.words(flat, [count for _, tokens in texts for count in tokens.pieces])
        entities, relations = self._network.decode(words, [len(words) for words, _ in texts])
        labels = self._network.labels
        nodes: list[list[Entity]] = [[] for _ in texts]
        edges: list[list[Relation]] = [[] for _ in texts]
        place = []
        for text, start, end, label in entities:
            place.append(len(nodes[text]))
            tokens = " ".join(texts[text][0][start : end + 1])
            nodes[text].append(Entity(tokens, labels.entities[label], start, end))
        for source, target, kind in relations:
            text = entities[source][0]
            edges[text].append(Relation(place[source], place[target], labels.relations[kind]))
        return [Graph(tuple(node), tuple(edge)) for node, edge in zip(nodes, edges, strict=True)]

    def compare(self, candidates: Sequence[Graph], references: Sequence[Graph]) -> list[Row]:
        return [
            dict(zip(self.scores, f1_scores(*pair), strict=True))
            for pair in zip(candidates, references, strict=True)
        ]

    def pack(self, feature: Graph) -> bytes:
        return json.dumps(feature, separators=(",", ":"), ensure_ascii=False).encode()

    def unpack(self, data: bytes) -> Graph:
        entities, relations = json.loads(data)
        return Graph(
            tuple(Entity(*entity) for entity in entities), tuple(Relation(*edge) for edge in relations)
        )

    def size(self, feature: Graph) -> int:
        return 120 + 200 * len(feature.entities) + 130 * len(feature.relations)


def f1_scores(one: Graph, other: Graph) -> tuple[float, float, float, float]:
    """ReXrank's level, then simple, partial and complete."""
    ours, theirs = _items(one), _items(other)
    entities, relations, partial, complete = map(_f1, ours, theirs)
    return (entities + relations) / 2, entities, partial, complete


def _items(graph: Graph) -> tuple[set[Hashable], ...]:
    """The sets that are compared: entities, relations, and what `partial` and `complete` hold."""
    nodes = [(entity.tokens, entity.label) for entity in graph.entities]
    sources = {edge.source for edge in graph.relations}
    relations = {(nodes[edge.source], nodes[edge.target], edge.kind) for edge in graph.relations}
    partial = {(*node, place in sources) for place, node in enumerate(nodes)}
    complete: set[Hashable] = {node for place, node in enumerate(nodes) if place not in sources}
    complete |= {
        (words.lower(), label, kind, target.lower()) for (words, label), (target, _), kind in relations
    }
    return set(nodes), set(relations), set(partial), complete


def _f1(ours: set[Hashable], theirs: set[Hashable]) -> float:
    shared = len(ours & theirs)
    return 2 * shared / (len(ours) + len(theirs)) if shared else 0.0


class Tokeniser:
    """Cuts texts into words as RadGraph's training did, and words into the encoder's wordpieces."""

    def __init__(self, directory: Path, name: Name, limit: int | None) -> None:
        """
        Args:
            directory: the encoder's `config.json` and tokenizer files.
            limit: longest segment in wordpieces, [CLS] and [SEP] included; None: the encoder's own.

        Raises:
            UserError: the tokenizer is missing, or gives ids that the encoder does not have.
        """
        from transformers import AutoConfig, AutoTokenizer

        config = AutoConfig.from_pretrained(directory)
        if not any((directory / file).is_file() for file in ("tokenizer.json", "vocab.txt")):
            raise UserError(f"{directory} has no tokenizer: get it with unirg weights fetch {name}")
        tokenizer: Any = AutoTokenizer.from_pretrained(directory)
        if len(tokenizer) > config.vocab_size:
            raise UserError(
                f"the tokenizer in {directory} has {len(tokenizer)} wordpieces and the encoder "
                f"{config.vocab_size}: get both with unirg weights fetch {name}"
            )
        self._tokenizer = tokenizer
        self._words = _WORDS[name]
        self._limit = min(limit or config.max_position_embeddings, config.max_position_embeddings) - 2
        self.padding: int = tokenizer.pad_token_id or 0

    def __call__(self, texts: Sequence[str]) -> list[tuple[list[str], Tokens]]:
        """The words of each text, and the text as the network reads it; no segment where it is empty."""
        # A lone surrogate, which no tokenizer takes, becomes "?".
        found = [self._words(text.encode("utf-8", "replace").decode()) for text in texts]
        # The training data had these two as one word, and the model knows the mark alone.
        seen = {
            word: word.removeprefix("/") if word in ("/.", "/?") else word
            for words in found
            for word in words
        }
        pieces = dict(zip(seen, self._pieces(list(seen.values())), strict=True))
        return [(words, self._tokens([pieces[word] for word in words])) for words in found]

    def _pieces(self, words: list[str]) -> list[list[int]]:
        if not words:
            return []
        return self._tokenizer(
            words,
            add_special_tokens=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )["input_ids"]

    def _tokens(self, words: Sequence[Sequence[int]]) -> Tokens:
        from unirg.metrics.radgraph_network import Tokens

        ids = [piece for word in words for piece in word]
        start, end = self._tokenizer.cls_token_id, self._tokenizer.sep_token_id
        # Segments may end within a word: it is then the mean of what two segments make of its wordpieces.
        segments = [[start, *ids[cut : cut + self._limit], end] for cut in range(0, len(ids), self._limit)]
        return Tokens(segments, [len(word) for word in words])


def words_v1(text: str) -> list[str]:
    """RadGraph v1: white space divides; each of / , : . ! ? ( ) is a word of its own."""
    return re.findall(r"[/,:.!?()]|[^\s/,:.!?()]+", text)


def words_xl(text: str) -> list[str]:
    """RadGraph-XL: runs of letters, digits and underscores, and runs of other marks, some of them divided.

    Escapes that a careless export leaves behind, such as a backslash and an n, count as white space.
    """
    for escape in ("\\n", "\\f", "\\u2122"):
        text = text.replace(escape, " ")
    text = " ".join(re.findall(r"\w+|[^\w\s]+", text.replace('\\"', "``")))
    for marks, divided in ((").", ") ."), ("%.", "% ."), (".'", ". '"), ("%,", "% ,"), ("%)", "% )")):
        text = text.replace(marks, divided)
    return text.split()


_WORDS: dict[str, Callable[[str], list[str]]] = {"radgraph": words_v1, "radgraph-xl": words_xl}


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is no JSON ({error}): fetch the weights again") from None
