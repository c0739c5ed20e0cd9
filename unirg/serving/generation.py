"""A policy in memory: chats in, reports out, in batches whose make-up does not change a single token.

What makes a row independent of its batch: prompts are prepared one by one and padded on the left with the
attention mask and Qwen's token types (without which its positions are wrong), and noise for sampling comes
from the request's own generator. In fp32 the logits still differ by some 1e-5 with the shape of the batch,
so a row in which two tokens were that close is generated again alone, and that text counts.

Sampling adds Gumbel noise to the logits over the temperature and takes the largest, which draws exactly
from their softmax; so greedy and sampled rows share one greedy batch.
"""

from __future__ import annotations

import base64
import io
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)

from unirg import checkpoint
from unirg.serving import chat
from unirg.serving.chat import ChatRequest, Refused

NEAR_TIE = 1e-4
"""Difference of two logits below which the batch could decide; measured drift is 8e-6 in the toy."""


@dataclass(frozen=True)
class Prompt:
    """A request turned into tensors, alone, before it meets its batch."""

    input_ids: torch.Tensor  # (length,)
    token_types: torch.Tensor  # (length,): 1 at an image's tokens
    pixels: torch.Tensor | None  # (patches, channels x time x height x width)
    grids: torch.Tensor | None  # (images, 3): time, height, width in patches
    max_tokens: int
    temperature: float
    seed: int


@dataclass(frozen=True)
class Completion:
    text: str
    finish_reason: str
    """`stop` where the policy ended the report itself, `length` where `max_tokens` did."""
    prompt_tokens: int
    tokens: tuple[int, ...]
    """With the one that ends the report, where the policy ended it."""

    @property
    def completion_tokens(self) -> int:
        return len(self.tokens)


class Policy:
    """A checkpoint's model and processor. `prompt` and `complete` may run in one thread each."""

    def __init__(self, directory: Path) -> None:
        self.processor = checkpoint.load_processor(directory)
        self.tokenizer = self.processor.tokenizer
        self.model = checkpoint.load_model(directory, "float32")
        stop = self.model.generation_config.eos_token_id
        self.stop = stop if isinstance(stop, list) else [stop]
        self.pad = self.model.generation_config.pad_token_id
        # A published checkpoint's own settings sample (Qwen: top_k 20, temperature 0.7).
        self.model.generation_config = GenerationConfig(
            do_sample=False, eos_token_id=self.stop, pad_token_id=self.pad
        )
        self.context = self.model.config.text_config.max_position_embeddings
        self.control = tuple(self.tokenizer.get_added_vocab())
        self.abandoned = False
        """Whether generation under way ends at its next token."""

    def prompt(self, request: ChatRequest) -> Prompt:
        """Decode, downscale and tokenize one request.

        Raises:
            Refused: an image cannot be served, a text holds control tokens, or the prompt is too long.
        """
        # They would be read as the end of a turn or an image's place, not as text.
        if any(token in text for text in request.texts for token in self.control):
            raise Refused(400, "control_token", "a text holds a control token of the model")
        pictures = chat.images(request)
        text = self.processor.apply_chat_template(
            request.templated(), tokenize=False, add_generation_prompt=True
        )
        inputs = self.processor(text=[text], images=pictures or None, return_tensors="pt")
        length = inputs["input_ids"].shape[1]
        if length + request.token_limit > self.context:
            raise Refused(
                400,
                "context_length",
                f"{length} prompt tokens and max_tokens {request.token_limit} are over {self.context}",
            )
        return Prompt(
            input_ids=inputs["input_ids"][0],
            token_types=inputs["mm_token_type_ids"][0],
            pixels=inputs.get("pixel_values"),
            grids=inputs.get("image_grid_thw"),
            max_tokens=request.token_limit,
            temperature=request.temperature,
            seed=secrets.randbits(63) if request.seed is None else request.seed,
        )

    @torch.inference_mode()
    def complete(self, prompts: list[Prompt]) -> list[Completion]:
        """Generate for a batch; each completion is the one that its prompt would get alone."""
        inputs = _collate(prompts, self.pad)
        limits = torch.tensor([prompt.max_tokens for prompt in prompts])
        start = inputs["input_ids"].shape[1]
        choice = _Choice(prompts)
        output = self.model.generate(
            **inputs,
            max_new_tokens=int(limits.max()),
            logits_processor=LogitsProcessorList([choice]),
            stopping_criteria=StoppingCriteriaList([_Limits(self, start, limits)]),
        )
        completions = [
            self._completion(prompt, tokens)
            for prompt, tokens in zip(prompts, output[:, start:].tolist(), strict=True)
        ]
        if len(prompts) > 1:
            for row in choice.near_ties([done.completion_tokens for done in completions]):
                completions[row] = self.complete([prompts[row]])[0]
        return completions

    def _completion(self, prompt: Prompt, tokens: list[int]) -> Completion:
        tokens = tokens[: prompt.max_tokens]
        end = next((place for place, token in enumerate(tokens) if token in self.stop), None)
        text = self.tokenizer.decode(tokens[:end], skip_special_tokens=True)
        used = tokens if end is None else tokens[: end + 1]
        return Completion(text, "length" if end is None else "stop", len(prompt.input_ids), tuple(used))

    def warm_up(self) -> None:
        """Run a batch of two through every layer, so that the first request does not pay for set-up."""
        picture = io.BytesIO()
        Image.new("L", (512, 512)).save(picture, "PNG")
        url = "data:image/png;base64," + base64.b64encode(picture.getvalue()).decode()
        content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "warm-up"}]
        request = ChatRequest.model_validate(
            {"model": "", "max_tokens": 2, "messages": [{"role": "user", "content": content}]}
        )
        self.complete([self.prompt(request)] * 2)


