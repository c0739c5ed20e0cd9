"""Tokenizers of the kinds that the public scorers have, made from phantom reports.

Words of phantoms are tokens of their own; any other text is read by its letters, not as unknown. The
libraries' trainers for WordPiece and Unigram give another vocabulary each time, so their vocabularies are
counted here; that for byte-level BPE is always the same.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from unirg.cohort.corpora.phantom.markup import Passage

if TYPE_CHECKING:
    from unirg.training.scorers import ToyScorers

LETTERS = [chr(code) for code in range(33, 127)]
_BERT_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_MPNET_SPECIAL = ("<s>", "<pad>", "</s>", "[UNK]", "<mask>")


def wordpiece(kind: Literal["bert", "mpnet"], found: Sequence[Passage], toy: ToyScorers) -> Any:
    """BERT's uncased tokenizer, or MPNet's, which differs in its special tokens."""
    from transformers import BertTokenizer, MPNetTokenizer

    special = _BERT_SPECIAL if kind == "bert" else _MPNET_SPECIAL
    words = [word for word, _ in _words([passage.text.lower() for passage in found], toy)]
    letters = [mark + letter for mark in ("", "##") for letter in LETTERS if not letter.isupper()]
    pieces = dict.fromkeys([*special, *words, *letters])
    tokenizer = BertTokenizer if kind == "bert" else MPNetTokenizer
    return tokenizer(vocab={piece: number for number, piece in enumerate(pieces)}, do_lower_case=True)


def byte_level(found: Sequence[Passage], toy: ToyScorers) -> Any:
    """RoBERTa's."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import RobertaTokenizer

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=toy.vocabulary,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    raw.train_from_iterator([passage.text for passage in found], trainer)
    trained = json.loads(raw.to_str())["model"]
    return RobertaTokenizer(vocab=trained["vocab"], merges=[tuple(merge) for merge in trained["merges"]])


def unigram(found: Sequence[Passage], toy: ToyScorers) -> Any:
    """DeBERTa-v3's: a piece's score is the logarithm of its share of the words, letters come last."""
    from transformers import DebertaV2Tokenizer

    words = _words([passage.text for passage in found], toy)
    total = sum(count for _, count in words)
    pieces = {"[PAD]": 0.0, "[CLS]": 0.0, "[SEP]": 0.0, "[UNK]": 0.0}
    pieces |= {f"\u2581{word}": math.log(count / total) for word, count in words}
    for letter in ("\u2581", *LETTERS):
        pieces.setdefault(letter, -math.log(total) - 1)
    return DebertaV2Tokenizer(vocab=[*pieces.items(), ("[MASK]", 0.0)], unk_id=list(pieces).index("[UNK]"))


def _words(texts: Sequence[str], toy: ToyScorers) -> list[tuple[str, int]]:
    """The most frequent words with their counts."""
    counts = Counter(word for text in texts for word in re.findall(r"\w+", text))
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))[: toy.vocabulary]
