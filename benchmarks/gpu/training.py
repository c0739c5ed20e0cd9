"""What one GPU does of a Qwen3-VL-8B's training: SFT steps packed, and where the time of a GRPO step goes.

    python benchmarks/gpu/training.py [--updates adamw lora deepspeed] [--batches 4 8 12 32c] [--seconds 20]

Needs torch, transformers and pydantic, and for `--updates` peft or deepspeed; without TRL there is no GRPO
step. The model has the shape of recipes/plan/model_qwen3_vl_8b.yaml and random weights in bf16; samples are
made up: 512 px, 112 tokens of text, 120 of report on average.

SFT, by how weights change:
- adamw: every weight, by torch's fused AdamW on bf16 weights, so gradients and both moments are bf16 too: 8
  bytes a parameter. With fp32 weights and moments it is 16, and 8.8B parameters fit no card. The products of
  matrices are the same; small updates are lost, which is what DeepSpeed's fp32 copy is for in training.
- deepspeed: the same under ZeRO-2 (`bf16_optimizer_states`), with its buckets.
- lora: rank 16 on every matrix of the language model, AdamW in fp32.

MFU is 3 x `sizes.Shape.forward_flops` of the samples over time and the peak: what is computed anew under
gradient checkpointing (batches marked c) does not count, nor does padding, of which there is none. With LoRA
most weights have no gradient, and no MFU is given. Batches that would not fit by `sizes` are left out.

GRPO: our trainer on one group of 16 rollouts, with current and prior image, adamw as above; rollouts are
transformers'. Rewards are the engine's on as many made-up reports, with encoders of BERT-base size.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import itertools
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch

from unirg import checkpoint
from unirg.training import packing, sizes

GOAL = 0.45
"""MFU of SFT on an H100 or H200, at least."""
PEAK = 989e12
"""Operations a second, bf16 and dense: an H100's and an H200's by NVIDIA's data sheet."""
USABLE = 0.92
"""Share of the memory to plan with, as `unirg train --plan` does."""
VISION_HEADS = 16
"""Qwen3-VL's; a matter of attention's form, not of sizes."""
LOGIT = 14
"""Bytes that a logit takes in all, as in `plan`."""


