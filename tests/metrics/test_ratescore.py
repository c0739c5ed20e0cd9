"""RaTEScore on tiny random networks: against a slow plain reference, its laws, tags, scores, and faults."""

from __future__ import annotations

import functools
import itertools
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.metrics import tiny, tiny_ratescore
from unirg.errors import UserError
from unirg.metrics import ratescore, sentences
from unirg.metrics.encoder import Compute, Precision, load_tokenizer
from unirg.metrics.ratescore import AFFINITY, NEGATION, TYPES, Entities, RaTEScore, entities

SENTENCES = [f"{sentence.strip()}." for sentence in tiny.WORDS.replace("?", ".").split(".")]
TEXTS = [
    *tiny.HOSTILE[:-2],
    *SENTENCES,
    tiny.WORDS,
    f"{tiny.WORDS}\n\nIMPRESSION:\n1. {SENTENCES[0]}\n2. {SENTENCES[3]}",
    "effusion " * 700,
]


@functools.cache
def _scorer(directory: Path, budget: int = 0, precision: Precision = "fp32") -> RaTEScore:
    return RaTEScore(directory, Compute(precision=precision, tokens=budget))


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_ratescore.directory(tmp_path_factory.mktemp("ratescore"))


@pytest.fixture(scope="module")
def scorer(directory: Path) -> RaTEScore:
    return _scorer(directory)


@pytest.fixture
def copy(directory: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(directory, tmp_path / "ratescore"))


def _of(*kinds: str, embeddings: Any = None) -> Entities:
    """Entities of these types; their embeddings are unit vectors of their own unless given."""
    vectors = np.eye(len(kinds), 8) if embeddings is None else np.array(embeddings)
    return Entities(vectors.astype(np.float32), np.array([TYPES.index(kind) for kind in kinds], np.int8))


def _score(scorer: RaTEScore, candidate: Entities, reference: Entities) -> float:
    return scorer.compare([candidate], [reference])[0]["ratescore"]


def _pairs(scorer: RaTEScore, pairs: list[tuple[str, str]]) -> list[float]:
    candidates, references = (scorer.read(list(side)) for side in zip(*pairs, strict=True))
    return [row["ratescore"] for row in scorer.compare(candidates, references)]


# Against the definition, step by step


class Plain:
    """One sentence, one entity and one match at a time, over transformers' own loading."""

    def __init__(self, directory: Path) -> None:
        from transformers import AutoConfig, AutoModel, AutoModelForTokenClassification, AutoTokenizer

        self.words = load_tokenizer(directory / "ner", AutoConfig.from_pretrained(directory / "ner"))
        self.ner = AutoModelForTokenClassification.from_pretrained(directory / "ner").eval()
        self.pieces = AutoTokenizer.from_pretrained(directory / "synonyms")
        self.synonyms = AutoModel.from_pretrained(directory / "synonyms").eval()
        self.embedding = functools.cache(self._embedding)

    def entities(self, text: str) -> list[tuple[str, str]]:
        found = []
        # No encoding holds half a surrogate pair.
        for sentence in sentences.split(text.encode("utf-8", "replace").decode()):
            ids = self.words(sentence, max_length=512, truncation=True, return_tensors="pt")
            with torch.no_grad():
                labels = self.ner(**ids).logits[0].argmax(-1).tolist()
            tags = [self.ner.config.id2label[label] for label in labels]
            kept = [number for number in ids["input_ids"][0].tolist() if number != self.words.pad_token_id]
            tokens = self.words.convert_ids_to_tokens(ids["input_ids"][0])[: len(kept)]
            for start, end, kind in entities(tokens, tags):
                found.append((self.words.convert_tokens_to_string(tokens[start : end + 1]), kind))
        return found

    def _embedding(self, words: str) -> torch.Tensor:
        ids = self.pieces(words, max_length=30, truncation=True, return_tensors="pt")
        with torch.no_grad():
            return self.synonyms(**ids).last_hidden_state[0, 0].double()

    def one_way(self, ours: list[tuple[str, str]], theirs: list[tuple[str, str]]) -> float:
        total = weights = 0.0
        for words, kind in ours:
            cosines = [
                float(torch.cosine_similarity(self.embedding(words), self.embedding(other), dim=0))
                for other, _ in theirs
            ]
            best = int(torch.topk(torch.tensor(cosines, dtype=torch.float64).round(decimals=7), 1).indices)
            other = theirs[best][1]
            affinity = AFFINITY[TYPES.index(kind), TYPES.index(other)]
            negates = "ANATOMY" not in (kind, other) and kind.startswith("NON-") != other.startswith("NON-")
            total += affinity * cosines[best] * (NEGATION if negates else 1)
            weights += affinity
        return total / weights

    def score(self, candidate: str, reference: str) -> float:
        ours, theirs = self.entities(candidate), self.entities(reference)
        if not ours or not theirs:
            return 0.5
        recall, precision = self.one_way(ours, theirs), self.one_way(theirs, ours)
        return 2 * precision * recall / (precision + recall)


