"""Run a text encoder over many token sequences: sorted by length, in batches of a budget of tokens.

Padding is the waste here: sequences of like length go together, and on a CPU small batches are the fastest.
What comes out is float32 whatever the precision, and in fp32 it does not depend on the batch beyond the last
bits of a sum.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from unirg.errors import UserError

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig

Precision = Literal["fp32", "bf16", "int8"]

CPU_TOKENS = 512
GPU_TOKENS = 32_768


@dataclass(frozen=True)
class Compute:
    """Where and how an encoder runs."""

    precision: Precision = "fp32"
    """`bf16` pays on GPUs and on CPUs with AMX or AVX512-BF16, `int8` (dynamic, linear layers) on CPUs."""
    device: str = "cpu"
    """torch's name of the device."""
    tokens: int = 0
    """Tokens of one batch, padding included; 0: what is fast on the device."""

    @property
    def budget(self) -> int:
        return self.tokens or (CPU_TOKENS if self.device == "cpu" else GPU_TOKENS)


def batches(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Positions of the sequences, longest first, cut so that rows x longest stays within the budget."""
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    while order:
        rows = max(1, budget // max(1, lengths[order[0]]))
        yield order[:rows]
        order = order[rows:]


def prepared(model: torch.nn.Module, compute: Compute) -> torch.nn.Module:
    """The model in evaluation mode, in the precision and on the device asked for."""
    import torch

    model = model.eval().requires_grad_(False).to(compute.device)
    if compute.precision == "bf16":
        return model.to(torch.bfloat16)
    if compute.precision == "int8":
        if compute.device != "cpu":
            raise UserError(f"int8 runs on CPUs, not on {compute.device}: choose fp32 or bf16 there")
        quantize: Callable[..., torch.nn.Module] = torch.ao.quantization.quantize_dynamic
        with warnings.catch_warnings():
            # torch 2.13 calls this deprecated; what it names instead, torchao, is no dependency of ours.
            warnings.simplefilter("ignore")
            return quantize(model, {torch.nn.Linear}, dtype=torch.qint8)
    return model.float()


def run(
    forward: Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor],
    sequences: Sequence[Sequence[int]],
    padding: int,
    compute: Compute,
) -> Iterator[tuple[list[int], torch.Tensor]]:
    """Encode the sequences, batch by batch.

    Args:
        forward: (ids (rows, length), mask (rows, length) or None where nothing is padded) -> (rows, length,
            width) or (rows, width).
        sequences: token ids, special tokens included, none longer than the encoder allows.
        padding: id that fills a shorter row up, on its right.

    Yields:
        Positions of the batch's rows among `sequences`, and what `forward` gave for them, in float32.
    """
    import torch

    for rows in batches([len(sequence) for sequence in sequences], compute.budget):
        longest = max(len(sequences[row]) for row in rows)
        ids = torch.full((len(rows), longest), padding, dtype=torch.long)
        mask = torch.zeros((len(rows), longest), dtype=torch.long)
        for place, row in enumerate(rows):
            length = len(sequences[row])
            ids[place, :length] = torch.as_tensor(sequences[row])
            mask[place, :length] = 1
        even = bool(mask.all())
        with torch.inference_mode():
            found = forward(ids.to(compute.device), None if even else mask.to(compute.device))
        yield rows, found.float()


def hidden_states(model: Any) -> Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor]:
    """`forward` for a transformers encoder: its last hidden states."""

    def forward(ids: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        # RoBERTa and its kin count positions from the ids themselves, so a missing mask is no trap.
        return model(input_ids=ids, attention_mask=mask).last_hidden_state

    return forward


def load_config(kind: type[PretrainedConfig], directory: Path) -> Any:
    """The configuration of a model, of the given class.

    Raises:
        UserError: its config.json cannot be read.
    """
    try:
        return kind.from_pretrained(directory)
    except (OSError, ValueError) as error:
        raise UserError(
            f"cannot read {directory / 'config.json'} ({type(error).__name__}): name a complete directory"
        ) from error


def load_tokenizer(directory: Path, config: PretrainedConfig) -> Any:
    """The tokenizer beside a model.

    Raises:
        UserError: it cannot be read, or is not of this model's vocabulary.
    """
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(directory)
    except Exception as error:  # the Rust library raises plain Exception for a broken tokenizer.json
        raise UserError(
            f"cannot read the tokenizer in {directory} ({type(error).__name__}): name a complete directory"
        ) from error
    # Without its files transformers builds one of the special tokens alone, without a word.
    if not len(tokenizer.all_special_ids) < len(tokenizer) <= config.vocab_size:
        raise UserError(
            f"the tokenizer in {directory} has {len(tokenizer)} tokens and the model {config.vocab_size}: "
            "they are not of one model; name a complete directory"
        )
    if (file := directory / "tokenizer.json").is_file():
        # transformers 5 makes these two by the name of the class: DeBERTa's not as it was trained with.
        trained = Tokenizer.from_file(str(file))
        tokenizer.backend_tokenizer.normalizer = trained.normalizer
        tokenizer.backend_tokenizer.pre_tokenizer = trained.pre_tokenizer
    return tokenizer


def token_ids(tokenizer: Any, texts: Sequence[str], limit: int) -> list[list[int]]:
    """Ids of each text, special tokens included and kept where a longer text is cut to `limit` tokens.

    A lone surrogate, which no encoding of text can hold, is read as "?".
    """
    if not texts:
        return []
    whole = [text.encode("utf-8", "replace").decode("utf-8") for text in texts]
    return tokenizer(whole, truncation=True, max_length=limit)["input_ids"]
