"""A model directory: what training writes and serving reads, with stock transformers classes.

The directory is a normal Hugging Face one (safetensors, config, tokenizer, image processor, chat
template), so KServe's vLLM runtime, `AutoProcessor` and `AutoModelForImageTextToText` read it too, and the
same code reads `Qwen/Qwen3-VL-8B-Instruct` or `microsoft/UniRG-CXR` from a directory or the hub.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unirg.errors import UserError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, ProcessorMixin

MODEL = "model"
"""Folder of a checkpoint artifact that holds the model directory."""
LOG = "logs/train_log.jsonl"
"""File of a checkpoint artifact with the trainer's history, one JSON object per logged step."""
STAGES = ("base", "sft", "grpo")
"""Stages whose artifact is a checkpoint."""
_FILES = ("config.json", "tokenizer_config.json")


def quiet() -> None:
    """Keep the libraries' bars and warnings out of a stage's progress lines; call before they load."""
    # DeepSpeed, which accelerate imports, otherwise warns that it found no accelerator.
    if not os.path.exists("/dev/nvidiactl"):
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    # TRL otherwise tells the hub of each trainer that is made.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


@cache
def _processor_class() -> type[Any]:
    from transformers.models.qwen3_vl import processing_qwen3_vl as stock

    class Qwen3VLProcessor(stock.Qwen3VLProcessor):
        """Qwen3-VL's processor for images alone.

        The stock one needs a video processor, which needs torchvision, which has no CPU build here; a
        radiograph is no video. The class keeps the stock name, so that what it saves loads as stock.
        """

        def __init__(self, image_processor=None, tokenizer=None, chat_template=None, **kwargs):  # type: ignore[no-untyped-def]
            super().__init__(image_processor, tokenizer, None, chat_template=chat_template, **kwargs)

        @classmethod
        def get_attributes(cls) -> list[str]:
            return ["image_processor", "tokenizer"]

    return Qwen3VLProcessor


def make_processor(image_processor: Any, tokenizer: Any, chat_template: str) -> ProcessorMixin:
    """Put a processor together; prompts are padded on the left, as generation needs (STACK: M-RoPE)."""
    tokenizer.padding_side = "left"
    return _processor_class()(image_processor, tokenizer, chat_template=chat_template)


def load_processor(source: str | Path) -> ProcessorMixin:
    """The processor of a model directory or hub id.

    Raises:
        UserError: there is no model directory there, or it has no chat template.
    """
    from transformers import AutoTokenizer
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    place = check(source)
    quiet()
    with _explained(source):
        images = Qwen2VLImageProcessorPil.from_pretrained(place)
        tokenizer = AutoTokenizer.from_pretrained(place)
    if not tokenizer.chat_template:
        raise UserError(f"the tokenizer at {source} has no chat template: take an instruction-tuned model")
    return make_processor(images, tokenizer, tokenizer.chat_template)


def load_model(source: str | Path, dtype: str = "float32") -> PreTrainedModel:
    """The policy of a model directory or hub id, from safetensors, in evaluation mode.

    Raises:
        UserError: there is no model directory there, or its weights are not this architecture's.
    """
    from transformers import Qwen3VLForConditionalGeneration

    place = check(source)
    quiet()
    with _explained(source):
        model, found = Qwen3VLForConditionalGeneration.from_pretrained(
            place, dtype=dtype, use_safetensors=True, output_loading_info=True, ignore_mismatched_sizes=True
        )
    # transformers would fill what is not there, or does not fit, with random numbers.
    wrong = sorted({*found["missing_keys"], *(key for key, *_ in found["mismatched_keys"])})
    if wrong:
        raise UserError(
            f"the weights at {source} are not of its config.json: {len(wrong)} tensors are missing or of "
            f"another shape, such as {wrong[0]}; name a complete Qwen3-VL model"
        )
    return patches_as_product(model).eval()


def patches_as_product(model: PreTrainedModel) -> PreTrainedModel:
    """Compute the patch embedding as one matrix product: the kernel's stride is its size, so Conv3d is that.

    Much faster on CPU, with the same parameters and keys. transformers' own `fusion_config` for it imports
    every image processor of the library, which fails where torchvision is absent (5.17).
    """
    from torch.nn.functional import linear

    proj = model.model.visual.patch_embed.proj

    def forward(patches: torch.Tensor) -> torch.Tensor:  # (patches, channels, time, height, width)
        return linear(patches.flatten(1), proj.weight.flatten(1), proj.bias)

    proj.forward = forward  # the module's own, so that ZeRO-3 brings its weight together before it
    return model


def save(model: PreTrainedModel, processor: ProcessorMixin, directory: Path) -> None:
    """Write a model directory that stock transformers and vLLM load."""
    # What the tokenizer last padded or cut to is no part of it, but would be saved with it.
    processor.tokenizer.backend_tokenizer.no_padding()
    processor.tokenizer.backend_tokenizer.no_truncation()
    model.save_pretrained(directory, safe_serialization=True)
    processor.save_pretrained(directory)
    images = processor.image_processor
    # Stock Qwen3VLProcessor asks for this file wherever torchvision is installed.
    video = {
        "video_processor_type": "Qwen3VLVideoProcessor",
        "patch_size": images.patch_size,
        "temporal_patch_size": images.temporal_patch_size,
        "merge_size": images.merge_size,
        "size": {k: v for k, v in dict(images.size).items() if v},
    }
    (directory / "video_preprocessor_config.json").write_text(json.dumps(video, indent=1))


def check(source: str | Path) -> str:
    """Refuse a path without a model before transformers takes it for a hub id; returns path or hub id."""
    place = str(source)
    path = Path(place).expanduser() if place.startswith("~") else Path(place)
    looks_local = path.is_absolute() or place.startswith(".") or path.exists()
    missing = [name for name in _FILES if not (path / name).is_file()]
    if looks_local and missing:
        raise UserError(
            f"no model at {source}: {', '.join(missing)} missing; name a model directory or a hub id"
        )
    return str(path) if looks_local else place


@contextmanager
def _explained(source: str | Path) -> Iterator[None]:
    """Say what to do where transformers cannot find or read a model."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(
            f"cannot load a model from {source} ({type(error).__name__}): name a directory with "
            "safetensors weights, or a hub id that this machine can reach (HF_HOME, HF_TOKEN)"
        ) from error
