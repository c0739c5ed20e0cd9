"""What a training will take, by arithmetic, before anything starts: memory, tokens, steps, hours, cost.

Memory of weights, gradients and optimiser state is ZeRO's accounting (arXiv 1910.02054, section 3.1): under
DeepSpeed in bf16 a trained parameter takes 2 bytes as weight, 2 as gradient, 12 as fp32 weight and Adam's two
moments; otherwise 4, 4 and 8, and autocast keeps a bf16 copy of each weight. Stage 2 splits gradients and
state over the processes, stage 3 the weights too. Sizes and operations are those of `sizes`. Hours rest on
throughput that the node pool states with its source, and are as good as that.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from unirg import checkpoint
from unirg.artifact import open_artifact
from unirg.config import Config, load
from unirg.errors import UserError
from unirg.metrics.catalog import CATALOG, COMPOSED
from unirg.metrics.encoder import CPU_TOKENS, GPU_TOKENS
from unirg.training.grpo import GRPOConfig
from unirg.training.settings import LoRA, TrainConfig, accumulation
from unirg.training.sft import SFTConfig
from unirg.training.sizes import Sample, Shape, shape_of
from unirg.training.workload import Workload, measured

MODEL = "plan/model_qwen3_vl_8b"
"""The paper's policy, planned for where none is named."""
GIB = 2**30
USABLE = 0.92
"""Share of a GPU's memory to plan with; the CUDA context, NCCL and fragmentation take the rest."""
BUCKETS = 2 * 500_000_000 * 2
"""Bytes of DeepSpeed's two buckets of 5e8 bf16 elements, of reductions and of gathers (its defaults)."""
LOGITS = {True: 14, False: 12}
"""Bytes per logit, by bf16: the logit, its fp32 copy, the log-softmax of that, and the gradient."""
BERT = 109_482_240
ENCODERS = {
    "chexbert": BERT,
    "radgraph": BERT,
    "radgraph-xl": BERT,
    "bertscore": 82_118_400,
    "ratescore": 184_000_000 + BERT,
}
"""Parameters of the published scorers' encoders: BERT-base's size, DistilRoBERTa-base, DeBERTa-v3-base."""
ENCODER_WIDTH = 2 * 3_072 + 6 * 768
"""What one token of a batch takes in BERT-base at work: twice the MLP's width, six times the stream's."""
BYTES = {"fp32": 4, "bf16": 2, "int8": 1}


class Pool(Config):
    """Machines to train on, with what they were seen to do."""

    gpu: str
    """Name of the accelerator, or of the processor."""
    memory_gib: float = Field(gt=0)
    """Memory of one."""
    per_node: int = Field(ge=1)
    """Of them in a machine."""
    nodes: int = Field(ge=1)
    """Machines."""
    host_gib: float = Field(gt=0)
    """A machine's own memory."""
    tflops: float = Field(gt=0)
    """Peak of dense bf16, in 10^12 operations per second of one."""
    mfu: tuple[float, float]
    """Share of the peak that training reaches, from and to."""
    rl_tokens: tuple[float, float]
    """Tokens per second of one in all of a GRPO step, those of prompts counted; from and to."""
    rl_parameters: float = Field(gt=0)
    """Parameters of the model that `rl_tokens` was measured with; a larger one is slower in proportion."""
    cuda: bool = True
    """Its rollouts are vLLM's; without, it is a processor and they are transformers'."""
    price: float | None = Field(default=None, ge=0)
    """Of one for an hour, in your currency; none = no cost is shown."""


@dataclass(frozen=True)
class Part:
    """What one thing takes of a GPU's memory."""

    name: str
    bytes: float
    why: str


@dataclass(frozen=True)
class Plan:
    """What a training takes."""

    shape: Shape
    pool: Pool
    config: TrainConfig
    studies: int
    sample: Sample
    trained: int
    """Parameters that change."""
    parts: tuple[Part, ...]
    """Of one GPU's memory."""
    host_bytes: float
    """Of one machine's memory, for offloaded state."""
    steps: int
    tokens_per_step: float
    """Trained, and in GRPO written, counting each prompt with each of its reports."""
    seconds: tuple[float, float] | None
    """From and to; none where no throughput is stated."""

    @property
    def bytes(self) -> float:
        return sum(part.bytes for part in self.parts)