def test_each_pair_scores_what_the_definition_gives_one_by_one(directory: Path, scorer: RaTEScore) -> None:
    plain = Plain(directory)
    pairs = list(zip(TEXTS, [*TEXTS[7:], *TEXTS[:7]], strict=True))
    expected = [plain.score(*pair) for pair in pairs]
    assert _pairs(scorer, pairs) == pytest.approx(expected, abs=1e-5)
    assert len({round(score, 4) for score in expected}) > 8


def test_the_tiny_networks_find_entities_of_every_type(scorer: RaTEScore) -> None:
    found = scorer.read(TEXTS)
    assert {kind for feature in found for kind in feature.types.tolist()} == set(range(5))
    assert sum(len(feature.types) for feature in found) > 3 * len(TEXTS)


# What a tag makes of a token


def _spans(tags: str) -> list[tuple[int, int, str]]:
    """b and i are tags of type X, B and I of type Y; the first is [CLS]'s, the last [SEP]'s."""
    names = {"O": "O", "b": "B-X", "i": "I-X", "B": "B-Y", "I": "I-Y"}
    tokens = ["[CLS]", *(f"t{place}" for place in range(1, len(tags) - 1)), "[SEP]"]
    return entities(tokens, [names[tag] for tag in tags])


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("ObO", [(1, 1, "X")]),
        ("ObiiO", [(1, 3, "X")]),
        ("ObObiO", [(1, 1, "X"), (3, 4, "X")]),
        ("ObBO", [(1, 1, "X"), (2, 2, "Y")]),
        ("ObiBIO", [(1, 2, "X"), (3, 4, "Y")]),
        ("ObIIO", [(1, 3, "X")]),  # the beginning names the type
        ("OiiO", []),  # an inside without its beginning
        ("OiBO", [(2, 2, "Y")]),
        ("Obi", [(1, 1, "X")]),  # goes on at [SEP], which has a tag as any token
        ("Obib", [(1, 2, "X")]),
        ("Obii", [(1, 2, "X")]),
        ("ObBIi", [(1, 1, "X")]),  # goes on at [SEP] behind one that ended before a B-: lost
        ("ObBIOBIi", [(1, 1, "X"), (2, 3, "Y"), (5, 6, "Y")]),  # the O between makes it good
        ("iO", []),
        ("O", []),
        ("OO", []),
    ],
)
def test_tags_become_entities_as_the_package_decides(tags: str, expected: list[tuple[int, int, str]]) -> None:
    assert _spans(tags) == expected


def _as_listed(tokens: list[str], tags: list[str]) -> list[tuple[int, int, str]]:
    """The package's decisions, one case after the other."""
    found: list[tuple[int, int, str]] = []
    start: int | None = None
    end: int | None = None
    kind = ""
    for place, token in enumerate(tokens):
        if place >= len(tags) - 1 or tags[place] == "O" or token in ("[CLS]", "[SEP]"):
            continue
        match tags[place][0] + tags[place + 1][0]:
            case "BI":
                start, kind = place, tags[place][2:]
            case "BB":
                found.append((place, place, tags[place][2:]))
                start, end, kind = place, place, tags[place][2:]
            case "BO":
                found.append((place, place, tags[place][2:]))
                start, end = None, None
            case "IB":
                if start is not None:
                    found.append((start, place, kind))
                start, end, kind = place, place, tags[place][2:]
            case "IO":
                if start is not None:
                    found.append((start, place, kind))
                start, end = None, None
    if start is not None and end is None:
        found.append((start, len(tokens) - 2, kind))
    return found


