"""Tokenizers of the scorers' four kinds, trained on report texts, for transformers 4 and 5 alike.

Each has the files that the public checkpoint has: what reads one of these reads the other. Vocabularies are
small, so that words fall into several pieces as they do under the public ones.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from tokenizers import (
    Regex,
    SentencePieceUnigramTokenizer,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

SIZE = 1500
BERT = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
MPNET = ("<s>", "<pad>", "</s>", "[UNK]", "<mask>")
ROBERTA = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
DEBERTA = ("[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]")


def bert(directory: Path, texts: Sequence[str]) -> int:
    """Uncased WordPiece; gives the number of tokens, as the others do."""
    return _wordpiece(directory, texts, BERT, "BertTokenizer", "[CLS]", "[SEP]")


def mpnet(directory: Path, texts: Sequence[str]) -> int:
    """WordPiece between RoBERTa's special tokens."""
    return _wordpiece(directory, texts, MPNET, "MPNetTokenizer", "<s>", "</s>")


def roberta(directory: Path, texts: Sequence[str]) -> int:
    """Byte-level BPE."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=SIZE, special_tokens=list(ROBERTA), initial_alphabet=sorted(alphabet), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    _write(directory, tokenizer, "RobertaTokenizer")
    tokenizer.model.save(str(directory))
    return tokenizer.get_vocab_size()


def deberta(directory: Path, texts: Sequence[str]) -> int:
    """Unigram, as DeBERTa-v3's SentencePiece model."""
    trained = SentencePieceUnigramTokenizer()
    trained.train_from_iterator(
        texts, SIZE, special_tokens=list(DEBERTA), unk_token="[UNK]", show_progress=False
    )
    tokenizer = Tokenizer(trained._tokenizer.model)
    tokenizer.add_special_tokens(list(DEBERTA))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Strip(), normalizers.NFKC(), normalizers.Replace(Regex(r"\s+"), " ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = _between(tokenizer, "[CLS]", "[SEP]")
    _write(directory, tokenizer, "DebertaV2Tokenizer", **_names(*DEBERTA))
    return tokenizer.get_vocab_size()


def _wordpiece(
    directory: Path, texts: Sequence[str], special: Sequence[str], kind: str, start: str, end: str
) -> int:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=SIZE,
        special_tokens=list(special),
        show_progress=False,
        initial_alphabet=list("0123456789"),
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = _between(tokenizer, start, end)
    _write(directory, tokenizer, kind, do_lower_case=True)
    words = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    (directory / "vocab.txt").write_text("".join(f"{word}\n" for word, _ in words))
    return len(words)


def _between(tokenizer: Tokenizer, start: str, end: str) -> processors.TemplateProcessing:
    ids = [(name, tokenizer.token_to_id(name)) for name in (start, end)]
    pair = f"{start}:0 $A:0 {end}:0 $B:1 {end}:1"
    return processors.TemplateProcessing(f"{start}:0 $A:0 {end}:0", pair, ids)


def _names(padding: str, start: str, end: str, unknown: str, mask: str) -> dict[str, object]:
    """What a tokenizer without a class of its own must be told."""
    return {
        "pad_token": padding,
        "cls_token": start,
        "sep_token": end,
        "unk_token": unknown,
        "mask_token": mask,
    }


def _write(directory: Path, tokenizer: Tokenizer, kind: str, **settings: object) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    told = {"tokenizer_class": kind, "model_max_length": 512, **settings}
    (directory / "tokenizer_config.json").write_text(json.dumps(told))
