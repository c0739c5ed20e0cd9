"""Tiny random models of the real architectures, in directories as `unirg weights fetch` writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

WORDS = (
    "The lungs are clear. No pleural effusion or pneumothorax is seen, the heart is mildly enlarged. There "
    "is a small left basilar opacity; possible pneumonia and atelectasis? Stable cardiomegaly without "
    "edema. XXXX"
)
HOSTILE = [
    "",
    " ",
    "\n\t",
    "\r\nNo effusion.\r\n\r\nHeart is\tlarge.\n",
    "XXXX XXXX: XXXX.",
    "lungs 🫁👩🏽‍⚕️ clear",
    "肺は清明です",
    "[CLS] [SEP] [PAD] [MASK] <s> </s> <pad> <mask>",
    "\x00\x07 null",
    "half a pair \ud83d of surrogates",
    "effusion " * 5000,
    "x" * 5000,
]


def bert_tokenizer(directory: Path) -> int:
    """Write a WordPiece tokenizer; returns its vocabulary's size."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=250, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator([WORDS], trainer)
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.save(str(directory / "tokenizer.json"))
    return tokenizer.get_vocab_size()


def roberta_tokenizer(directory: Path) -> int:
    """Write a byte-level BPE tokenizer; returns its vocabulary's size."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([WORDS] * 3, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(
        ("</s>", 2), ("<s>", 0), trim_offsets=True, add_prefix_space=False
    )
    tokenizer.save(str(directory / "tokenizer.json"))
    return tokenizer.get_vocab_size()


def config(vocabulary: int, **changes: Any) -> dict[str, Any]:
    """Of a small encoder whose hidden states differ much between texts."""
    return {
        "vocab_size": vocabulary,
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 512,
        "initializer_range": 0.3,
        **changes,
    }


def chexbert(directory: Path) -> Path:
    """CheXbert's directory, with the pooler that the public checkpoint holds and no one needs."""
    import torch
    from safetensors.torch import save_file
    from transformers import BertConfig

    from unirg.metrics.chexbert_network import CheXbertNetwork

    torch.manual_seed(0)
    settings = BertConfig(**config(bert_tokenizer(directory)))
    settings.save_pretrained(directory)
    network = CheXbertNetwork(settings)
    for head in network.linear_heads:
        torch.nn.init.normal_(head.weight, std=1.0)
    unused = {"bert.pooler.dense.weight": torch.zeros(32, 32), "bert.pooler.dense.bias": torch.zeros(32)}
    save_file({**network.state_dict(), **unused}, directory / "model.safetensors")
    return directory


def bertscore(directory: Path, layer: int = 2, baseline_f1: float = 0.8473319) -> Path:
    """BERTScore's directory, with keys and unused parts as the public language model has them."""
    import torch
    from safetensors.torch import save_file
    from transformers import RobertaConfig, RobertaModel

    torch.manual_seed(0)
    settings = RobertaConfig(
        **config(roberta_tokenizer(directory), max_position_embeddings=514, type_vocab_size=1),
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=2,
    )
    settings.save_pretrained(directory)
    model = RobertaModel(settings)
    tensors = {f"roberta.{name}": value for name, value in model.state_dict().items()}
    save_file({**tensors, "lm_head.bias": torch.zeros(7)}, directory / "model.safetensors")
    setting = {"layer": layer, "baseline_f1": baseline_f1}
    (directory / "bertscore.json").write_text(json.dumps(setting))
    return directory
