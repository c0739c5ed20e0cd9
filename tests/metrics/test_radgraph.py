"""RadGraph as a scorer: words, graphs of any text in any batch, F1 over graphs, and what does not load."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.metrics import tiny, tiny_radgraph
from unirg.errors import UserError
from unirg.metrics.encoder import Compute, Precision
from unirg.metrics.radgraph import Entity, Graph, RadGraph, Relation, f1_scores, words_v1, words_xl

pytest.importorskip("torch")

HOSTILE = [text if len(text) < 1000 else text[:1000] for text in tiny.HOSTILE]
MARKS = "/,:.!?()"


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_radgraph.write(tmp_path_factory.mktemp("weights") / "radgraph")


@pytest.fixture(scope="module")
def scorer(directory: Path) -> RadGraph:
    return RadGraph(directory, Compute())


def graph(*entities: str, **relations: str) -> Graph:
    """Of entities "words/label", and relations "source,target" by type; positions count from 0."""
    nodes = []
    for place, entity in enumerate(entities):
        words, label = entity.split("/")
        nodes.append(Entity(words, label, place, place))
    edges = []
    for kind, found in relations.items():
        for source, target in (edge.split(",") for edge in found.split()):
            edges.append(Relation(int(source), int(target), kind))
    return Graph(tuple(nodes), tuple(sorted(edges)))


# Words.


@given(st.text(st.sampled_from("aB9 \n\t\r\x1c\u00a0\u2003-/,:.!?()%'é😀")))
def test_v1_splits_at_white_space_and_sets_each_mark_apart(text: str) -> None:
    words: list[str] = [""]
    for letter in text:
        if letter.isspace():
            words.append("")
        elif letter in MARKS:
            words += [letter, ""]
        else:
            words[-1] += letter
    assert words_v1(text) == [word for word in words if word]


def test_v1_keeps_hyphens_and_percent_signs_inside_a_word() -> None:
    assert words_v1("ill-defined 5%(upper).") == ["ill-defined", "5%", "(", "upper", ")", "."]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ill-defined, 5 mm.", "ill - defined , 5 mm ."),
        ("(mild). 50%. 50%, (50%) 'clear.'", "( mild ) . 50 % . 50 % , ( 50 % ) ' clear . '"),
        (r"clear.\nNo \"edema\"\f x", "clear . No `` edema `` x"),
        ("left_lung\r\n\tis...  so-called", "left_lung is ... so - called"),
        ("a \\u2122 b", "a b"),
    ],
)
def test_xl_cuts_runs_of_letters_and_runs_of_marks(text: str, words: str) -> None:
    assert words_xl(text) == words.split()


@given(st.text())
def test_xl_loses_no_character_of_a_text_without_escapes(text: str) -> None:
    text = text.replace("\\", "")
    assert "".join(words_xl(text)) == "".join(text.split())


# Graphs of texts.


def test_a_text_without_a_known_wordpiece_has_an_empty_graph(scorer: RadGraph) -> None:
    assert scorer.read(["", " ", "\n\t", "\x07 \x00"]) == [Graph()] * 4
    assert scorer.read([]) == []


@given(data=st.data())
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_graph_depends_on_its_text_alone(directory: Path, scorer: RadGraph, data: st.DataObject) -> None:
    known = tiny_radgraph.texts(30) + HOSTILE
    places = data.draw(st.lists(st.integers(0, len(known) - 1), min_size=1, max_size=25))
    scorer._compute = Compute(tokens=data.draw(st.sampled_from([1, 50, 512, 100_000])))
    alone = expected(directory)
    assert scorer.read([known[place] for place in places]) == [alone[place] for place in places]


_ALONE: list[Graph] = []


def expected(directory: Path) -> list[Graph]:
    """The graphs of the known texts, each read by itself, once."""
    if not _ALONE:
        fresh = RadGraph(directory, Compute())
        _ALONE.extend(fresh.read([text])[0] for text in tiny_radgraph.texts(30) + HOSTILE)
    return _ALONE


def test_every_graph_survives_the_cache_exactly(directory: Path, scorer: RadGraph) -> None:
    for found in expected(directory):
        assert scorer.unpack(scorer.pack(found)) == found
        assert scorer.size(found) >= len(scorer.pack(found)) / 2
    assert sum(len(found.relations) for found in _ALONE)


def test_entities_are_words_of_the_text(directory: Path) -> None:
    for text, found in zip(tiny_radgraph.texts(30), expected(directory), strict=False):
        words = words_v1(text)
        for entity in found.entities:
            assert entity.tokens == " ".join(words[entity.start : entity.end + 1])
            assert 0 <= entity.end - entity.start < 3
        assert list(found.entities) == sorted(found.entities, key=lambda entity: entity[2:])
        assert list(found.relations) == sorted(found.relations)


@pytest.mark.parametrize(("precision", "agreement"), [("bf16", 0.85), ("int8", 0.6)])
def test_lower_precision_keeps_most_entities(
    directory: Path, scorer: RadGraph, precision: Precision, agreement: float
) -> None:
    texts = tiny_radgraph.texts(90)
    both = zip(RadGraph(directory, Compute(precision=precision)).read(texts), scorer.read(texts), strict=True)
    pairs = [pair for pair in both if pair[0].entities + pair[1].entities]
    # A random network decides narrowly; trained ones move far less.
    assert sum(f1_scores(*pair)[1] for pair in pairs) / len(pairs) > agreement


def test_the_xl_model_has_its_own_words_scores_and_identity(tmp_path: Path) -> None:
    directory = tiny_radgraph.write(tmp_path / "radgraph-xl", "radgraph-xl")
    scorer = RadGraph(directory, Compute(), "radgraph-xl")
    assert scorer.name == "radgraph-xl"
    assert scorer.scores == (
        "radgraph_xl",
        "radgraph_xl_simple",
        "radgraph_xl_partial",
        "radgraph_xl_complete",
    )
    text = "small left-basilar effusion /. no edema." * 3
    (found,) = scorer.read([text])
    words = words_xl(text)
    assert "/." in words  # kept in the graph, read as "."
    assert all(entity.tokens == " ".join(words[entity.start : entity.end + 1]) for entity in found.entities)
    assert scorer.identity != RadGraph(directory, Compute()).identity
    assert scorer.identity != RadGraph(directory, Compute(precision="bf16"), "radgraph-xl").identity
    assert scorer.identity == RadGraph(directory, Compute(tokens=9), "radgraph-xl").identity


# Scores of graphs.

ONE = graph("small/OBS-DP", "left/ANAT-DP", "effusion/OBS-DP", "edema/OBS-DA", modify="0,2", located_at="2,1")


def test_levels_of_agreement_by_hand() -> None:
    other = graph(
        "large/OBS-DP", "left/ANAT-DP", "effusion/OBS-DP", "edema/OBS-DA", modify="0,2", located_at="2,1"
    )
    rexrank, simple, partial, complete = f1_scores(ONE, other)
    assert rexrank == pytest.approx((6 / 8 + 2 / 4) / 2)
    assert (simple, partial, complete) == pytest.approx((6 / 8, 6 / 8, 6 / 8))
    # The effusion is located nowhere now: the entity stays, that it starts a relation does not.
    lone = graph("small/OBS-DP", "left/ANAT-DP", "effusion/OBS-DP", "edema/OBS-DA", modify="0,2")
    rexrank, simple, partial, complete = f1_scores(ONE, lone)
    assert rexrank == pytest.approx((1 + 2 / 3) / 2)
    assert (simple, partial, complete) == pytest.approx((1, 6 / 8, 6 / 8))


def test_a_label_a_direction_and_a_type_count() -> None:
    absent = graph("small/OBS-DA", "left/ANAT-DP", "effusion/OBS-DP", "edema/OBS-DA", located_at="2,1")
    assert f1_scores(ONE, absent)[:2] == pytest.approx(((6 / 8 + 2 / 3) / 2, 6 / 8))
    turned = graph("a/OBS-DP", "b/OBS-DP", modify="0,1"), graph("a/OBS-DP", "b/OBS-DP", modify="1,0")
    assert f1_scores(*turned) == (0.5, 1, 0, 0)
    other = graph("a/OBS-DP", "b/OBS-DP", modify="0,1"), graph("a/OBS-DP", "b/OBS-DP", located_at="0,1")
    assert f1_scores(*other) == pytest.approx((0.5, 1, 1, 0.5))


def test_an_identical_report_without_relations_scores_half_at_rexranks_level() -> None:
    plain = graph("edema/OBS-DA")
    assert f1_scores(plain, plain) == (0.5, 1, 1, 1)
    assert f1_scores(ONE, ONE) == (1, 1, 1, 1)


def test_a_side_without_an_entity_scores_zero() -> None:
    assert f1_scores(Graph(), Graph()) == f1_scores(ONE, Graph()) == f1_scores(Graph(), ONE) == (0, 0, 0, 0)


def test_an_entity_named_twice_counts_once() -> None:
    twice = graph("edema/OBS-DA", "edema/OBS-DA")
    assert f1_scores(twice, graph("edema/OBS-DA")) == (0.5, 1, 1, 1)


def test_case_counts_except_in_complete_for_entities_with_relations() -> None:
    upper = graph(
        "Small/OBS-DP", "Left/ANAT-DP", "Effusion/OBS-DP", "Edema/OBS-DA", modify="0,2", located_at="2,1"
    )
    # Of the four items "left" and "edema" keep their case.
    assert f1_scores(ONE, upper) == pytest.approx((0, 0, 0, 0.5))


_GRAPHS = st.integers(1, 5).flatmap(
    lambda size: st.builds(
        lambda labels, edges: graph(*labels, modify=" ".join(sorted({f"{i},{j}" for i, j in edges}))),
        st.lists(st.sampled_from(["a/X", "A/X", "b/X", "b/Y"]), min_size=size, max_size=size),
        st.lists(st.tuples(st.integers(0, size - 1), st.integers(0, size - 1)), max_size=4),
    )
)


@given(_GRAPHS, _GRAPHS)
def test_scores_are_symmetric_and_within_0_and_1(one: Graph, other: Graph) -> None:
    assert f1_scores(one, other) == f1_scores(other, one)
    assert all(0 <= score <= 1 for score in f1_scores(one, other))
    assert f1_scores(one, one)[1:] == (1, 1, 1)


def test_pairs_are_compared_in_order(scorer: RadGraph) -> None:
    rows = scorer.compare([ONE, Graph(), ONE], [ONE, ONE, graph("edema/OBS-DA")])
    assert [row["radgraph"] for row in rows] == [1, 0, pytest.approx(0.2)]
    assert rows[2] == dict(zip(scorer.scores, f1_scores(ONE, graph("edema/OBS-DA")), strict=True))


# What does not load.


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("model.safetensors", None, "model.safetensors is missing"),
        ("encoder/config.json", None, "unirg weights fetch radgraph"),
        ("encoder/vocab.txt", None, "has no tokenizer"),
        ("config.json", "{", "config.json is no JSON"),
        ("config.json", "{}", "no dataset_reader.max_span_width"),
        ("vocabulary/radgraph__ner_labels.txt", "\nANAT-DP\n", "do not fit"),
        ("vocabulary/radgraph__ner_labels.txt", None, "holds labels for nothing"),
        ("encoder/vocab.txt", "\n".join(f"word{i}" for i in range(500)), "505 wordpieces"),
    ],
)
def test_a_damaged_directory_is_refused(
    directory: Path, tmp_path: Path, file: str, content: str | None, message: str
) -> None:
    copy = shutil.copytree(directory, tmp_path / "radgraph")
    (copy / file).unlink()
    if content is not None:
        (copy / file).write_text(content)
    with pytest.raises(UserError, match=message):
        RadGraph(copy, Compute())


def test_missing_and_superfluous_tensors_are_refused(directory: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    tensors = load_file(directory / "model.safetensors")
    copy = shutil.copytree(directory, tmp_path / "radgraph")
    for name in (
        "_ner._ner_scorers.radgraph__ner_labels.1._module.bias",
        "_endpoint_span_extractor._span_width_embedding.weight",
    ):
        save_file({key: value for key, value in tensors.items() if key != name}, copy / "model.safetensors")
        with pytest.raises(UserError, match="is missing"):
            RadGraph(copy, Compute())
    deeper = "_relation._relation_feedforwards.radgraph__relation_labels._linear_layers.2.weight"
    save_file(
        {**tensors, deeper: torch.zeros(24, 24)},
        copy / "model.safetensors",
    )
    with pytest.raises(UserError, match="is left over"):
        RadGraph(copy, Compute())


def test_the_encoders_own_length_holds_where_none_is_configured(directory: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(directory, tmp_path / "radgraph")
    config = json.loads((copy / "config.json").read_text())
    config["dataset_reader"]["token_indexers"]["bert"]["max_length"] = None
    (copy / "config.json").write_text(json.dumps(config))
    found = RadGraph(copy, Compute())
    assert max(map(len, found._tokeniser(["clear " * 500])[0][1].segments)) == 80
    assert found.read(["clear"]) == RadGraph(directory, Compute()).read(["clear"])