def test_every_row_of_up_to_six_tags_is_decided_case_by_case() -> None:
    for length in range(1, 7):
        tokens = ["[CLS]", *(["t"] * (length - 2)), "[SEP]"][-length:]
        for tags in itertools.product(("O", "B-X", "I-X", "B-Y", "I-Y"), repeat=length):
            assert entities(tokens, tags) == _as_listed(tokens, list(tags)), tags


def test_special_tokens_written_in_a_text_are_passed_over() -> None:
    tokens = ["[CLS]", "a", "[SEP]", "b", "[SEP]"]
    assert entities(tokens, ["O", "B-X", "I-X", "I-X", "O"]) == [(1, 3, "X")]
    assert entities(tokens, ["O", "O", "B-X", "O", "O"]) == []


# The score


def test_the_affinities_are_those_published() -> None:
    at = {
        pair: AFFINITY[TYPES.index(pair[0]), TYPES.index(pair[1])] for pair in itertools.product(TYPES, TYPES)
    }
    assert at["ABNORMALITY", "ABNORMALITY"] == 0.4276119164393705
    assert at["DISEASE", "ANATOMY"] == 0.9950209388542061
    assert at["ANATOMY", "DISEASE"] == 0.4592143222158069
    assert at["NON-ABNORMALITY", "NON-ABNORMALITY"] == 0.0009357166071730684
    assert at["NON-DISEASE", "ABNORMALITY"] == 0.7759420231214385
    assert math.isclose(AFFINITY.sum(), 10.0, abs_tol=0.6)


def test_equal_entities_score_one(scorer: RaTEScore) -> None:
    feature = _of("ANATOMY", "DISEASE", "NON-ABNORMALITY")
    assert _score(scorer, feature, feature) == pytest.approx(1)


def test_a_side_without_entities_scores_one_half(scorer: RaTEScore) -> None:
    empty = scorer.read([""])[0]
    assert _score(scorer, empty, _of("DISEASE")) == 0.5
    assert _score(scorer, _of("DISEASE"), empty) == 0.5
    assert _score(scorer, empty, empty) == 0.5


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        ("DISEASE", "NON-DISEASE", NEGATION),
        ("NON-DISEASE", "ABNORMALITY", NEGATION),
        ("NON-ABNORMALITY", "ABNORMALITY", NEGATION),
        ("NON-ABNORMALITY", "NON-DISEASE", 1),
        ("DISEASE", "ABNORMALITY", 1),
        ("ANATOMY", "NON-DISEASE", 1),
    ],
)
def test_only_a_negation_lowers_a_perfect_match(
    scorer: RaTEScore, ours: str, theirs: str, expected: float
) -> None:
    assert _score(scorer, _of(ours), _of(theirs)) == pytest.approx(expected)


def test_unrelated_entities_score_zero_and_opposite_ones_less(scorer: RaTEScore) -> None:
    one, other = _of("DISEASE", embeddings=[[1, 0]]), _of("DISEASE", embeddings=[[0, 1]])
    assert _score(scorer, one, other) == 0
    assert _score(scorer, one, _of("DISEASE", embeddings=[[-1, 0]])) == pytest.approx(-1)
    assert _score(scorer, one, _of("DISEASE", embeddings=[[0, 0]])) == 0


def test_a_match_counts_by_the_affinity_of_its_types(scorer: RaTEScore) -> None:
    # Precision: both candidates' entities meet the one disease, one perfectly, one at a cosine of .6.
    candidate = _of("DISEASE", "ANATOMY", embeddings=[[1, 0], [0.6, 0.8]])
    reference = _of("DISEASE", embeddings=[[1, 0]])
    same, apart = 0.8460555030578727, 0.4592143222158069
    precision = (same + 0.6 * apart) / (same + apart)
    assert _score(scorer, candidate, reference) == pytest.approx(2 * precision / (precision + 1))