def _collate(prompts: list[Prompt], pad: int) -> dict[str, Any]:
    """Pad on the left to (batch, longest); the images of all rows follow each other."""

    def padded(rows: list[torch.Tensor], value: int) -> torch.Tensor:
        return torch.nn.utils.rnn.pad_sequence(rows, True, value, padding_side="left")

    batch: dict[str, Any] = {
        "input_ids": padded([prompt.input_ids for prompt in prompts], pad),
        "attention_mask": padded([torch.ones_like(prompt.input_ids) for prompt in prompts], 0),
        "mm_token_type_ids": padded([prompt.token_types for prompt in prompts], 0),
    }
    pixels = [prompt.pixels for prompt in prompts if prompt.pixels is not None]
    if pixels:
        batch["pixel_values"] = torch.cat(pixels)
        batch["image_grid_thw"] = torch.cat([prompt.grids for prompt in prompts if prompt.grids is not None])
    return batch


class _Choice(LogitsProcessor):
    """Turn greedy choice into a draw in the rows that ask for one, and note how close each choice was."""

    def __init__(self, prompts: list[Prompt]) -> None:
        self.sampled = [
            (row, prompt.temperature, torch.Generator().manual_seed(prompt.seed))
            for row, prompt in enumerate(prompts)
            if prompt.temperature > 0
        ]
        self.scale = torch.tensor([prompt.temperature or 1.0 for prompt in prompts])
        self.margins: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """scores: (batch, vocabulary) logits."""
        for row, temperature, generator in self.sampled:
            gumbel = -torch.empty(scores.shape[1]).exponential_(generator=generator).log()
            scores[row] = scores[row] / temperature + gumbel
        best = scores.topk(2).values
        self.margins.append((best[:, 0] - best[:, 1]) * self.scale)
        return scores

    def near_ties(self, lengths: list[int]) -> list[int]:
        """Rows in which, within their length, rounding could have changed a choice."""
        margins = torch.stack(self.margins, 1)
        return [row for row, length in enumerate(lengths) if margins[row, :length].min() < NEAR_TIE]


class _Limits(StoppingCriteria):
    """End each row at its own `max_tokens`, and all of them when their policy is abandoned."""

    def __init__(self, policy: Policy, start: int, limits: torch.Tensor) -> None:
        self.policy, self.start, self.limits = policy, start, limits

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        return (input_ids.shape[1] - self.start >= self.limits) | self.policy.abandoned