@dataclass(frozen=True)
class Work:
    """The model's shape and what it reads."""

    shape: sizes.Shape
    side: int = 512
    """Of a radiograph in pixels."""
    prompt: int = 112
    """Tokens of text, as in recipes/plan/workload_paper.yaml."""
    report: int = 120
    """Tokens on average; drawn from half of it to one and a half times."""
    device: str = "cuda"

    @property
    def image_tokens(self) -> int:
        return self.shape.image_tokens(self.side)

    def model(self) -> Any:
        """Random weights in bf16; special tokens are the vocabulary's last."""
        from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

        text, vision = self.shape.text_config, self.shape.vision_config
        half = text.head_dim // 2
        sections = [half - 2 * (5 * half // 16), 5 * half // 16, 5 * half // 16]
        rope = {"rope_type": "default", "rope_theta": 5e6, "mrope_interleaved": True}
        last = text.vocab_size
        settings = Qwen3VLConfig(
            text_config=text.model_dump() | {"rope_parameters": rope | {"mrope_section": sections}},
            vision_config=vision.model_dump() | {"num_heads": VISION_HEADS},
            image_token_id=last - 1,
            video_token_id=last - 2,
            vision_start_token_id=last - 3,
            vision_end_token_id=last - 4,
            tie_word_embeddings=self.shape.tie_word_embeddings,
        )
        torch.manual_seed(0)
        with torch.device(self.device):
            made = Qwen3VLForConditionalGeneration._from_config(settings, dtype=torch.bfloat16)
        return checkpoint.patches_as_product(made).train()

    def sample(self, chance: random.Random, images: int = 1) -> packing.Sample:
        """A study in random tokens and pixels."""
        vision, last = self.shape.vision_config, self.shape.text_config.vocab_size
        patches = self.side // vision.patch_size
        places = torch.full((self.image_tokens,), last - 1)
        shown = [torch.cat([torch.tensor([last - 3]), places, torch.tensor([last - 4])])] * images
        report = chance.randrange(self.report // 2, 3 * self.report // 2 + 1)
        seen = torch.cat([*shown, torch.randint(0, last - 4, (self.prompt - 2 * images,))])
        values = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
        pixels = torch.rand(images * patches**2, values) * 2 - 1
        grids = torch.tensor([[1, patches, patches]] * images)
        written = torch.randint(0, last - 4, (report,))
        return packing.Sample(torch.cat([seen, written]), len(seen), pixels, grids)

    def flops(self, sample: packing.Sample) -> float:
        """Of a training step on it."""
        images = len(sample.grids)
        text = sample.prompt - images * self.image_tokens
        known = sizes.Sample(text, len(sample.completion), images, self.image_tokens)
        return 3 * self.shape.forward_flops(known)

    def needs(
        self, samples: Sequence[packing.Sample], checkpointed: bool, trained: int, update: str
    ) -> float:
        """Bytes, by arithmetic: weights, gradients and moments in bf16, activations, logits.

        DeepSpeed keeps a master copy of the weights, and buckets (by its source, 0.19.8).
        """
        tokens = sum(len(sample.ids) for sample in samples)
        patches = sum(len(sample.pixels) for sample in samples)
        scored = sum(len(sample.completion) for sample in samples)
        kept = self.shape.activations(tokens, patches, bf16=True, checkpointing=checkpointed)
        logits = scored * self.shape.text_config.vocab_size * LOGIT
        own = 2 * trained + 2e9 if update == "deepspeed" else 0
        return 2 * self.shape.parameters + 6 * trained + own + kept + logits


def adamw(model: Any) -> torch.optim.Optimizer:
    learning = [weight for weight in model.parameters() if weight.requires_grad]
    return torch.optim.AdamW(learning, lr=1e-5, fused=learning[0].is_cuda)


def stepping(update: str, model: Any, batch: Callable[[], dict[str, Any]], device: str) -> Callable[[], None]:
    """One optimiser step on the next batch."""

    def lost(module: Any) -> torch.Tensor:
        there = _each(batch(), lambda value: value.to(device, non_blocking=True))
        return packing.loss(module, there) / len(there["targets"])

    if update == "deepspeed":
        engine = sped(model)

        def with_engine() -> None:
            engine.backward(lost(engine))
            engine.step()

        return with_engine
    optimizer = adamw(model)

    def plain() -> None:
        lost(model).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return plain


ALONE = {
    "RANK": "0",
    "LOCAL_RANK": "0",
    "WORLD_SIZE": "1",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29511",
}
"""torchrun's variables for a group of one."""


def sped(model: Any) -> Any:
    """DeepSpeed's engine in a group of one."""
    import deepspeed

    os.environ.update(ALONE)
    if not torch.cuda.is_available():
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # else it compiles
        deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False)
    settings = {
        "train_micro_batch_size_per_gpu": 1,
        "bf16": {"enabled": True, "bf16_master_weights_and_grads": True, "bf16_optimizer_states": True},
        "zero_optimization": {"stage": 2},
        "gradient_clipping": 1.0,
        "zero_force_ds_cpu_optimizer": False,
    }
    return deepspeed.initialize(model=model, optimizer=adamw(model), config=settings)[0]


def adapted(model: Any, shape: sizes.Shape) -> Any:
    """With adapters on the language model's matrices."""
    from peft import LoraConfig, get_peft_model

    names = [name.split(".")[1] for name in shape.matrices() if name.endswith("_proj")]
    return get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules=names))