def test_of_equal_cosines_the_last_bits_decide_nothing(scorer: RaTEScore) -> None:
    reference = _of("DISEASE", "NON-DISEASE", embeddings=[[1, 2, 3], [1, 2, 3]])
    nudged = Entities(reference.embeddings * np.float32(1 + 2e-7), reference.types)
    candidate = _of("DISEASE", embeddings=[[3, 2, 1]])
    assert _score(scorer, candidate, reference) == pytest.approx(_score(scorer, candidate, nudged), abs=1e-6)


def test_a_pair_is_undecided_where_the_same_words_have_two_types(scorer: RaTEScore) -> None:
    two = _of("DISEASE", "NON-DISEASE", embeddings=[[1, 2], [1, 2]])
    one = _of("DISEASE", embeddings=[[2, 1]])
    assert ratescore.undecided(one, two)
    assert ratescore.undecided(two, one)
    assert not ratescore.undecided(one, _of("DISEASE", "DISEASE", embeddings=[[1, 2], [1, 2]]))
    assert not ratescore.undecided(one, one)
    assert not ratescore.undecided(two, scorer.read([""])[0])


@given(st.lists(st.sampled_from(TYPES), min_size=1, max_size=9), st.integers(0, 2**32 - 1))
@settings(max_examples=30)
def test_the_score_is_symmetric_and_between_zero_and_one(kinds: list[str], seed: int) -> None:
    generator = np.random.default_rng(seed)
    ours = _of(*kinds, embeddings=generator.random((len(kinds), 4)))
    theirs = _of(*kinds[::-1], "ANATOMY", embeddings=generator.random((len(kinds) + 1, 4)))
    scorer = object.__new__(RaTEScore)
    assert _score(scorer, ours, theirs) == pytest.approx(_score(scorer, theirs, ours), abs=1e-12)
    assert 0 <= _score(scorer, ours, theirs) <= 1 + 1e-9


# Batches, order, duplicates, memory


@given(st.permutations(range(len(TEXTS) - 1)), st.sampled_from((1, 40, 512, 100_000)), st.integers(0, 3))
@settings(max_examples=6)
def test_neither_order_nor_batch_nor_duplicates_change_what_is_read(
    directory_of_laws: Path, order: list[int], budget: int, copies: int
) -> None:
    expected = _scorer(directory_of_laws).read(TEXTS)
    scorer = _scorer(directory_of_laws, budget)
    scorer._sentences.clear()
    scorer._embeddings.clear()
    found = scorer.read([TEXTS[place] for place in order] + TEXTS[:copies])
    for place, feature in zip([*order, *range(copies)], found, strict=True):
        assert feature.types.tolist() == expected[place].types.tolist()
        assert feature.embeddings == pytest.approx(expected[place].embeddings, abs=1e-5)


