"""Tokenizers of the kinds that the public scorers have, trained on phantom reports.

Words of phantoms become tokens of their own; any other text is read by its letters, not as unknown.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from unirg.cohort.corpora.phantom.markup import Passage

if TYPE_CHECKING:
    from unirg.training.scorers import ToyScorers

LETTERS = [chr(code) for code in range(33, 127)]


_BERT_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
_MPNET_SPECIAL = ["<s>", "<pad>", "</s>", "[UNK]", "<mask>"]


def wordpiece(kind: Literal["bert", "mpnet"], found: Sequence[Passage], toy: ToyScorers) -> Any:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import BertTokenizer, MPNetTokenizer

    bert = kind == "bert"
    special = (
        ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        if bert
        else ["<s>", "<pad>", "</s>", "[UNK]", "<mask>"]
    )
    raw = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    raw.normalizer = normalizers.BertNormalizer(lowercase=True)
    raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=toy.vocabulary, special_tokens=special, show_progress=False
    )
    raw.train_from_iterator([passage.text for passage in found], trainer)
    pieces = sorted(raw.get_vocab(), key=raw.get_vocab().__getitem__)
    letters = [mark + letter for mark in ("", "##") for letter in LETTERS if not letter.isupper()]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys([*pieces, *letters]))}
    return (BertTokenizer if bert else MPNetTokenizer)(vocab=vocabulary, do_lower_case=True)


def byte_level(found: Sequence[Passage], toy: ToyScorers) -> Any:
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
    merges = [tuple(merge) for merge in trained["merges"]]
    return RobertaTokenizer(vocab=trained["vocab"], merges=merges)


def unigram(found: Sequence[Passage], toy: ToyScorers) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import DebertaV2Tokenizer

    raw = Tokenizer(models.Unigram())
    raw.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=toy.vocabulary,
        special_tokens=["[PAD]", "[CLS]", "[SEP]", "[UNK]"],
        unk_token="[UNK]",
        initial_alphabet=LETTERS,
        show_progress=False,
    )
    raw.train_from_iterator([passage.text for passage in found], trainer)
    vocabulary = [tuple(piece) for piece in json.loads(raw.to_str())["model"]["vocab"]]
    return DebertaV2Tokenizer(vocab=[*vocabulary, ("[MASK]", 0.0)], unk_id=3)