def synchronised(device: str) -> float:
    """The time, once the GPU has done what it was asked."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def sft(work: Work, update: str, wanted: Sequence[str], seconds: float) -> float:
    """A row for each batch; gives the best MFU, 0 where there is none."""
    model = packing.use(work.model())
    config = model.config
    if update == "lora":
        model = adapted(model, work.shape)
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    print(f"SFT, {update}: {trained:,} of {work.shape.parameters:,} parameters train")
    print(f"  {'batch':>6}{'samples/s':>11}{'tokens/s':>11}{'MFU':>8}{'step s':>9}{'peak GiB':>10}")
    best = 0.0
    read: list[Iterator[dict[str, Any]]] = []
    step = stepping(update, model, lambda: next(read[-1]), work.device)
    for batch in wanted:
        checkpointed, count = batch.endswith("c"), int(batch.rstrip("c"))
        chance = random.Random(0)
        groups = [[work.sample(chance) for _ in range(count)] for _ in range(4)]
        if work.device == "cuda":
            there = USABLE * torch.cuda.get_device_properties(0).total_memory
            if (needed := max(work.needs(group, checkpointed, trained, update) for group in groups)) > there:
                print(f"  {batch:>6} needs {needed / 2**30:.0f} GiB of {there / 2**30:.0f}: left out")
                continue
            torch.cuda.reset_peak_memory_stats()
        if checkpointed:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        else:
            model.gradient_checkpointing_disable()
        read.append(itertools.cycle([_pinned(packing.pack(group, config)) for group in groups]))
        try:
            step()
            step()
        except torch.cuda.OutOfMemoryError:
            print(f"  {batch:>6} ran out of memory, against the arithmetic: left out", flush=True)
            model.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()
            continue
        start, done = synchronised(work.device), 0
        while done < 4 or done % 4 or time.perf_counter() - start < seconds:  # each of the four as often
            step()
            done += 1
        took = (synchronised(work.device) - start) / done
        tokens = sum(len(sample.ids) for group in groups for sample in group) / 4
        rate = sum(work.flops(sample) for group in groups for sample in group) / 4 / took
        mfu = rate / PEAK if update != "lora" and work.device == "cuda" else 0.0
        best = max(best, mfu)
        rates = f"{count / took:11.2f}{tokens / took:11.0f}" + (f"{mfu:8.1%}" if mfu else f"{'-':>8}")
        peak = torch.cuda.max_memory_allocated() / 2**30 if work.device == "cuda" else 0.0
        print(f"  {batch:>6}{rates}{took:9.3f}{peak:10.1f}", flush=True)
    return best


def _each(batch: dict[str, Any], change: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, Any]:
    return {
        name: change(value) if isinstance(value, torch.Tensor) else value for name, value in batch.items()
    }


def _pinned(batch: dict[str, Any]) -> dict[str, Any]:
    """As a trainer's loader hands it over where there is a GPU."""
    return _each(batch, torch.Tensor.pin_memory) if torch.cuda.is_available() else batch


@dataclass(frozen=True)
class Group:
    """What a GRPO step reads and writes."""

    size: int = 16
    words: int = 180
    """Of the prompt, prior report included; about 1.4 tokens each."""
    tokens: int = 120
    """That each rollout takes to write."""


def grpo(work: Work, group: Group, steps: int, folder: Path) -> float:
    """Our trainer's steps and their parts; gives seconds of a step."""
    from datasets import Dataset
    from PIL import Image

    from parity import corpus
    from unirg.metrics.engine import Engine
    from unirg.training.grpo import GRPOConfig, arguments
    from unirg.training.policy import ToyConfig, toy_policy
    from unirg.training.rewards import Rewards
    from unirg.training.rollouts import SharedGRPOTrainer

    texts = corpus.made_up(60)
    toy, processor = toy_policy(ToyConfig(image_size=work.side, vocabulary=300), texts, 0)
    model = work.model()
    for name in ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id"):
        setattr(model.config, name, getattr(toy.config, name))  # the toy's tokenizer serves
    chance, words = random.Random(0), " ".join(texts).split()

    def item(number: int) -> dict[str, Any]:
        text = {"type": "text", "text": " ".join(chance.choices(words, k=group.words))}
        noise = torch.randint(0, 256, (2, work.side, work.side, 3), dtype=torch.uint8).numpy()
        return {
            "prompt": [{"role": "user", "content": [{"type": "image"}, {"type": "image"}, text]}],
            "images": [Image.fromarray(picture) for picture in noise],
            "reference": texts[number],
            "study_id": str(number),
        }

    items = [item(number) for number in range(steps)]
    rows = Dataset.from_dict({"number": list(range(steps))})

    def shown(batch: dict[str, list[int]]) -> dict[str, list[Any]]:
        return {name: [items[number][name] for number in batch["number"]] for name in items[0]}

    rows.set_format("custom", transform=shown, new_fingerprint="items")
    scores = {"bleu2": 1.0}
    whole = dict.fromkeys(("batch_size", "group_size", "micro_batch"), group.size)
    config = GRPOConfig.model_validate(whole | {"rewards": scores, "max_completion_tokens": group.tokens})
    common = {"output_dir": str(folder), "save_strategy": "no", "report_to": [], "disable_tqdm": True}
    common |= {"per_device_train_batch_size": group.size, "max_steps": steps, "learning_rate": 1e-6}
    common |= {"use_cpu": work.device == "cpu", "bf16": work.device != "cpu", "logging_steps": 1}
    common |= {"gradient_checkpointing": False, "remove_unused_columns": False}
    common["generation_kwargs"] = {"min_new_tokens": group.tokens}  # else reports may end by chance
    trainer = SharedGRPOTrainer(
        model=model,
        args=arguments(config, common, model.config.image_token_id),
        train_dataset=rows,
        processing_class=processor,
        rewards=Rewards(scores, Engine(list(scores))),
        share=config.share,
    )
    trainer.train()
    log = [entry for entry in trainer.state.log_history if "loss" in entry][1:]  # the first one warms up
    names = ("generation", "training")
    parts = {name: sum(entry[f"seconds/{name}"] for entry in log) / len(log) for name in names}
    assert trainer._prompts
    read = f"a prompt of {len(trainer._prompts.ids[0])} with 2 images of {work.side} px"
    print(f"GRPO, adamw: {group.size} rollouts of {group.tokens} tokens to {read}")
    for name, seconds in parts.items():
        print(f"  {name:12}{seconds:8.2f} s{seconds / sum(parts.values()):8.1%}", flush=True)
    return sum(parts.values())