@pytest.fixture(scope="session")
def directory_of_laws(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_ratescore.directory(tmp_path_factory.mktemp("ratescore_laws"))


def test_a_sentence_is_tagged_once_and_an_entity_embedded_once(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer = RaTEScore(directory, Compute())
    ran: list[int] = []
    run = ratescore.run

    def counted(forward: Any, sequences: Any, *rest: Any) -> Any:
        ran.append(len(sequences))
        return run(forward, sequences, *rest)

    monkeypatch.setattr(ratescore, "run", counted)
    report = " ".join(SENTENCES[:4])
    first, second = scorer.read([report, f"{report} {report}"])
    words = {word for found in scorer._sentences.values() for word, _ in found}
    assert ran == [4, len(words)]
    assert len(second.types) == 2 * len(first.types) > 0
    scorer.read([report])
    assert ran[2:] == [0, 0]


def test_the_memory_is_bounded_and_forgetting_changes_nothing(
    directory: Path, scorer: RaTEScore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ratescore, "_REMEMBERED", 2)
    forgetful = RaTEScore(directory, Compute())
    for _ in range(2):
        for ours, theirs in zip(forgetful.read(TEXTS), scorer.read(TEXTS), strict=True):
            assert ours.embeddings == pytest.approx(theirs.embeddings, abs=1e-5)
    assert len(forgetful._sentences) == len(forgetful._embeddings) == 2


def test_short_and_empty_texts_shift_no_pair(scorer: RaTEScore) -> None:
    report = tiny.WORDS
    same = _pairs(scorer, [(report, report)])[0]
    scores = _pairs(scorer, [("", report), (report, report), ("No", report), (report, "."), (report, report)])
    assert scores == pytest.approx([0.5, same, 0.5, 0.5, same])
    assert same > 0.9


@pytest.mark.parametrize("text", tiny.HOSTILE, ids=lambda text: ascii(text[:20]))
def test_any_text_has_a_finite_score(scorer: RaTEScore, text: str) -> None:
    ours, other = scorer.read([text, tiny.WORDS])
    # Below 1 where the same words are there with two types.
    assert 0.8 < _score(scorer, ours, ours) <= 1 + 1e-9 if len(ours.types) else 0.5
    assert np.isfinite(_score(scorer, ours, other))


def test_nothing_to_read_and_nothing_to_compare_is_nothing(scorer: RaTEScore) -> None:
    assert scorer.read([]) == []
    assert scorer.compare([], []) == []


# The cache, the precisions, the directory


def test_what_is_packed_is_unpacked_bit_by_bit(scorer: RaTEScore) -> None:
    for feature in scorer.read(TEXTS):
        again = scorer.unpack(scorer.pack(feature))
        assert again.embeddings.tobytes() == feature.embeddings.tobytes()
        assert again.embeddings.shape == feature.embeddings.shape
        assert again.types.tolist() == feature.types.tolist()
        assert scorer.size(feature) == scorer.size(again) == len(scorer.pack(feature))


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_lower_precisions_run_and_stay_near(directory: Path, scorer: RaTEScore, precision: Precision) -> None:
    rough = _scorer(directory, 0, precision)
    assert rough.identity != scorer.identity
    assert _pairs(rough, [(tiny.WORDS, tiny.WORDS)])[0] > 0.9
    assert all(np.isfinite(score) for score in _pairs(rough, [(text, tiny.WORDS) for text in TEXTS]))


@pytest.mark.parametrize("name", ["ner/config.json", "ner/model.safetensors", "synonyms/tokenizer.json"])
def test_a_missing_file_is_named(copy: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(UserError, match=f"{name} is missing.*unirg weights fetch ratescore"):
        RaTEScore(copy, Compute())


def test_both_networks_and_the_precision_are_part_of_the_identity(copy: Path, scorer: RaTEScore) -> None:
    assert RaTEScore(copy, Compute(tokens=7)).identity == scorer.identity
    assert len(scorer.identity) == 16
    for part in ("ner", "synonyms"):
        before = RaTEScore(copy, Compute()).identity
        (copy / part / "special_tokens_map.json").write_text("{}")
        assert RaTEScore(copy, Compute()).identity != before


def test_the_splitter_is_part_of_the_identity(
    directory: Path, scorer: RaTEScore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sentences, "VERSION", -1)
    assert RaTEScore(directory, Compute()).identity != scorer.identity


def test_weights_that_do_not_fit_are_refused(copy: Path) -> None:
    shutil.copy(copy / "synonyms" / "model.safetensors", copy / "ner" / "model.safetensors")
    with pytest.raises(UserError, match="not of this architecture"):
        RaTEScore(copy, Compute())


def test_labels_that_are_not_of_the_five_types_are_refused(copy: Path) -> None:
    path = copy / "ner" / "config.json"
    config = json.loads(path.read_text())
    config["id2label"]["3"] = "B-DEVICE"
    path.write_text(json.dumps(config))
    with pytest.raises(UserError, match="B-DEVICE"):
        RaTEScore(copy, Compute())
