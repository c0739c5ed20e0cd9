"""The sizes of a Qwen3-VL by arithmetic: parameters, floating-point operations, memory of activations.

Everything follows from the model's own `config.json`; nothing is loaded. Parameters are exact. Operations are
those of the matrix products, as MFU counts them: 2 per parameter and token forward, twice that backward, and
4 x layers x heads x head size x length per token for attention, without halving it for causality (PaLM,
arXiv 2204.02311, appendix B). Activations are the tensors that autograd keeps, counted in transformers 5.17's
code in the manner of Korthikanti et al. (arXiv 2205.05198, section 4), for an attention that keeps no scores
(SDPA, FlashAttention).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from unirg import checkpoint
from unirg.config import Config, load, validate
from unirg.errors import UserError

_TEXT = (
    *(f"self_attn.{name}_proj" for name in "qkvo"),
    *(f"mlp.{name}_proj" for name in ("gate", "up", "down")),
)
_BLOCKS = ("patch_embed.proj", "attn.qkv", "attn.proj", "mlp.linear_fc1", "mlp.linear_fc2")


class Text(Config):
    """The language model, in the words of its `text_config`."""

    hidden_size: int = Field(ge=1)
    """Width of the stream."""
    intermediate_size: int = Field(ge=1)
    """Width of the gated MLP."""
    num_hidden_layers: int = Field(ge=1)
    """Depth."""
    num_attention_heads: int = Field(ge=1)
    """Heads of queries."""
    num_key_value_heads: int = Field(ge=1)
    """Heads of keys and values."""
    head_dim: int = Field(ge=1)
    """Width of a head."""
    vocab_size: int = Field(ge=1)
    """Rows of the embedding."""


class Vision(Config):
    """The vision tower, in the words of its `vision_config`."""

    depth: int = Field(ge=1)
    """Blocks."""
    hidden_size: int = Field(ge=1)
    """Width."""
    intermediate_size: int = Field(ge=1)
    """Width of the MLP."""
    out_hidden_size: int = Field(ge=1)
    """Width of the language model's stream."""
    num_position_embeddings: int = Field(ge=1)
    """Rows of the learned positions."""
    deepstack_visual_indexes: tuple[int, ...]
    """Blocks whose output enters the language model's first layers, each through a merger of its own."""
    patch_size: int = Field(default=16, ge=1)
    """Pixels on a side."""
    temporal_patch_size: int = Field(default=2, ge=1)
    """Frames of a patch; an image is repeated."""
    spatial_merge_size: int = Field(default=2, ge=1)
    """Patches on a side that make one token."""
    in_channels: int = Field(default=3, ge=1)
    """Colours."""