def plan(config: TrainConfig, shape: Shape, pool: Pool, studies: int, sample: Sample) -> Plan:
    """Plan a training.

    Raises:
        UserError: more processes than GPUs, a batch that they do not make, or more memory than there is;
            what would fit is named.
    """
    made = _planned(config, shape, pool, studies, sample)
    if problem := _problem(made):
        fits = list(_remedies(made))
        remedy = f"what fits: {'; '.join(fits)}" if fits else "nothing here makes it fit: take larger GPUs"
        raise UserError(f"{problem}: {remedy}")
    return made


def _planned(config: TrainConfig, shape: Shape, pool: Pool, studies: int, sample: Sample) -> Plan:
    if config.processes > pool.nodes * pool.per_node:
        raise UserError(
            f"processes = {config.processes}, and the pool has {pool.nodes} x {pool.per_node} {pool.gpu}: "
            "lower it"
        )
    batch = _batch(config)
    accumulation(batch, config.micro_batch, config.processes)
    trained = shape.adapters(config.lora.rank, config.lora.targets) if config.lora else shape.parameters
    steps = config.max_steps if config.max_steps > 0 else _steps(config, studies)
    tokens = batch * sample.length
    parts = tuple(part for part in _parts(config, shape, pool, sample, trained) if part.bytes)
    on_node = min(config.processes, pool.per_node)
    host = 12 * trained * on_node / config.processes if config.offload else 0.0
    seconds = _seconds(config, shape, pool, sample, steps)
    return Plan(shape, pool, config, studies, sample, trained, parts, host, steps, tokens, seconds)


def _batch(config: TrainConfig) -> int:
    assert isinstance(config, SFTConfig | GRPOConfig)
    return config.batch_size


def _steps(config: TrainConfig, studies: int) -> int:
    """Optimiser steps, as transformers counts them in SFT and TRL in GRPO, which drops what is left over."""
    if isinstance(config, GRPOConfig):
        queries = config.batch_size * config.updates // config.group_size
        each = studies // queries * config.rollout_steps
    else:
        each = math.ceil(studies / _batch(config))
    return math.ceil(config.epochs * each)


def _parts(config: TrainConfig, shape: Shape, pool: Pool, sample: Sample, trained: int) -> Iterator[Part]:
    size, split = (2 if config.bf16 and config.zero else 4), config.processes
    whole = 1 if config.zero < 3 else split
    yield Part(
        "weights", size * shape.parameters / whole, f"{size} bytes" + (f" / {split}" if whole > 1 else "")
    )
    if config.zero == 3:
        # DeepSpeed's stage3_max_live_parameters is larger; what it must hold is a layer, and the next one.
        yield Part("gathered weights", 2 * size * shape.largest_layer, "the two largest layers at once")
    if config.bf16 and not config.zero:
        yield Part("autocast", 2 * trained, "bf16 copies of trained weights")
    own = split if config.zero else 1
    state = 8 if size == 4 else 12
    yield Part("gradients", size * trained / own, f"{size} bytes" + (f" / {own}" if own > 1 else ""))
    if split > 1 and not config.zero:
        yield Part("gradient buckets", 4 * trained, "DDP's copies")
    if not config.offload:
        yield Part(
            "optimiser", state * trained / own, f"AdamW: {state} bytes" + (f" / {own}" if own > 1 else "")
        )
    if config.zero:
        yield Part("DeepSpeed's buckets", BUCKETS, "2 x 5e8 elements of 2 bytes")
    yield from _at_work(config, shape, sample)
    if isinstance(config, GRPOConfig):
        yield from _rollouts(config, shape, pool, sample)


def _at_work(config: TrainConfig, shape: Shape, sample: Sample) -> Iterator[Part]:
    """Activations and logits of one micro-batch."""
    number, report, prompts = config.micro_batch, sample.report, float(config.micro_batch)
    if isinstance(config, GRPOConfig):
        report = float(config.max_completion_tokens)  # any rollout may be as long
        if config.share == "prompt":
            prompts = math.ceil(number / config.group_size)
    logits = number * report  # the vocabulary is scored at completions alone
    tokens = prompts * sample.seen + number * report
    patches = prompts * sample.images * sample.image_tokens * shape.vision_config.spatial_merge_size**2
    kept = shape.activations(tokens, patches, config.bf16, config.gradient_checkpointing)
    how = "checkpointed" if config.gradient_checkpointing else "all kept"
    yield Part("activations", kept, f"{tokens:,.0f} tokens and {patches:,.0f} patches, {how}")
    each = LOGITS[config.bf16]
    wide = shape.text_config.vocab_size
    yield Part("logits", logits * wide * each, f"{logits:,.0f} x {wide:,} x {each} bytes")


