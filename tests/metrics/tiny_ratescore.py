"""RaTEScore's two networks, tiny and random, in directories as `unirg weights fetch` writes them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from string import ascii_letters, ascii_lowercase
from typing import Any

from tests.metrics import tiny

TYPES = ("ABNORMALITY", "NON-ABNORMALITY", "DISEASE", "NON-DISEASE", "ANATOMY")
LABELS = ("O", *(f"{side}-{kind}" for kind in TYPES for side in "BI"))


def directory(root: Path) -> Path:
    """`ner/` and `synonyms/`: tags of all kinds come out, in about half of the tokens."""
    import torch
    from transformers import DebertaV2Config, DebertaV2ForTokenClassification, MPNetConfig, MPNetModel

    torch.manual_seed(3)
    config: dict[str, Any] = tiny.config(_unigram(root / "ner"), num_hidden_layers=2)
    ner = DebertaV2ForTokenClassification(
        DebertaV2Config(
            **config,
            type_vocab_size=0,
            relative_attention=True,
            position_buckets=16,
            norm_rel_ebd="layer_norm",
            share_att_key=True,
            pos_att_type=["p2c", "c2p"],
            position_biased_input=False,
            id2label=dict(enumerate(LABELS)),
            label2id={label: number for number, label in enumerate(LABELS)},
        )
    )
    torch.nn.init.normal_(ner.classifier.weight, std=1.0)
    with torch.no_grad():
        # No tag before another, but for O.
        logits = ner.eval()(torch.arange(5, config["vocab_size"])[None]).logits
        ner.classifier.bias -= logits.mean((0, 1))
        ner.classifier.bias[0] += logits.std()
    ner.save_pretrained(root / "ner")

    config = tiny.config(_wordpiece(root / "synonyms"), num_hidden_layers=2, max_position_embeddings=514)
    MPNetModel(MPNetConfig(**config)).save_pretrained(root / "synonyms")
    return root


def _unigram(path: Path) -> int:
    """Words and letters, as DeBERTa-v3's SentencePiece model has them; returns the vocabulary's size."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    names = ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]
    words = sorted({f"\u2581{word}" for word in re.findall(r"\w+", tiny.WORDS)})
    # Not every word is known, so that some fall into pieces.
    pieces = [(name, 0.0) for name in names] + [(word, -4.0) for word in words[::3]]
    pieces += [(piece, -6.0) for piece in ("\u2581", "an", "ar", "ed", "in", "le", "on")]
    pieces += [(letter, -9.0) for letter in f"{ascii_letters}.,;?"]
    tokenizer = Tokenizer(models.Unigram([*pieces, ("[MASK]", 0.0)], unk_id=3))
    tokenizer.add_special_tokens([*names, "[MASK]"])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    between = [(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=between)
    roles = dict(zip(("pad_token", "cls_token", "sep_token", "unk_token"), names, strict=True))
    _write(path, tokenizer, "DebertaV2Tokenizer", {**roles, "mask_token": "[MASK]"})
    return tokenizer.get_vocab_size()


def _wordpiece(path: Path) -> int:
    """Words and letters between RoBERTa's special tokens, as MPNet's; returns the vocabulary's size."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    names = ["<s>", "<pad>", "</s>", "[UNK]"]
    words = sorted(set(re.findall(r"\w+", tiny.WORDS.lower())))
    letters = [*ascii_lowercase, *(f"##{letter}" for letter in ascii_lowercase), *".,;?"]
    vocabulary = dict.fromkeys([*names, *words[::2], *letters, "<mask>"])
    tokenizer = Tokenizer(
        models.WordPiece({word: at for at, word in enumerate(vocabulary)}, unk_token="[UNK]")
    )
    tokenizer.add_special_tokens([*names, "<mask>"])
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    _write(path, tokenizer, "MPNetTokenizer", {})
    return tokenizer.get_vocab_size()


def _write(path: Path, tokenizer: Any, kind: str, settings: dict[str, str]) -> None:
    path.mkdir(parents=True)
    tokenizer.save(str(path / "tokenizer.json"))
    (path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": kind, **settings}))