class Shape(Config):
    """A model's dimensions."""

    text_config: Text
    """The language model."""
    vision_config: Vision
    """The vision tower."""
    tie_word_embeddings: bool = False
    """The output matrix is the embedding."""

    def matrices(self) -> dict[str, tuple[int, int, int]]:
        """Every weight that multiplies activations, by its module's name: (how many, inputs, outputs)."""
        text, vision = self.text_config, self.vision_config
        wide, mlp, layers = text.hidden_size, text.intermediate_size, text.num_hidden_layers
        queries, keys = text.num_attention_heads * text.head_dim, text.num_key_value_heads * text.head_dim
        seen, merged = vision.hidden_size, vision.hidden_size * vision.spatial_merge_size**2
        mergers = 1 + len(vision.deepstack_visual_indexes)
        patch = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
        return {
            "self_attn.q_proj": (layers, wide, queries),
            "self_attn.k_proj": (layers, wide, keys),
            "self_attn.v_proj": (layers, wide, keys),
            "self_attn.o_proj": (layers, queries, wide),
            "mlp.gate_proj": (layers, wide, mlp),
            "mlp.up_proj": (layers, wide, mlp),
            "mlp.down_proj": (layers, mlp, wide),
            "lm_head": (1, wide, text.vocab_size),
            "patch_embed.proj": (1, patch, seen),
            "attn.qkv": (vision.depth, seen, 3 * seen),
            "attn.proj": (vision.depth, seen, seen),
            "mlp.linear_fc1": (vision.depth, seen, vision.intermediate_size),
            "mlp.linear_fc2": (vision.depth, vision.intermediate_size, seen),
            "merger.linear_fc1": (mergers, merged, merged),
            "merger.linear_fc2": (mergers, merged, vision.out_hidden_size),
        }

    @property
    def parameters(self) -> int:
        """All of the model's, exactly."""
        text, vision = self.text_config, self.vision_config
        sizes = self.matrices()
        weights = sum(count * inputs * outputs for count, inputs, outputs in sizes.values())
        # Of the vision tower all have a bias, of the language model none.
        biased = (size for name, size in sizes.items() if name not in (*_TEXT, "lm_head"))
        weights += sum(count * outputs for count, _, outputs in biased)
        embedding = text.vocab_size * text.hidden_size
        norms = text.num_hidden_layers * 2 * (text.hidden_size + text.head_dim) + text.hidden_size
        merged = vision.hidden_size * vision.spatial_merge_size**2
        norms += vision.depth * 4 * vision.hidden_size + 2 * vision.hidden_size  # weight and bias
        norms += len(vision.deepstack_visual_indexes) * 2 * merged
        positions = vision.num_position_embeddings * vision.hidden_size
        return weights + norms + positions + (0 if self.tie_word_embeddings else embedding)

    @property
    def largest_layer(self) -> int:
        """Parameters of one layer of the language model, or of the embedding if that is larger."""
        text = self.text_config
        layer = sum(self.matrices()[name][1] * self.matrices()[name][2] for name in _TEXT)
        return max(layer, text.vocab_size * text.hidden_size)

    def adapters(self, rank: int, targets: tuple[str, ...]) -> int:
        """Parameters of LoRA's two factors for the matrices whose names end in a target.

        Raises:
            UserError: no matrix has such a name.
        """
        total = 0
        for target in targets:
            ends = [size for name, size in self.matrices().items() if f".{name}".endswith(f".{target}")]
            if not ends:
                raise UserError(f"lora.targets names {target}; matrices are {', '.join(self.matrices())}")
            total += sum(count * rank * (inputs + outputs) for count, inputs, outputs in ends)
        return total

    def image_tokens(self, side: int) -> int:
        """Tokens of a square image of `side` pixels (the processor rounds to whole tokens)."""
        vision = self.vision_config
        return max(1, round(side / (vision.patch_size * vision.spatial_merge_size))) ** 2

    def forward_flops(self, sample: Sample, reports: int = 1) -> float:
        """Operations of one forward pass over a prompt and `reports` that share it; logits of these alone."""
        text, vision = self.text_config, self.vision_config
        sizes = {name: count * a * b for name, (count, a, b) in self.matrices().items()}
        layers = sum(size for name, size in sizes.items() if name in _TEXT)
        blocks = sum(sizes[name] for name in _BLOCKS)
        mergers = sizes["merger.linear_fc1"] + sizes["merger.linear_fc2"]
        tokens = sample.image_tokens
        patches = tokens * vision.spatial_merge_size**2
        width = text.num_attention_heads * text.head_dim
        seen, written = sample.seen, reports * sample.report
        attended = seen**2 + written * (seen + sample.report)
        return (
            2 * layers * (seen + written)
            + 2 * sizes["lm_head"] * written
            + 4 * text.num_hidden_layers * width * attended
            + sample.images * (2 * blocks * patches + 2 * mergers * tokens)
            + sample.images * 4 * vision.depth * vision.hidden_size * patches**2
        )

    def activations(self, tokens: float, patches: float, bf16: bool, checkpointing: bool) -> float:
        """Bytes that autograd keeps until the backward pass, logits left out.

        With checkpointing each layer keeps its input alone, and one layer is computed anew at a time.

        Args:
            tokens: of the language model, those of images included.
            patches: of the vision tower.
        """
        text, vision = self.text_config, self.vision_config
        size = 2 if bf16 else 4
        wide, mlp = text.hidden_size, text.intermediate_size
        queries, keys = text.num_attention_heads * text.head_dim, text.num_key_value_heads * text.head_dim
        # Of each width so many tensors; two of the norms' own are in fp32 whatever the precision.
        layer = size * (6 * wide + 4 * mlp + 4 * queries + 4 * keys) + (4 - size) * (
            2 * wide + queries + keys
        )
        block = size * (8 * vision.hidden_size + 2 * vision.intermediate_size)
        block += (4 - size) * 2 * vision.hidden_size
        once = patches * 4 * self.matrices()["patch_embed.proj"][1] + tokens * 3 * size * wide
        once += (1 + len(vision.deepstack_visual_indexes)) * patches * 3.5 * size * vision.hidden_size
        if checkpointing:
            kept = tokens * text.num_hidden_layers * size * wide
            kept += patches * vision.depth * size * vision.hidden_size
            return once + kept + max(tokens * layer, patches * block)
        return once + tokens * text.num_hidden_layers * layer + patches * vision.depth * block

    @property
    def cache_per_token(self) -> int:
        """Bytes of keys and values of one token in bf16."""
        text = self.text_config
        return 2 * 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim


@dataclass(frozen=True)
class Sample:
    """A study as the policy sees it, on average."""

    prompt: float
    """Tokens of text before the report, markup included, images' places left out."""
    report: float
    """Tokens of the report with its end."""
    images: float
    """Radiographs: 1, or 2 with a prior."""
    image_tokens: int
    """Of one radiograph."""

    @property
    def seen(self) -> float:
        """Tokens before the report, those of images included."""
        return self.prompt + self.images * self.image_tokens

    @property
    def length(self) -> float:
        return self.seen + self.report


def shape_of(source: str) -> Shape:
    """Dimensions of a shipped model such as `plan/model_qwen3_vl_8b`, or of a model directory.

    Raises:
        UserError: neither is there, or the directory's model is no Qwen3-VL.
    """
    file = Path(source).expanduser() / "config.json"
    if not file.parent.is_dir():
        return load(Shape, source)
    checkpoint.check(file.parent)
    try:
        given = json.loads(file.read_text())
    except json.JSONDecodeError:
        raise UserError(f"{file} is not JSON: name a complete model directory") from None
    if not isinstance(given, dict) or given.get("model_type") != "qwen3_vl":
        raise UserError(f"{file} is not of a Qwen3-VL: sizes of other architectures are not known here")
    return validate(Shape, _known(Shape, given), origin=str(file))


def _known(model: type[Config], given: Mapping[str, Any]) -> dict[str, Any]:
    """What of a larger mapping the model has fields for."""
    kept: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        if name in given:
            inner = field.annotation
            nested = isinstance(inner, type) and issubclass(inner, Config)
            kept[name] = _known(inner, given[name]) if nested else given[name]  # type: ignore[arg-type]
    return kept
