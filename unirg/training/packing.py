"""Batches of Qwen3-VL without padding: samples lie end to end in one row and do not see each other.

Three things could leak from one sample to the next, and each is closed at its source. Positions (M-RoPE)
begin at zero in each sample. Attention of the language model goes sample by sample (`attention`), as the
vision tower's goes image by image already. Losses are of completion tokens alone, each predicted from its own
sample. The vocabulary is scored at those positions only: at the prompt's, where nothing is learned, scoring
costs as much as the layers of a small model.

TRL refuses packing and padding-free batches on vision data (1.16). What is here gives the losses of its
padded batches, as `tests/training/test_packing.py` shows.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel, ProcessorMixin
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

if TYPE_CHECKING:
    import PIL.Image

ATTENTION = "by_sample"
"""Name of `attention` among transformers' implementations."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One study as the model reads it."""

    ids: Tensor
    """(tokens,): prompt and completion."""
    prompt: int
    """Tokens of the prompt; the others bear loss."""
    pixels: Tensor
    """(patches of all its images, values of a patch), as the processor makes them."""
    grids: Tensor
    """(images, 3): time, height and width of each image in patches."""

    @property
    def completion(self) -> Tensor:
        """(tokens,) that bear loss."""
        return self.ids[self.prompt :]


class Encoder:
    """Items of `data.Examples` -> samples: TRL's tokens, the processor's pixels, at a tenth of the cost.

    It has its own copy of the tokenizer: one that two threads share fails as soon as one of them pads.
    """

    def __init__(self, processor: ProcessorMixin) -> None:
        self.processor = copy.deepcopy(processor)
        images = self.processor.image_processor
        # A pixel has 256 values, so a table of what the processor makes of them saves its arithmetic.
        ramp = np.broadcast_to(np.arange(256, dtype=np.uint8)[:, None], (3, 256, 1))
        scaled = images.rescale(ramp, images.rescale_factor)
        self.values = images.normalize(scaled, images.image_mean, images.image_std)[..., 0].astype(np.float32)

    def __call__(self, item: dict[str, Any]) -> Sample:
        """
        Args:
            item: `prompt` and `completion` (messages), `images` (PIL, one at least, each of the size to which
                the processor would bring it).
        """
        render = self.processor.apply_chat_template
        prompt = render(item["prompt"], add_generation_prompt=True, tokenize=False)
        whole = render([*item["prompt"], *item["completion"]], tokenize=False)
        if not whole.startswith(prompt):
            raise ValueError("the chat template writes a prompt otherwise where a completion follows")
        shown = [self._patches(image) for image in item["images"]]
        grids = torch.tensor([grid for _, grid in shown])
        places = grids.prod(-1) // self.processor.image_processor.merge_size**2
        head, *parts = prompt.split(self.processor.image_token)
        for count, part in zip(places.tolist(), parts, strict=True):
            head += self.processor.image_token * count + part
        before, after = (
            self.processor.tokenizer(text, add_special_tokens=False)["input_ids"]
            for text in (head, whole[len(prompt) :])
        )
        pixels = torch.from_numpy(np.concatenate([patches for patches, _ in shown]))
        return Sample(torch.tensor([*before, *after]), len(before), pixels, grids)

    def _patches(self, image: PIL.Image.Image) -> tuple[np.ndarray, tuple[int, int, int]]:
        """(patches, channels x time x height x width) float32, and the image's grid."""
        images = self.processor.image_processor
        raw = np.asarray(image).transpose(2, 0, 1)
        patches, high, wide = images.patchify(
            np.stack([table[channel] for table, channel in zip(self.values, raw, strict=True)]),
            patch_size=images.patch_size,
            merge_size=images.merge_size,
            temporal_patch_size=images.temporal_patch_size,
        )
        return patches, (1, high, wide)


def positions(ids: Tensor, grids: Tensor, image_token: int, merge: int) -> Tensor:
    """M-RoPE positions of one sample: time, height and width, which are one number for text.

    An image begins after what is before it, spans its grid in height and width, and takes as many positions
    as its longer side (Qwen2-VL, arXiv 2409.12191, section 2.1).

    Args:
        ids: (tokens,).
        grids: (images, 3) in patches.
        image_token: the id that stands for `merge` x `merge` patches.

    Returns:
        (3, tokens).
    """
    is_image = ids == image_token
    result = torch.empty(3, len(ids), dtype=torch.long)
    at = start = 0  # of tokens; of positions
    for grid in grids:
        time, height, width = grid[0].item(), grid[1].item() // merge, grid[2].item() // merge
        text = int(is_image[at:].int().argmax())
        result[:, at : at + text] = torch.arange(start, start + text)
        at, start = at + text, start + text
        count = int(time * height * width)
        axes = torch.meshgrid(*(torch.arange(side) for side in (time, height, width)), indexing="ij")
        result[:, at : at + count] = torch.stack(axes).reshape(3, count) + start
        at, start = at + count, start + int(max(height, width))
    result[:, at:] = torch.arange(start, start + len(ids) - at)
    return result