def _rollouts(config: GRPOConfig, shape: Shape, pool: Pool, sample: Sample) -> Iterator[Part]:
    """What RL has beside the policy: the reference policy, the reward encoders, who writes the rollouts."""
    size = 2 if config.bf16 and config.zero else 4
    if config.kl and not config.lora:  # with adapters the reference is the policy without them
        whole = config.processes if config.zero == 3 else 1
        yield Part("reference policy", size * shape.parameters / whole, f"{size} bytes, no gradients")
    scorers = _scorers(config.rewards)
    bytes_each = BYTES[config.reward_precision]
    encoders = bytes_each * sum(ENCODERS[name] for name in scorers)
    if encoders:
        tokens = GPU_TOKENS if pool.cuda else CPU_TOKENS
        why = f"{', '.join(scorers)} in {config.reward_precision}, on every rank"
        yield Part("reward encoders", encoders, why)
        yield Part("reward encoders' batch", 4 * tokens * ENCODER_WIDTH, f"{tokens:,} tokens at once")
    if config.rollouts == "colocate":
        yield Part("vLLM", config.vllm_memory * pool.memory_gib * GIB, f"vllm_memory {config.vllm_memory:g}")
    elif config.rollouts == "transformers":
        at_once = config.batch_size * config.updates // config.processes
        at_once = min(at_once, config.rollout_batch or at_once)
        length = sample.seen + config.max_completion_tokens
        cache = at_once * length * shape.cache_per_token * size / 2
        yield Part("KV cache", cache, f"{at_once} rollouts x {length:,.0f} tokens")


def _scorers(rewards: Mapping[str, float]) -> list[str]:
    """Those with an encoder that the rewards need, in a fixed order."""
    scores = [CATALOG[name] for name in rewards]
    scores += [CATALOG[part] for score in scores if score.scorer == COMPOSED for part in score.parts]
    return sorted({score.scorer for score in scores} & set(ENCODERS))


def _seconds(
    config: TrainConfig, shape: Shape, pool: Pool, sample: Sample, steps: int
) -> tuple[float, float] | None:
    """From and to, of all steps."""
    each = _batch(config) / config.processes
    if isinstance(config, GRPOConfig):
        if config.rollouts == "transformers" and pool.cuda:
            return None  # what is stated is of vLLM
        scale = shape.parameters / pool.rl_parameters
        slow, fast = (steps * each * sample.length * scale / rate for rate in pool.rl_tokens)
    else:
        work = steps * each * 3 * shape.forward_flops(sample)
        slow, fast = (work / (share * pool.tflops * 1e12) for share in pool.mfu)
    return fast, slow


def _problem(made: Plan) -> str:
    """What does not fit, if anything."""
    pool, config = made.pool, made.config
    have = USABLE * pool.memory_gib * GIB
    if made.bytes > have:
        most = max(made.parts, key=lambda part: part.bytes)
        return (
            f"{made.bytes / GIB:.1f} GiB of each {pool.gpu} are needed and {have / GIB:.1f} are there to use "
            f"(the largest part: {most.name}, {most.bytes / GIB:.1f})"
        )
    if made.host_bytes > USABLE * pool.host_gib * GIB:
        return f"offload needs {made.host_bytes / GIB:.0f} GiB of a machine that has {pool.host_gib:g}"
    if isinstance(config, GRPOConfig) and config.rollouts == "colocate":
        weights = 2 * made.shape.parameters / config.vllm_tensor_parallel
        longest = (made.sample.seen + config.max_completion_tokens) * made.shape.cache_per_token
        least = (weights + config.group_size * longest) / (pool.memory_gib * GIB)
        if config.vllm_memory < least:
            return f"vllm_memory {config.vllm_memory:g} is too little for vLLM's weights and a group's cache"
    return ""