def rewards(work: Work, group: Group, step: float, tiny: bool, folder: Path) -> None:
    """The engine's seconds for a group of made-up reports, beside the rest of the step."""
    from parity import corpus, weights
    from unirg.metrics.encoder import Compute
    from unirg.metrics.engine import Engine
    from unirg.metrics.reward import PAPER

    texts = corpus.made_up(2 * group.size + 42)
    weights.build(folder / "weights", texts[:40], weights.TINY if tiny else weights.PARITY)
    compute = Compute("fp32" if work.device == "cpu" else "bf16", work.device)
    engine = Engine(list(PAPER), weights=str(folder / "weights"), compute=compute)
    first, second = (corpus.group_pairs(1, group.size, texts[start:]) for start in (40, 41 + group.size))
    list(engine.score(first))
    start = synchronised(work.device)
    list(engine.score(second))
    took = synchronised(work.device) - start
    print(f"  {'rewards':12}{took:8.2f} s{took / (step + took):8.1%} of the whole, goal 10% at most")


TOY: dict[str, dict[str, Any]] = {
    "text_config": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 512}
    | {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32},
    "vision_config": {"hidden_size": 128, "intermediate_size": 128, "depth": 2, "out_hidden_size": 64}
    | {"num_position_embeddings": 16, "deepstack_visual_indexes": (0,)},
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--updates", nargs="*", default=["adamw"], choices=("adamw", "deepspeed", "lora"))
    batches = ["4", "8", "12", "32c"]
    parser.add_argument("--batches", nargs="*", default=batches, help="studies; c: with checkpointing")
    parser.add_argument("--seconds", type=float, default=20.0, help="for a row of SFT, at least 4 steps")
    parser.add_argument("--steps", type=int, default=4, help="of GRPO, 2 at least: the first warms up")
    parser.add_argument("--toy", action="store_true", help="a tiny model on the CPU: tries the script")
    asked = parser.parse_args(arguments)
    checkpoint.quiet()
    if asked.toy:
        work = Work(sizes.Shape.model_validate(TOY), side=64, prompt=20, report=12, device="cpu")
        group = Group(4, 12, 8)
    else:
        if not torch.cuda.is_available():
            raise SystemExit("torch sees no GPU: run this where there is one, or with --toy")
        work, group = Work(sizes.shape_of("plan/model_qwen3_vl_8b")), Group()
        print(torch.cuda.get_device_name(0))
    found = importlib.util.find_spec
    installed = [name for name in ("transformers", "peft", "deepspeed", "trl") if found(name)]
    print(", ".join(f"{name} {metadata.version(name)}" for name in ("torch", *installed)))
    best = 0.0
    for update in asked.updates:
        best = max(best, sft(work, update, asked.batches, asked.seconds))
        _release()
    if best:
        met = "met" if best >= GOAL else "MISSED"
        print(f"the best MFU {best:.1%} of {PEAK / 1e12:g} TFLOP/s   {met} (>= {GOAL:.0%})")
    if not found("trl"):
        print("TRL is not installed: no GRPO step")
        return
    with tempfile.TemporaryDirectory() as temporary:
        step = grpo(work, group, asked.steps, Path(temporary))
        _release()
        rewards(work, group, step, asked.toy, Path(temporary))


def _release() -> None:
    """Give back what the model before took, and leave DeepSpeed's group: a trainer would take it for its."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
        for name in ALONE:
            del os.environ[name]
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
