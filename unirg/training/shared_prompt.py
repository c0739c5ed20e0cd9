"""Log-probabilities of rollouts, with what the rollouts of one prompt share computed once (Qwen3-VL).

The rollouts of a prompt become one row: the prompt without its last token, then, one rollout after the other,
that last token and the completion without its own last, so that each position predicts the token after it:

    prompt[:-1] | prompt[-1] a1 a2 .. | prompt[-1] b1 b2 .. | ...

A rollout attends to the prompt and to itself, and its M-RoPE positions go on from the prompt's, so every
hidden state is what it would be in a row of its own; the gradients of the prompt's part add up in it. Images
are encoded once per row. With `share` = images the rows stay apart and only the encoded images are repeated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

PREFIX = "shared_prompt|"
"""Before the name of the attention that serves all rows without a shared prompt."""


@dataclass(frozen=True, eq=False)
class Layout:
    """Of rows with a shared prompt: P tokens of prompt, then G rollouts of C tokens each."""

    prompt: int
    rollouts: int
    prompt_mask: Tensor | None
    """(rows, 1, P, P), true = attend; None where no prompt is padded: plainly causal."""
    rollout_mask: Tensor
    """(rows x G or 1, 1, C, P + C), true = attend."""


def install(model: Any) -> None:
    """Teach a Qwen3-VL to read rows with a shared prompt, and to repeat the images that it encoded.

    Without the keywords `shared_prompt` and `image_order` it computes what it did before.
    """
    core = model.model
    config = core.language_model.config
    own = config._attn_implementation
    if not own.startswith(PREFIX):
        stock = "sdpa" if own == "eager" else own
        AttentionInterface.register(PREFIX + own, _attention(ALL_ATTENTION_FUNCTIONS[stock]))
        AttentionMaskInterface.register(PREFIX + own, AttentionMaskInterface()[stock])
        config._attn_implementation = PREFIX + own
        core.get_image_features = _repeated(core.get_image_features)


def _attention(stock: Any) -> Any:
    def attention(
        module: torch.nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        shared_prompt: Layout | None = None,
        **options: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Queries, keys, values are (rows, heads, tokens, width); the result (rows, tokens, heads, width)."""
        if shared_prompt is None:
            return stock(module, query, key, value, attention_mask, **options)
        layout, start = shared_prompt, shared_prompt.prompt

        def folded(states: Tensor) -> Tensor:  # each rollout becomes a row
            apart = states[:, :, start:].unflatten(2, (layout.rollouts, -1))
            return apart.transpose(1, 2).flatten(0, 1)

        def with_prompt(states: Tensor) -> Tensor:
            prompt = states[:, :, :start].repeat_interleave(layout.rollouts, dim=0)
            return torch.cat([prompt, folded(states)], dim=2)

        prompt, _ = sdpa_attention_forward(
            module,
            query[:, :, :start],
            key[:, :, :start],
            value[:, :, :start],
            layout.prompt_mask,
            **options,
        )
        rollouts, _ = sdpa_attention_forward(
            module, folded(query), with_prompt(key), with_prompt(value), layout.rollout_mask, **options
        )
        joined = rollouts.unflatten(0, (-1, layout.rollouts)).flatten(1, 2)
        return torch.cat([prompt, joined], dim=1), None

    return attention


def _repeated(stock: Any) -> Any:
    def get_image_features(
        *given: Any,
        image_order: Sequence[int] | None = None,
        shared_prompt: Layout | None = None,  # is for the language model alone
        **options: Any,
    ) -> Any:
        """As transformers', but with each image as often and where `image_order` says."""
        found = stock(*given, **options)
        if image_order is not None:
            sizes = [len(part) for part in found.pooler_output]
            found.pooler_output = tuple(found.pooler_output[number] for number in image_order)
            found.deepstack_features = [
                torch.cat([states.split(sizes)[number] for number in image_order])
                for states in found.deepstack_features
            ]
        return found

    return get_image_features


@dataclass(frozen=True, eq=False)
class Rollouts:
    """B rollouts of N prompts, B / N of each and together, with the prompts' images."""

    prompt_ids: Tensor
    """(B, P), padded on the left."""
    prompt_mask: Tensor
    completion_ids: Tensor
    """(B, C), padded on the right."""
    completion_mask: Tensor
    pixel_values: Tensor
    """(patches of all images of the N prompts, values of a patch)."""
    image_grid_thw: Tensor
    """(images of the N prompts, 3)."""
    num_images: Sequence[int]
    """Of each of the N prompts."""

    @property
    def each(self) -> int:
        """Rollouts of one prompt."""
        return len(self.prompt_ids) // len(self.num_images)

    def trimmed(self) -> Rollouts:
        """Without the columns that are padding in every row."""
        first = int(self.prompt_mask.any(0).int().argmax())
        length = max(1, int(self.completion_mask.sum(1).max()))
        return Rollouts(
            self.prompt_ids[:, first:],
            self.prompt_mask[:, first:],
            self.completion_ids[:, :length],
            self.completion_mask[:, :length],
            self.pixel_values,
            self.image_grid_thw,
            self.num_images,
        )