def _remedies(made: Plan) -> Iterator[str]:
    """Single changes that make it fit; where there is none, several at once."""
    config = made.config
    single: list[dict[str, Any]] = [{"gradient_checkpointing": True}]
    single += [{"micro_batch": config.micro_batch // 2**n} for n in range(1, config.micro_batch.bit_length())]
    if config.processes > 1:
        single += [{"zero": 2}, {"zero": 3}]
    single += [{"offload": True, "zero": max(2, config.zero)}, {"lora": LoRA()}]
    if isinstance(config, GRPOConfig):
        single += [{"vllm_memory": share} for share in (0.3, 0.4, 0.5)]
        single += [{"rollouts": "server", "vllm_url": "..."}]
    found = False
    named = set[str]()
    for change in single:
        if named & {*change} or not _fits(made, change):
            continue
        named |= {*change}
        found = True
        yield _shown(change)
    if found:
        return
    several: list[dict[str, Any]] = [{"zero": 3}] if config.processes > 1 else []
    several += [{"offload": True, "zero": 3}, {"zero": max(2, config.zero), "lora": LoRA()}]
    for change in several:
        for micro_batch in (config.micro_batch, 1):
            whole = change | {"gradient_checkpointing": True, "micro_batch": micro_batch}
            if _fits(made, whole):
                yield _shown(whole)
                break


def _fits(made: Plan, change: dict[str, Any]) -> bool:
    if all(getattr(made.config, name) == value for name, value in change.items()):
        return False
    other = made.config.model_copy(update=change)
    if _batch(other) % (other.micro_batch * other.processes):
        return False
    return not _problem(_planned(other, made.shape, made.pool, made.studies, made.sample))


def _shown(change: dict[str, Any]) -> str:
    return " ".join(f"{name}={'{}' if isinstance(value, LoRA) else value}" for name, value in change.items())


def text(made: Plan) -> str:
    """The plan as people read it."""
    config, pool = made.config, made.pool
    share = made.trained / made.shape.parameters
    nodes = math.ceil(config.processes / pool.per_node)
    lines = [
        f"model       {made.shape.parameters:,} parameters, {made.trained:,} trained ({share:.1%})",
        f"pool        {config.processes} of {pool.nodes} x {pool.per_node} {pool.gpu}, on {nodes} machine(s)",
        f"memory      {made.bytes / GIB:.1f} GiB of {pool.memory_gib:g} on each:",
    ]
    lines += [f"  {part.name:24}{part.bytes / GIB:8.2f} GiB  {part.why}" for part in made.parts]
    if made.host_bytes:
        lines.append(
            f"  host memory             {made.host_bytes / GIB:8.2f} GiB  optimiser, of {pool.host_gib:g}"
        )
    sample = made.sample
    lines += [
        f"sample      {sample.length:,.1f} tokens: {sample.prompt:,.1f} of text, "
        f"{sample.images:.2f} images of {sample.image_tokens}, {sample.report:,.1f} of report",
        f"step        {made.tokens_per_step:,.0f} tokens",
        f"steps       {made.steps:,} over {made.studies:,} studies",
    ]
    if made.seconds is None:
        return "\n".join(
            [*lines, "hours       unknown: the pool states throughput with vLLM's rollouts alone"]
        )
    low, high = (second / 3600 for second in made.seconds)
    lines.append(f"hours       {low:,.1f} to {high:,.1f}")
    if pool.price is not None:
        each = pool.price * config.processes
        lines.append(
            f"cost        {low * each:,.0f} to {high * each:,.0f} at {pool.price:g} an hour for each"
        )
    return "\n".join(lines)


def of_run(
    algorithm: str,
    recipe: str | None,
    overrides: Sequence[str],
    pool: str,
    model: str = "",
    workload: str = "",
    cohort: str = "",
    parent: str = "",
) -> str:
    """What `unirg train --plan` prints; with a cohort and a parent from their own numbers, else from recipes.

    Raises:
        UserError: an algorithm that there is no plan for, or a training that does not fit the pool.
    """
    kinds: dict[str, type[TrainConfig]] = {"sft": SFTConfig, "grpo": GRPOConfig}
    if algorithm not in kinds:
        raise UserError(f"no plan for {algorithm}: there are plans for {' and '.join(kinds)}")
    config = load(kinds[algorithm], recipe, overrides)
    start = open_artifact(parent, checkpoint.STAGES) if parent else None
    place = model or (str(start.directory / checkpoint.MODEL) if start else MODEL)
    shape = shape_of(place)
    if cohort and start:
        studies, sample = measured(open_artifact(cohort, "cohort"), start, config)
    elif cohort:
        raise UserError("a plan for a cohort needs --parent, whose processor counts the tokens")
    else:
        stated = load(Workload, workload)
        studies, sample = stated.studies, stated.sample(config, shape)
    return text(plan(config, shape, load(Pool, pool), studies, sample))
