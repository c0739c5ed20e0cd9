"""RadGraph's network against its definition, written out text by text, span by span and pair by pair."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from tests.metrics import tiny_radgraph
from unirg.errors import UserError
from unirg.metrics import weights
from unirg.metrics.encoder import Compute
from unirg.metrics.radgraph import Entity, Graph, RadGraph, Relation, Tokeniser
from unirg.metrics.radgraph_network import ENCODER, Labels, RadGraphNetwork, Tokens

torch = pytest.importorskip("torch")

TEXTS = [*tiny_radgraph.texts(30), "\x07 lungs \x07 clear \x07", "lungs " * 70 + "clear", "XXXX"]
"""With words that have no wordpiece, and texts longer than a segment, which is cut inside a word."""


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_radgraph.write(tmp_path_factory.mktemp("weights") / "radgraph")


@pytest.fixture(scope="module")
def network(directory: Path) -> RadGraphNetwork:
    return loaded(directory)


def loaded(directory: Path) -> RadGraphNetwork:
    from transformers import AutoConfig

    config = json.loads((directory / "config.json").read_text())
    labels = Labels.read(directory / "vocabulary", "radgraph")
    found = RadGraphNetwork(config, labels, AutoConfig.from_pretrained(directory / "encoder"))
    tensors = weights.load_tensors(directory / "model.safetensors")
    weights.fit(found, tensors, directory, ignore=found.spare(tensors))
    return found.eval()


def tokens(directory: Path, *texts: str) -> list[Tokens]:
    return [found for _, found in Tokeniser(directory / "encoder", "radgraph", 64)(texts)]


class Definition:
    """DyGIE++ as published, one step at a time, from the tensors of the file."""

    def __init__(self, directory: Path) -> None:
        from safetensors.torch import load_file
        from transformers import BertConfig, BertModel

        self.tensors = load_file(directory / "model.safetensors")
        self.bert = BertModel(BertConfig.from_pretrained(directory / "encoder")).eval()
        self.bert.load_state_dict(
            {
                name.removeprefix(f"{ENCODER}."): tensor
                for name, tensor in self.tensors.items()
                if name.startswith(ENCODER) and "position_ids" not in name
            }
        )

    def layers(self, name: str, row: Any) -> Any:
        for number in range(2):
            weight = self.tensors[f"{name}._linear_layers.{number}.weight"]
            row = (weight @ row + self.tensors[f"{name}._linear_layers.{number}.bias"]).clamp(min=0)
        return row

    def linear(self, name: str, row: Any) -> Any:
        return self.tensors[f"{name}.weight"] @ row + self.tensors[f"{name}.bias"]

    def words(self, text: Tokens) -> list[Any]:
        states: list[Any] = []
        for segment in text.segments:
            hidden = self.bert(input_ids=torch.tensor([segment])).last_hidden_state[0]
            states += list(hidden[1:-1])
        words = []
        for count in text.pieces:
            mine, states = states[:count], states[count:]
            words.append(sum(mine) / count if count else torch.zeros(hidden.shape[1]))
        assert not states
        return words

    def scores(self, text: Tokens) -> tuple[list[tuple[int, int]], list[Any], dict[tuple[int, int], Any]]:
        """Spans, their scores for the labels, and the scores for the types of pairs of kept spans."""
        words = self.words(text)
        widths = self.tensors["_endpoint_span_extractor._span_width_embedding.weight"]
        spans = [(i, j) for i in range(len(words)) for j in range(i, min(i + 3, len(words)))]
        rows = [torch.cat([words[i], words[j], widths[j - i]]) for i, j in spans]
        head = "_ner._ner_scorers.radgraph__ner_labels"
        labels = [self.linear(f"{head}.1._module", self.layers(f"{head}.0._module", row)) for row in rows]
        head = "_relation._mention_pruners.radgraph__relation_labels._scorer"
        mentions = [
            float(self.linear(f"{head}.1._module", self.layers(f"{head}.0._module", row))) for row in rows
        ]
        best = sorted(range(len(spans)), key=lambda place: (-mentions[place], place))
        room = math.ceil(torch.tensor(float(len(words))) * 0.6)  # the product in float32, as published
        kept = sorted(best[:room])
        kinds = {}
        for i in kept:
            for j in kept:
                row = torch.cat([rows[i], rows[j], rows[i] * rows[j]])
                hidden = self.layers("_relation._relation_feedforwards.radgraph__relation_labels", row)
                found = self.linear("_relation._relation_scorers.radgraph__relation_labels", hidden)
                kinds[i, j] = found + mentions[i] + mentions[j]
        return spans, labels, kinds

    def graph(self, words: list[str], text: Tokens) -> Graph:
        spans, labels, kinds = self.scores(text)
        entities: list[Entity] = []
        place: dict[int, int] = {}
        for number, ((start, end), scores) in enumerate(zip(spans, labels, strict=True)):
            if max(scores) > 0:
                place[number] = len(entities)
                label = tiny_radgraph.ENTITIES[int(scores.argmax())]
                entities.append(Entity(" ".join(words[start : end + 1]), label, start, end))
        relations = [
            Relation(place[i], place[j], tiny_radgraph.RELATIONS[int(scores.argmax())])
            for (i, j), scores in kinds.items()
            if i in place and j in place and max(scores) > 0
        ]
        return Graph(tuple(entities), tuple(relations))


def test_graphs_of_a_batch_are_those_of_the_definition(directory: Path) -> None:
    definition = Definition(directory)
    with torch.no_grad():
        expected = [
            definition.graph(words, found)
            for words, found in Tokeniser(directory / "encoder", "radgraph", 64)(TEXTS)
        ]
    assert RadGraph(directory, Compute()).read(TEXTS) == expected
    assert sum(len(graph.entities) for graph in expected) > 2 * len(TEXTS)
    assert sum(len(graph.relations) for graph in expected) > len(TEXTS)
    assert {entity.label for graph in expected for entity in graph.entities} == {*tiny_radgraph.ENTITIES}
    assert {edge.kind for graph in expected for edge in graph.relations} == {*tiny_radgraph.RELATIONS}


def test_scores_of_a_batch_are_those_of_the_definition(directory: Path, network: RadGraphNetwork) -> None:
    definition = Definition(directory)
    batch = tokens(directory, *TEXTS[::4], TEXTS[-2])
    with torch.no_grad():
        found = network(batch)
        at: dict[tuple[int, int, int], int] = {}
        for row, (text, start, end) in enumerate(found.spans.tolist()):
            at[text, start, end] = row
        pairs = {tuple(pair): row for row, pair in enumerate(found.pairs.tolist())}
        count = 0
        for text, one in enumerate(batch):
            spans, labels, kinds = definition.scores(one)
            rows = [at[text, start, end] for start, end in spans]
            wanted = torch.stack(labels)
            torch.testing.assert_close(found.entities[rows][:, 1:], wanted, atol=1e-5, rtol=1e-5)
            both = [pairs[rows[i], rows[j]] for i, j in kinds]
            wanted = torch.stack(list(kinds.values()))
            torch.testing.assert_close(found.relations[both][:, 1:], wanted, atol=1e-5, rtol=1e-5)
            count += len(both)
    assert count == len(pairs) == len(found.pairs)
    assert not found.entities[:, 0].any()
    assert not found.relations[:, 0].any()


def test_equal_spans_are_kept_in_the_order_of_the_text(network: RadGraphNetwork) -> None:
    scores = torch.tensor([1.0, 2.0, 2.0, 2.0, 0.0, 0.0, 0.0, 5.0])
    text = torch.tensor([0, 0, 0, 0, 1, 1, 1, 2])
    kept = network._kept(scores, text, torch.tensor([3, 2, 1]))  # ceil(1.8), ceil(1.2), ceil(0.6)
    assert kept.tolist() == [1, 2, 4, 5, 7]


def test_the_network_learns_a_graph_from_its_scores(directory: Path) -> None:
    from transformers import AutoConfig

    torch.manual_seed(0)
    labels = Labels("radgraph", tiny_radgraph.ENTITIES, tiny_radgraph.RELATIONS)
    encoder = AutoConfig.from_pretrained(directory / "encoder", initializer_range=0.05)
    config = tiny_radgraph.settings()
    config["model"]["modules"]["relation"]["spans_per_word"] = 1.0  # all gold spans can be kept
    config["model"]["feedforward_params"]["dropout"] = 0.0
    network = RadGraphNetwork(config, labels, encoder)
    batch = tokens(directory, "small left effusion", "no edema", "clear lungs")
    gold = {(0, 0, 0): 1, (0, 1, 1): 0, (0, 2, 2): 1, (1, 1, 1): 2, (2, 1, 1): 0}
    edges = {((0, 0, 0), (0, 2, 2)): 0, ((0, 2, 2), (0, 1, 1)): 1}
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    for _ in range(100):
        found = network(batch)
        spans = [tuple(span) for span in found.spans.tolist()]
        # One more than the position among the labels: 0 is nothing.
        entities = torch.tensor([gold.get(span, -1) + 1 for span in spans])
        relations = torch.tensor([edges.get((spans[i], spans[j]), -1) + 1 for i, j in found.pairs.tolist()])
        optimizer.zero_grad()
        entropy = torch.nn.functional.cross_entropy
        loss = entropy(found.entities, entities) + entropy(found.relations, relations)
        loss.backward()
        optimizer.step()
    network.eval()
    with torch.no_grad():
        found = network(batch)
    spans = [tuple(span) for span in found.spans.tolist()]
    kinds, labels_found = found.relations.argmax(1), found.entities.argmax(1)
    assert {spans[i]: int(labels_found[i]) - 1 for i in labels_found.nonzero()[:, 0]} == gold
    assert {
        (spans[i], spans[j]): int(kinds[row]) - 1
        for row, (i, j) in enumerate(found.pairs.tolist())
        if kinds[row]
    } == edges


def test_the_only_dataset_of_a_vocabulary_is_taken_whatever_its_name(tmp_path: Path) -> None:
    labels = Labels("None", ("ANAT-DP",), ("modify",))
    labels.write(tmp_path)
    assert Labels.read(tmp_path, "radgraph") == labels
    Labels("radgraph", ("OBS-DP",), ("located_at",)).write(tmp_path)
    assert Labels.read(tmp_path, "radgraph").entities == ("OBS-DP",)
    with pytest.raises(UserError, match="None, radgraph, not for radgraph-xl"):
        Labels.read(tmp_path, "radgraph-xl")


def test_a_vocabulary_without_the_empty_label_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds labels for nothing"):
        Labels.read(tmp_path, "radgraph")
    Labels("radgraph", ("ANAT-DP",), ("modify",)).write(tmp_path)
    (tmp_path / "radgraph__ner_labels.txt").write_text("ANAT-DP\nOBS-DP\n")
    with pytest.raises(UserError, match="starts with an empty line"):
        Labels.read(tmp_path, "radgraph")
    (tmp_path / "radgraph__relation_labels.txt").unlink()
    with pytest.raises(UserError, match=r"radgraph__relation_labels\.txt is missing"):
        Labels.read(tmp_path, "radgraph")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("model.feature_size", None, "no model.feature_size"),
        ("model.feedforward_params.hidden_dims", None, "no model.feedforward_params.hidden_dims"),
        ("model.modules.relation.spans_per_word", None, "no model.modules.relation.spans_per_word"),
        ("dataset_reader.max_span_width", 9, "max_span_width is 9, not 1 to 4"),
        ("model.modules.coref.coref_prop", 2, "coref_prop is not 0"),
    ],
)
def test_a_configuration_of_another_network_is_refused(path: str, value: Any, message: str) -> None:
    from transformers import BertConfig

    small = BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1)
    config = tiny_radgraph.settings()
    *parents, name = path.split(".")
    place: dict[str, Any] = config
    for parent in parents:
        place = place[parent]
    place.pop(name, None)
    if value is not None:
        place[name] = value
    with pytest.raises(UserError, match=message):
        RadGraphNetwork(config, Labels("radgraph", ("A",), ("r",)), small)