def pack(samples: Sequence[Sample], config: Any) -> dict[str, Any]:
    """Samples -> what `loss` takes, all in one row of `tokens` = the sum of theirs.

    Args:
        config: the model's, which names the image token and how many patches it stands for.

    Returns:
        `input_ids` (1, tokens); `position_ids` (3, 1, tokens); `pixel_values`; `image_grid_thw`; `lengths` of
        the samples; `logits_to_keep` (completion tokens,), the positions before those; `targets`, their ids.
    """
    merge = config.vision_config.spatial_merge_size
    lengths = [len(sample.ids) for sample in samples]
    ends = torch.tensor(lengths).cumsum(0)
    scored = [
        torch.arange(end - len(sample.completion), end) - 1
        for sample, end in zip(samples, ends.tolist(), strict=True)
    ]
    places = [positions(sample.ids, sample.grids, config.image_token_id, merge) for sample in samples]
    return {
        "input_ids": torch.cat([sample.ids for sample in samples])[None],
        "position_ids": torch.cat(places, 1)[:, None],
        "pixel_values": torch.cat([sample.pixels for sample in samples]),
        "image_grid_thw": torch.cat([sample.grids for sample in samples]),
        "lengths": lengths,
        "logits_to_keep": torch.cat(scored),
        "targets": torch.cat([sample.completion for sample in samples]),
    }


def loss(model: Any, batch: dict[str, Any]) -> Tensor:
    """Sum of the completion tokens' negative log-likelihoods in a packed batch, in float32.

    Args:
        model: one that `use` prepared, or a wrapper of it.
        batch: of `pack`, on the model's device.
    """
    inputs = {name: value for name, value in batch.items() if name != "targets"}
    logits = model(**inputs, use_cache=False).logits[0]
    return torch.nn.functional.cross_entropy(logits.float(), batch["targets"], reduction="sum")


def pad(
    samples: Sequence[Sample], pad_token: int, image_token: int, side: Literal["left", "right"] = "right"
) -> dict[str, Any]:
    """Samples -> a batch padded on the right, as TRL's own collator makes it, or on the left, for generation.

    Returns:
        `input_ids`, `attention_mask`, `mm_token_type_ids` and `labels` (-100 = no loss), each (samples,
        longest); `pixel_values`; `image_grid_thw`.
    """

    def rows(values: Iterable[Tensor], padding: int) -> Tensor:
        return pad_sequence(list(values), batch_first=True, padding_value=padding, padding_side=side)

    ids = rows((sample.ids for sample in samples), pad_token)
    mask = rows((torch.ones_like(sample.ids) for sample in samples), 0)
    unscored = (torch.full((sample.prompt,), -100) for sample in samples)
    labels = rows(
        (torch.cat([none, sample.completion]) for none, sample in zip(unscored, samples, strict=True)), -100
    )
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "mm_token_type_ids": (ids == image_token).int(),
        "labels": labels,
        "pixel_values": torch.cat([sample.pixels for sample in samples]),
        "image_grid_thw": torch.cat([sample.grids for sample in samples]),
    }


def attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    lengths: Sequence[int] | None = None,
    **given: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each sample of a packed row; PyTorch's own where nothing is packed.

    No mask of tokens x tokens is ever made. PyTorch takes its FlashAttention kernel where there is one for
    the device and precision (CUDA in bfloat16, and the CPU).

    Args:
        query: (1, heads, tokens, width of a head); keys and values may have fewer heads.
        lengths: tokens of each sample in the row.

    Returns:
        (1, tokens, heads, width of a head), and no weights.
    """
    if lengths is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **given)
    parts = zip(*(states.split(lengths, dim=2) for states in (query, key, value)), strict=True)
    found = [sdpa_attention_forward(module, *part, None, **given)[0] for part in parts]
    return torch.cat(found, dim=1), None


AttentionInterface.register(ATTENTION, attention)
# For rows that are not packed; a packed one looks plainly causal to it, and gets no mask.
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


def use(model: PreTrainedModel) -> PreTrainedModel:
    """Let the language model attend sample by sample in packed batches; all else stays as it was."""
    language_model(model).config._attn_implementation = ATTENTION
    return model


def language_model(model: Any) -> PreTrainedModel:
    """The part of the policy, or of one with adapters, that reads text."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return base.model.language_model
