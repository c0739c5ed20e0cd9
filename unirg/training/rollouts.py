"""TRL's GRPO trainer, made to compute once what the rollouts of a group share.

Stock TRL prepares every image twice for each rollout, encodes it for each rollout in generation and again in
the loss, and shuffles the rollouts over micro-batches. Here groups stay together; an image is prepared once,
and encoded once in generation and once in the loss; the prompt is read once in both (`shared_prompt`). The
objective, the sampling and the order of the data are TRL's: losses and gradients differ by rounding alone.
Each step is logged under the names of `LOGGED`, with the times of its three parts.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import Sampler
from transformers import DynamicCache
from trl import GRPOTrainer
from trl.models import unwrap_model_for_generation
from trl.trainer.utils import RepeatSampler

from unirg.training import shared_prompt
from unirg.training.rewards import Rewards
from unirg.training.shared_prompt import Rollouts

Share = Literal["nothing", "images", "prompt"]
"""What is computed once per group: images; or the prompt, images included."""

LOGGED = {
    "num_tokens": "tokens",
    "reward": "reward",
    "reward_std": "reward_std",
    "frac_reward_zero_std": "zero_spread_share",
    "clip_ratio/low_mean": "clip/low",
    "clip_ratio/high_mean": "clip/high",
    "kl": "kl",
    "entropy": "entropy",
    "completions/mean_length": "length/mean",
    "completions/clipped_ratio": "truncated_share",
    "sampling/sampling_logp_difference/mean": "sampling_difference",
}
"""TRL's names of what is logged, and ours; `rewards/<score>/mean` and `/std` keep theirs."""
OWN = ("advantage_std", "duplicate_share", "seconds/")
"""Beginnings of the names that are logged beside these."""


@dataclass(frozen=True)
class _Prompts:
    """The distinct prompts of a batch of rollouts, in order."""

    owner: list[int]
    """Of each rollout, the number of its prompt."""
    ids: list[list[int]]
    images: list[list[Any]]
    """PIL images of each."""
    pixel_values: list[Tensor]
    """(patches of the prompt's images, values of a patch) of each."""
    grids: list[Tensor]
    """(images, 3) of each."""

    def of(self, numbers: Sequence[int]) -> dict[str, Any]:
        """The images of some prompts, as TRL hands them from the batch to the loss."""
        return {
            "pixel_values": torch.cat([self.pixel_values[number] for number in numbers]),
            "image_grid_thw": torch.cat([self.grids[number] for number in numbers]),
            "num_images": [len(self.grids[number]) for number in numbers],
        }


class ByEpoch(Sampler[int]):
    """TRL's order of prompts, which would begin with the first epoch's again in a training that goes on."""

    def __init__(self, sampler: RepeatSampler, epoch: Callable[[], int]) -> None:
        """
        Args:
            epoch: the present one.
        """
        self.sampler, self.epoch = sampler, epoch

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[int]:
        self.sampler.generator.manual_seed(self.sampler.seed)
        for _ in range(self.epoch()):  # what the epochs before have drawn
            torch.randperm(self.sampler.num_samples, generator=self.sampler.generator)
        return iter(self.sampler)