def inputs(core: Any, rollouts: Rollouts, share_prompt: bool) -> dict[str, Any]:
    """What a model with TRL's fused head takes for these rollouts; `completions` reads its answer.

    Args:
        core: the `Qwen3VLModel`, for its image token and its M-RoPE positions.
    """
    each = rollouts.each
    ids, mask = rollouts.prompt_ids[::each], rollouts.prompt_mask[::each]
    positions, deltas = core.get_rope_index(
        ids,
        mm_token_type_ids=(ids == core.config.image_token_id).int(),
        image_grid_thw=rollouts.image_grid_thw,
        attention_mask=mask,
    )
    images = {"pixel_values": rollouts.pixel_values, "image_grid_thw": rollouts.image_grid_thw}
    build = _together if share_prompt else _apart
    return images | build(rollouts, positions, mask.sum(1, keepdim=True) + deltas)


def completions(per_token: Tensor, rollouts: Rollouts, share_prompt: bool) -> Tensor:
    """(B, C) of what the fused head gave per position of the rows that `inputs` made."""
    length = rollouts.completion_ids.shape[1]
    if not share_prompt:
        return per_token[:, -length:]
    return per_token[:, rollouts.prompt_ids.shape[1] - 1 :].reshape(-1, length)


def _apart(rollouts: Rollouts, positions: Tensor, following: Tensor) -> dict[str, Any]:
    """A row for each rollout; image numbers in the order in which the rows show them."""
    each, length = rollouts.each, rollouts.completion_ids.shape[1]
    ids = torch.cat([rollouts.prompt_ids, rollouts.completion_ids], dim=1)
    mask = torch.cat([rollouts.prompt_mask, rollouts.completion_mask], dim=1)
    order, first = [], 0
    for count in rollouts.num_images:
        order += [*range(first, first + count)] * each
        first += count
    ahead = following + torch.arange(length, device=ids.device)
    places = torch.cat([positions, ahead.expand(3, -1, -1)], dim=2)
    labels = ids.masked_fill(mask == 0, -100)
    labels[:, :-length] = -100
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "position_ids": places.repeat_interleave(each, dim=1),
        "image_order": order,
        "labels": labels,
    }


def _together(rollouts: Rollouts, positions: Tensor, following: Tensor) -> dict[str, Any]:
    """A row for each prompt, in the layout of this module."""
    each, length = rollouts.each, rollouts.completion_ids.shape[1]
    rows = len(rollouts.num_images)
    prompt, real = rollouts.prompt_ids[::each, :-1], rollouts.prompt_mask[::each, :-1].bool()
    parts = torch.cat([rollouts.prompt_ids[:, -1:], rollouts.completion_ids[:, :-1]], dim=1)
    ahead = following - 1 + torch.arange(length, device=prompt.device)  # from the prompt's last token on
    targets = rollouts.completion_ids.masked_fill(rollouts.completion_mask == 0, -100)
    return {
        "input_ids": torch.cat([prompt, parts.view(rows, -1)], dim=1),
        # Of four dimensions, so that transformers makes no mask of its own; attention takes the layout's.
        "attention_mask": real.new_ones(rows, 1, 1, 1),
        "position_ids": torch.cat([positions[:, :, :-1], ahead.repeat(1, each).expand(3, -1, -1)], dim=2),
        "shared_prompt": _layout(real, each, length),
        "labels": None,
        "shift_labels": torch.cat([torch.full_like(prompt, -100), targets.view(rows, -1)], dim=1),
    }


def _layout(real: Tensor, each: int, length: int) -> Layout:
    """Masks for prompts whose tokens are `real` (rows, P), without padding where all are."""
    size, device = real.shape[1], real.device
    own = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    if real.all():
        seen = own.new_ones(length, size)
        return Layout(size, each, None, torch.cat([seen, own], dim=1)[None, None])
    causal = torch.ones(size, size, dtype=torch.bool, device=device).tril()
    # A padding token attends to itself, as a softmax over nothing is no number.
    within = (causal & real[:, None]) | torch.eye(size, dtype=torch.bool, device=device)
    seen = real.repeat_interleave(each, dim=0)[:, None, None].expand(-1, 1, length, -1)
    whole = torch.cat([seen, own.expand(len(seen), 1, -1, -1)], dim=3)
    return Layout(size, each, within[:, None], whole)
