"""The policy before training: a toy Qwen3-VL of the real architecture, or a published model by its id."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from unirg import artifact, checkpoint, prompts, telemetry
from unirg.artifact import Artifact
from unirg.cohort.reader import Cohort
from unirg.config import Config
from unirg.study import Study

if TYPE_CHECKING:
    from transformers import PreTrainedModel, ProcessorMixin

VERSION = 1
# Qwen's special tokens, in Qwen3-VL's own spelling: prompts, image places and the end of a turn.
SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' }}"
    "{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}"
    "{% if part.type == 'text' %}{{ part.text }}"
    "{% else %}<|vision_start|><|image_pad|><|vision_end|>{% endif %}{% endfor %}{% endif %}"
    "{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


class ToyConfig(Config):
    """Sizes of the random-initialised policy; the architecture is Qwen3-VL's own (STACK: Toy Qwen3-VL)."""

    hidden_size: int = Field(default=64, ge=16)
    """Width of the language model."""
    layers: int = Field(default=2, ge=1)
    """Depth of the language model."""
    vision_hidden_size: int = Field(default=64, ge=16)
    """Width of the vision tower."""
    vision_depth: int = Field(default=2, ge=1)
    """Depth of the vision tower; its first layer feeds DeepStack."""
    vocabulary: int = Field(default=800, ge=300)
    """Tokens of the byte-level BPE trained on the cohort's own prompts and reports, specials left out."""
    image_size: int = Field(default=128, ge=64, multiple_of=32)
    """Side in pixels to which the processor downscales a radiograph; patches of 16 merge 2 x 2."""
    initializer_range: float = 0.06
    """Standard deviation of the initial weights; Qwen's 0.02 hardly learns at this width (STACK)."""


class BaseConfig(Config):
    """Which policy a pipeline starts from."""

    source: str = "toy"
    """`toy`, or a hub id or model directory such as `Qwen/Qwen3-VL-8B-Instruct` (the paper's)."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision in which a published model's weights are kept."""
    toy: ToyConfig = ToyConfig()
    """Sizes of the toy; unused otherwise."""
    seed: int = 0
    """Of the toy's initial weights."""


@telemetry.verb("train.base")
def base(config: BaseConfig, cohort: Artifact, store: str) -> Artifact:
    """Make or fetch the policy that training starts from.

    Returns:
        A checkpoint artifact (stage `base`) with the model directory below `model/`.
    """
    with artifact.draft(store, "base", VERSION, config, {"cohort": cohort}) as draft:
        if draft.committed:
            return draft.committed
        checkpoint.quiet()
        if config.source == "toy":
            studies = Cohort.open(cohort).studies("train")
            model, processor = toy_policy(config.toy, _texts(studies), config.seed)
        else:
            model = checkpoint.load_model(config.source, config.dtype)
            processor = checkpoint.load_processor(config.source)
        checkpoint.save(model, processor, draft.out / checkpoint.MODEL)
        return draft.commit({"parameters": model.num_parameters()})


def _texts(studies: Iterable[Study]) -> Iterator[str]:
    for study in studies:
        wanted = prompts.sections(study)
        if wanted:
            yield prompts.messages(study, wanted, prior=study)[0]["content"][-1]["text"]
            yield prompts.report(study)


def toy_policy(config: ToyConfig, texts: Iterable[str], seed: int) -> tuple[PreTrainedModel, ProcessorMixin]:
    """A random-initialised Qwen3-VL with a tokenizer trained on `texts`."""
    import torch
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    tokenizer = _tokenizer(config, texts)
    token = tokenizer.convert_tokens_to_ids
    head = 32
    wide = config.hidden_size
    settings = Qwen3VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": wide,
            "intermediate_size": 3 * wide,
            "num_hidden_layers": config.layers,
            # Keys and values as wide as the stream: the image reaches the text through them alone.
            "num_attention_heads": 2 * max(1, wide // head),
            "num_key_value_heads": max(1, wide // head),
            "head_dim": head,
            "max_position_embeddings": 4096,
            "initializer_range": config.initializer_range,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10_000.0,
                "mrope_section": [6, 5, 5],
                "mrope_interleaved": True,
            },
            "pad_token_id": token("<|endoftext|>"),
            "bos_token_id": token("<|im_start|>"),
            "eos_token_id": token("<|im_end|>"),
        },
        vision_config={
            "depth": config.vision_depth,
            "hidden_size": config.vision_hidden_size,
            "intermediate_size": 3 * config.vision_hidden_size,
            "num_heads": max(2, config.vision_hidden_size // head),
            "patch_size": 16,
            "out_hidden_size": wide,
            "num_position_embeddings": (config.image_size // 16) ** 2,
            "deepstack_visual_indexes": [0],
            "initializer_range": config.initializer_range,
        },
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Qwen3VLForConditionalGeneration(settings)
    model.generation_config.eos_token_id = token("<|im_end|>")
    model.generation_config.pad_token_id = token("<|endoftext|>")
    return model, checkpoint.make_processor(_images(config), tokenizer, CHAT_TEMPLATE)


def _tokenizer(config: ToyConfig, texts: Iterable[str]) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocabulary + len(SPECIAL),
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=list(SPECIAL),
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def _images(config: ToyConfig) -> Any:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    pixels = config.image_size**2
    half = [0.5, 0.5, 0.5]  # Qwen3-VL's own mean and standard deviation
    return Qwen2VLImageProcessorPil(
        patch_size=16,
        temporal_patch_size=2,
        merge_size=2,
        size={"shortest_edge": pixels, "longest_edge": pixels},
        image_mean=half,
        image_std=half,
    )
