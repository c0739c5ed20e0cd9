"""Sentences: as medspacy 1.3.1 gives them on texts of our own, and whole, whatever the text.

The expected sentences are medspacy's own (`medspacy.load(medspacy_enable=["medspacy_pyrush"])` on spaCy 3.8,
PyRuSH 1.0.13), stripped, those under 3 characters left out.
"""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.metrics import tiny
from unirg.metrics import sentences
from unirg.metrics.sentence_rules import matches
from unirg.metrics.sentence_tokens import starts

GOLDEN: list[tuple[str, list[str]]] = [
    ("The heart is large. No effusion is seen.", ["The heart is large.", "No effusion is seen."]),
    (
        "FINDINGS:\nThe lungs are clear.\n\nIMPRESSION:\n1. No edema.\n2. Stable nodule",
        ["FINDINGS:", "The lungs are clear.", "IMPRESSION:", "1. No edema.", "2. Stable nodule"],
    ),
    (
        "Findings: Mild edema, new. Impression: Mild edema.",
        ["Findings: Mild edema, new.", "Impression: Mild edema."],
    ),
    ("Lungs clear.Heart normal.", ["Lungs clear.Heart normal."]),
    (
        "A nodule of 2.5 cm is seen at the apex. 3 mm elsewhere.",
        ["A nodule of 2.5 cm is seen at the apex.", "3 mm elsewhere."],
    ),
    ("Seen by Dr. Smith. No change vs. the prior.", ["Seen by Dr. Smith.", "No change vs.", "the prior."]),
    ("no effusion. no pneumothorax. heart normal", ["no effusion.", "no pneumothorax.", "heart normal"]),
    ("XXXX XXXX. XXXX of the spine. XXXX", ["XXXX XXXX. XXXX of the spine. XXXX"]),
    ("Is it pneumonia? No! It is edema.", ["Is it pneumonia?", "No! It is edema."]),
    ("1) Edema. 2) Effusion. 3) Nodule.", ["1) Edema.", "2) Effusion.", "3) Nodule."]),
    ("Small effusion (left). Heart enlarged (mild).", ["Small effusion (left).", "Heart enlarged (mild)."]),
    (
        "First line goes\non here. Second one.\r\nThird one.",
        ["First line goes\non here.", "Second one.", "Third one."],
    ),
    ("edema\neffusion\nnodule", ["edema\neffusion\nnodule"]),
    ("- Edema\n- Effusion\n- Nodule", ["- Edema", "- Effusion", "- Nodule"]),
    ("Effusion:\nleft more than right", ["Effusion:", "left more than right"]),
    ("PORTABLE CHEST (1 VIEW):\nNo edema.", ["PORTABLE CHEST (1 VIEW):\nNo edema."]),
    (
        "Tube tip 5 cm above the carina.  Line in the SVC .",
        ["Tube tip 5 cm above the carina.", "Line in the SVC ."],
    ),
    ("No. Ok", ["No. Ok"]),
    ("clear", ["clear"]),
    ("Heart   normal...  Lungs clear", ["Heart   normal...", "Lungs clear"]),
    ("Lungs \U0001fac1 clear. \u2764 normal.", ["Lungs \U0001fac1 clear.", "\u2764 normal."]),
    (
        "\u0152d\xe8me. \xc9panchement pleural. \xc9tat stable.",
        ["\u0152d\xe8me.", "\xc9panchement pleural.", "\xc9tat stable."],
    ),
    ("  \n No edema.  \n\n\n  Heart fine. ", ["No edema.", "Heart fine."]),
    ("\t Heart\xa0large.\xa0Lungs clear.", ["Heart\xa0large.", "Lungs clear."]),
    ("\\ back\\slash. Next one.", ["\\ back\\slash.", "Next one."]),
    ("COPD. CHF. L1. T12.", ["COPD. CHF. L1. T12."]),
    ("the 5%. The rest.", ["the 5%.", "The rest."]),
    (
        "Wires intact;clips seen.The apex is clear,as before.",
        ["Wires intact;clips seen.The apex is clear,as before."],
    ),
]


@pytest.mark.parametrize(("text", "expected"), GOLDEN, ids=lambda value: ascii(value)[:30])
def test_a_text_is_split_as_medspacy_splits_it(text: str, expected: list[str]) -> None:
    assert sentences.split(text) == expected


ALPHABET = st.sampled_from([*"aAbZ1 .\n:;-()*\\+\"'é\xa0🙂,?!/\r\t", "The ", "1. ", "Dr. ", "FINDINGS: "])


@given(st.lists(ALPHABET, max_size=60).map("".join))
@settings(max_examples=200)
def test_sentences_are_pieces_of_the_text_in_order(text: str) -> None:
    at = 0
    for sentence in sentences.split(text):
        assert len(sentence) >= 3
        assert sentence == sentence.strip()
        at = text.index(sentence, at) + len(sentence)


@pytest.mark.parametrize("text", ["", " ", "\n", "No", ".", "🙂", "\xa0\n\t"])
def test_a_text_of_fewer_than_three_characters_has_no_sentence(text: str) -> None:
    assert sentences.split(text) == []


@pytest.mark.parametrize(
    "text",
    [*tiny.HOSTILE, "(" * 3000, ".\n" * 2000, " " * 5000, "a. B" * 2000, "1)\n\n" * 1000, "\\s\\c+" * 500],
    ids=lambda text: ascii(text[:12]),
)
def test_a_hostile_text_is_split_in_a_time_that_grows_with_its_length(text: str) -> None:
    begun = time.process_time()
    assert sum(map(len, sentences.split(text))) <= len(text)
    assert time.process_time() - begun < 1 + len(text) * 5e-4


def test_a_rule_of_denial_hides_what_it_is_wider_than() -> None:
    ends = [match.begin for match in matches("Seen by Dr. Smith. Fine.")[1]]
    assert 10 not in ends  # the full stop of "Dr."
    assert 17 in ends


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("clear.", (0, 5)),
        ("(left),", (0, 1, 5, 6)),
        ("right-sided", (0, 5, 6)),
        ("normal.Heart", (0, 6, 7)),
        ("normal.heart", (0,)),
        ("2.5cm.", (0, 3, 5)),
        ("Dr.", (0,)),
        ("Dr.,", (0, 3)),
        ("12/12/2010:", (0, 10)),
        ("COPD.", (0, 4)),
        ("L1.", (0, 2)),
        ("L.", (0,)),
        ("...", (0,)),
        ("AP/lateral", (0, 2, 3)),
        ("**", (0, 1)),
        ("view):", (0, 4)),
    ],
)
def test_a_word_is_cut_where_spacy_cuts_it(word: str, expected: tuple[int, ...]) -> None:
    assert starts(word) == expected