class SharedGRPOTrainer(GRPOTrainer):
    """GRPO over a dataset with `prompt`, `images`, `reference` and `study_id`, all of one group alike."""

    def __init__(
        self, *given: Any, rewards: Rewards, share: Share, rollout_batch: int | None = None, **options: Any
    ) -> None:
        """
        Args:
            rewards: scores rollouts as soon as they are written.
            share: what is computed once per group.
            rollout_batch: rollouts that are written at once, where something is shared or vLLM writes; None:
                all of a step. The rewards of those written are computed while the next are.
        """
        super().__init__(*given, reward_funcs=rewards.functions, **options)
        self._rewards, self._share = rewards, share
        self._rollout_batch = rollout_batch
        self._prompts: _Prompts | None = None
        self._seconds: dict[str, float] = defaultdict(float)
        # Runs of rollouts of one prompt that no micro-batch cuts, however it lies to the groups.
        self._buffered_inputs: list[dict[str, Any]] | None = None
        self._run = math.gcd(self.args.per_device_train_batch_size, self.num_generations)
        if share != "nothing":
            for model in filter(None, (self.model, self.ref_model)):
                shared_prompt.install(self._whole(model))

    def _get_train_sampler(self, dataset: Any = None) -> Sampler[int]:
        return ByEpoch(super()._get_train_sampler(dataset), lambda: int(self.state.epoch or 0))

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        """As TRL's, without the shuffling that would tear groups apart."""
        if self._share == "nothing":
            return super()._prepare_inputs(generation_batch)
        parts = self.args.steps_per_generation
        if self._step % (parts * self.num_iterations) == 0 or self._buffered_inputs is None:
            batch = self._generate_and_score_completions(generation_batch)
            size = len(batch["prompt_ids"]) // parts
            self._buffered_inputs = [self._part(batch, slice(i * size, (i + 1) * size)) for i in range(parts)]
        return self._buffered_inputs[self._step % parts]

    def _part(self, batch: dict[str, Any], rows: slice) -> dict[str, Any]:
        part = {
            name: value[rows] if isinstance(value, Tensor) and value.ndim else value
            for name, value in batch.items()
        }
        return part | self._images(rows)

    def _images(self, rows: slice) -> dict[str, Any]:
        assert self._prompts
        return self._prompts.of(self._prompts.owner[rows][:: self._run])

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        self._inputs = inputs
        if self._share != "nothing":  # TRL would prepare the images that it sees, for each rollout, twice
            inputs = [{name: row[name] for name in row if name != "images"} for row in inputs]
        batch = super()._generate_and_score_completions(inputs)
        everyone = self.accelerator.gather(batch["advantages"])
        self._metrics["train"]["advantage_std"].append(everyone.std().item())
        for name in ("generation", "rewards"):
            self._metrics["train"][f"seconds/{name}"].append(self._seconds[name])
        return batch

    def _tokenize_prompts(self, prompts: list[Any]) -> tuple[list[list[int]], Any, dict[str, Any]]:
        """Token ids of each rollout's prompt; the distinct prompts, prepared, are kept for the step."""
        if self._share == "nothing":
            return super()._tokenize_prompts(prompts)
        owner: list[int] = []
        firsts: list[int] = []
        for number, row in enumerate(self._inputs):
            if not number or row["study_id"] != self._inputs[number - 1]["study_id"]:
                firsts.append(number)
            owner.append(len(firsts) - 1)
        images = [self._inputs[number]["images"] for number in firsts]
        chats = [prompts[number] for number in firsts]
        texts = self.processing_class.apply_chat_template(chats, add_generation_prompt=True, tokenize=False)
        prepared = self.processing_class(images=images, text=texts, padding=True, return_tensors="pt")
        masks = prepared["attention_mask"].bool()
        grids = list(prepared["image_grid_thw"].split([len(found) for found in images]))
        patches = [int(grid.prod(1).sum()) for grid in grids]
        self._prompts = _Prompts(
            owner,
            [ids[mask].tolist() for ids, mask in zip(prepared["input_ids"], masks, strict=True)],
            images,
            list(self._prepare_input(prepared["pixel_values"]).split(patches)),
            [self._prepare_input(grid) for grid in grids],
        )
        return [self._prompts.ids[number] for number in owner], None, {}

    def _generate_single_turn(
        self, prompt_ids: Any, images: Any, multimodal_fields: Any, num_generations: int, *rest: Any
    ) -> tuple[list[list[int]], Any]:
        with self._timed("generation"):
            if self._share != "nothing" and not self.use_vllm:
                return self._written(), None
            if self._prompts and self._share != "nothing":
                images = [self._prompts.images[number] for number in self._prompts.owner]
            size = (self.use_vllm and self._rollout_batch) or len(prompt_ids)
            written: list[list[int]] = []
            log_probs: list[list[float]] = []  # of vLLM's sampling; transformers gives none
            for start in range(0, len(prompt_ids), size):
                part = slice(start, start + size)
                shown = images[part] if images is not None else None
                some, sampled = super()._generate_single_turn(
                    prompt_ids[part], shown, multimodal_fields, num_generations, *rest
                )
                self._begin_rewards(start, some)
                written += some
                log_probs += sampled or []
        return written, log_probs or None

    def _written(self) -> list[list[int]]:
        """Completions of every rollout, ids up to and with the end; each distinct prompt is read once."""
        assert self._prompts
        owner, written = self._prompts.owner, list[list[int]]()
        size = self._rollout_batch or len(owner)
        for start in range(0, len(owner), size):
            some = self._sampled(owner[start : start + size])
            self._begin_rewards(start, some)
            written += some
        return written

    def _sampled(self, owner: Sequence[int]) -> list[list[int]]:
        """Completions for the prompts of these numbers, which may repeat."""
        assert self._prompts
        numbers = list(dict.fromkeys(owner))
        kept = torch.tensor([numbers.index(number) for number in owner], device=self.accelerator.device)
        ids, mask = self._padded([self._prompts.ids[number] for number in numbers])
        pictures = self._prompts.of(numbers)
        with (
            unwrap_model_for_generation(
                self.model_wrapped,
                self.accelerator,
                gather_deepspeed3_params=self.args.ds3_gather_for_generation,
                generation_kwargs=self.generation_kwargs,
                gradient_checkpointing_kwargs=self.args.gradient_checkpointing_kwargs,
            ) as model,
            torch.no_grad(),
            self.accelerator.autocast(),  # which it has in the model's own forward alone
        ):
            core = self._whole(model).model
            cache = DynamicCache(config=model.config.get_text_config())
            core(
                input_ids=ids[:, :-1],
                attention_mask=mask[:, :-1],
                pixel_values=pictures["pixel_values"],
                image_grid_thw=pictures["image_grid_thw"],
                mm_token_type_ids=(ids[:, :-1] == core.config.image_token_id).int(),
                past_key_values=cache,
                use_cache=True,
            )
            cache.batch_select_indices(kept)
            core.rope_deltas = core.rope_deltas[kept]
            found = model.generate(
                input_ids=ids[kept],
                attention_mask=mask[kept],
                past_key_values=cache,
                generation_config=self.generation_config,
            )
        ends = set(self.eos_token_ids)
        return [_ended(row, ends) for row in found[:, ids.shape[1] :].tolist()]

    def _padded(self, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """(rows, P) ids and mask, padded on the left."""
        length = max(map(len, prompts))
        ids = [[self._tokenizer.pad_token_id] * (length - len(row)) + list(row) for row in prompts]
        mask = [[0] * (length - len(row)) + [1] * len(row) for row in prompts]
        device = self.accelerator.device
        return torch.tensor(ids, device=device), torch.tensor(mask, device=device)

    def _begin_rewards(self, start: int, written: list[list[int]]) -> None:
        texts = self.processing_class.batch_decode(written, skip_special_tokens=True)
        rows = self._inputs[start : start + len(written)]
        self._rewards.begin([(text, row["reference"]) for text, row in zip(texts, rows, strict=True)])

    def _calculate_rewards(
        self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any
    ) -> Tensor:
        with self._timed("rewards"):
            found = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        pairs = zip((row["study_id"] for row in inputs), map(tuple, completion_ids_list), strict=True)
        repeated = torch.tensor([1 - len(set(pairs)) / len(inputs)], device=self.accelerator.device)
        everyone = self.accelerator.gather(repeated)
        self._metrics["train"]["duplicate_share"].append(everyone.mean().item())
        return found

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        **options: Any,
    ) -> tuple[Tensor, Tensor | None, None]:
        """(B, C) log-probabilities of the completions' tokens, and entropies; zero where there is none."""
        if self._share == "nothing":
            return super()._get_per_token_logps_and_entropies(
                model, input_ids, attention_mask, logits_to_keep, batch_size, compute_entropy, **options
            )
        found = []
        size = batch_size or len(input_ids)
        for start in range(0, len(input_ids), size):
            rows = slice(start, start + size)
            pictures: dict[str, Any] = {
                name: options.get(name) for name in ("pixel_values", "image_grid_thw", "num_images")
            }
            if pictures["pixel_values"] is None:  # the whole batch, for the reference policy
                pictures = self._images(rows)
            ids, mask = input_ids[rows], attention_mask[rows]
            rollouts = Rollouts(
                ids[:, :-logits_to_keep],
                mask[:, :-logits_to_keep],
                ids[:, -logits_to_keep:],
                mask[:, -logits_to_keep:],
                **pictures,
            )
            found.append(self._scored(model, rollouts, compute_entropy))
        logps, entropies = zip(*found, strict=True)
        return torch.cat(logps), torch.cat(entropies) if compute_entropy else None, None

    def _scored(self, model: Any, rollouts: Rollouts, compute_entropy: bool) -> list[Tensor | None]:
        width = rollouts.completion_ids.shape[1]
        rollouts = rollouts.trimmed()
        together = self._share == "prompt"
        given = shared_prompt.inputs(self._whole(model).model, rollouts, together)
        with self.accelerator.autocast():
            output = model(**given, fused_lm_head=True)
        found: list[Tensor | None] = []
        for per_token in (output.log_probs, output.entropy if compute_entropy else None):
            if per_token is not None:
                per_token = shared_prompt.completions(per_token, rollouts, together)
                per_token = torch.nn.functional.pad(per_token, (0, width - per_token.shape[1]))
            found.append(per_token)
        return found

    def _whole(self, model: Any) -> Any:
        """The `Qwen3VLForConditionalGeneration` in what accelerate, DeepSpeed and PEFT made of it."""
        bare = self.accelerator.unwrap_model(model)
        return bare.get_base_model() if hasattr(bare, "get_base_model") else bare

    @contextmanager
    def _timed(self, part: str) -> Iterator[None]:
        begun = time.perf_counter()
        yield
        self._seconds[part] = time.perf_counter() - begun

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log a step under our names."""
        found = self._metrics["train"]
        kept = {LOGGED[name]: values for name, values in found.items() if name in LOGGED}
        kept |= {name: values for name, values in found.items() if name.startswith(("rewards/", *OWN))}
        if found.get("step_time"):
            others = sum(sum(found.get(f"seconds/{part}", [])) for part in ("generation", "rewards"))
            steps = found["step_time"]
            kept["seconds/training"] = [(sum(steps) - others) / len(steps)]
        self._metrics["train"] = defaultdict(list, kept)
        super().log(logs, start_time)


def _ended(ids: list[int], ends: set[int]) -> list[int]:
    """Up to and with the first token that ends a completion."""
    for place, token in enumerate(ids):
        if token in ends:
            return ids[: place + 1]
    return ids
