"""What is computed once per group changes no rollout, no loss and no gradient; the steps are logged."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image as Picture
from trl import GRPOConfig as Arguments
from trl import GRPOTrainer
from trl.data_utils import prepare_multimodal_messages

from tests.toy import WORDS
from unirg import checkpoint
from unirg.metrics.engine import Engine
from unirg.training.grpo import GRPOConfig, arguments
from unirg.training.policy import ToyConfig, toy_policy
from unirg.training.rewards import Rewards
from unirg.training.rollouts import Share, SharedGRPOTrainer

SCORES = {"bleu2": 0.5, "rouge_l": 0.5}
GROUP = 4


def chat(images: int, words: str) -> list[dict[str, Any]]:
    places: list[dict[str, str]] = [{"type": "image"} for _ in range(images)]
    return [{"role": "user", "content": [*places, {"type": "text", "text": words}]}]


def studies(seed: int = 0) -> list[dict[str, Any]]:
    """Four studies whose prompts differ in length and in how many images they show."""
    chance = random.Random(seed)
    numbers = np.random.default_rng(seed)

    def picture() -> Any:
        return Picture.fromarray(numbers.integers(0, 255, (64, 64, 3), dtype=np.uint8))

    found = []
    for number, (images, words) in enumerate([(1, 6), (2, 14), (2, 9), (1, 20)]):
        item = {
            "prompt": chat(images, " ".join(chance.choices(WORDS, k=words))),
            "images": [picture() for _ in range(images)],
            "reference": " ".join(chance.choices(WORDS, k=10)),
            "study_id": f"s{number}",
        }
        found.append(item)
    return found


def dataset() -> Dataset:
    """Rows of numbers that become studies on access, as `Examples` does it."""
    items = studies()

    def read(batch: dict[str, list[int]]) -> dict[str, list[Any]]:
        return {name: [items[number][name] for number in batch["number"]] for name in items[0]}

    rows = Dataset.from_dict({"number": list(range(len(items)))})
    rows.set_format("custom", transform=read, new_fingerprint="studies")
    return rows


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smallest Qwen3-VL, with weights that make its text depend on what it is shown."""
    texts = [" ".join(random.Random(n).choices(WORDS, k=40)) for n in range(50)]
    small = ToyConfig(image_size=64, vocabulary=300, initializer_range=0.2)
    folder = tmp_path_factory.mktemp("policy")
    checkpoint.save(*toy_policy(small, texts, seed=0), folder)
    return folder


Made = Callable[..., Any]


@pytest.fixture
def made(policy: Path, tmp_path: Path) -> Made:
    """A trainer over the same policy: stock TRL's where `share` is None."""

    def build(share: Share | None, micro_batch: int = 8, **options: Any) -> Any:
        rollout_batch = options.pop("rollout_batch", None)
        settings = GRPOConfig(
            batch_size=16,
            group_size=GROUP,
            micro_batch=micro_batch,
            rewards=SCORES,
            max_completion_tokens=12,
            **options,
        )
        common = {
            "output_dir": str(tmp_path / "checkpoints"),
            "per_device_train_batch_size": micro_batch,
            "use_cpu": True,
            "report_to": [],
            "bf16": False,
            "gradient_checkpointing": False,
            "remove_unused_columns": False,
            "dataloader_pin_memory": False,
            "learning_rate": 1e-3,
            "disable_tqdm": True,
            "logging_steps": 1,
            "max_steps": 1,
        }
        model, processor = checkpoint.load_model(policy).train(), checkpoint.load_processor(policy)
        args: Arguments = arguments(settings, common, model.config.image_token_id)
        rewards = Rewards(SCORES, Engine(list(SCORES)))
        shared: dict[str, Any] = {"model": model, "args": args, "train_dataset": dataset()}
        if share is None:
            return GRPOTrainer(**shared, processing_class=processor, reward_funcs=rewards.functions)
        return SharedGRPOTrainer(
            **shared, processing_class=processor, rewards=rewards, share=share, rollout_batch=rollout_batch
        )

    return build


def batch() -> list[dict[str, Any]]:
    return [item for item in studies() for _ in range(GROUP)]


def written(eos: int, seed: int = 0) -> list[list[int]]:
    """Rollouts of many lengths, one of them cut before its end."""
    chance = random.Random(seed)
    made = [[chance.randrange(20, 250) for _ in range(chance.randrange(2, 11))] + [eos] for _ in range(16)]
    return [*made[:-1], [chance.randrange(20, 250) for _ in range(12)]]


def learned(trainer: Any, monkeypatch: pytest.MonkeyPatch) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of one optimiser step on the fixed rollouts."""
    fixed = written(trainer.eos_token_ids[0])
    monkeypatch.setattr(type(trainer), "_generate_single_turn", lambda *_, **__: (copy.deepcopy(fixed), None))
    # The policy's text is noise, whose scores are all alike.
    rewards = torch.rand(16, len(SCORES), generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(type(trainer), "_calculate_rewards", lambda *_: rewards)
    trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps
    loss = 0.0
    for step in range(trainer.args.gradient_accumulation_steps):
        trainer._step = step
        part = trainer._compute_loss(trainer.model, trainer._prepare_inputs(batch()))
        part.backward()
        loss += part.item()
    return loss, {name: weight.grad for name, weight in trainer.model.named_parameters()}


def assert_same(one: tuple[float, dict[str, Any]], other: tuple[float, dict[str, Any]]) -> None:
    assert one[0] == pytest.approx(other[0], rel=1e-4, abs=1e-6)
    for name, gradient in one[1].items():
        torch.testing.assert_close(gradient, other[1][name], rtol=1e-3, atol=2e-6, msg=name)


@pytest.mark.parametrize("share", ["images", "prompt"])
@pytest.mark.parametrize(
    ("micro_batch", "kl", "checkpointing"),
    [(8, 0.03, False), (2, 0.0, True)],  # two groups together, half a group
)
def test_losses_and_gradients_are_those_of_stock_trl(
    share: Share,
    micro_batch: int,
    kl: float,
    checkpointing: bool,
    made: Made,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    results = []
    for one in (None, share):
        trainer = made(one, micro_batch, kl=kl)
        with torch.no_grad():  # away from the reference policy, so that the KL term has a gradient
            trainer.model.model.language_model.layers[0].mlp.up_proj.weight.mul_(1.1)
        if checkpointing:
            trainer.model.gradient_checkpointing_enable({"use_reentrant": False})
        with monkeypatch.context() as patch:
            results.append(learned(trainer, patch))
    norm = torch.stack([gradient.norm() for gradient in results[0][1].values()]).norm()
    assert norm > 0.01
    assert_same(*results)


def test_rollouts_of_a_shared_prompt_are_those_of_stock_trl(made: Made) -> None:
    """Greedy, over prompts padded to one length; the prompt is read once, all rollouts at once or not."""
    found = []
    for share, rollout_batch in [(None, None), ("prompt", None), ("images", 6)]:
        trainer = made(share, rollout_batch=rollout_batch) if share else made(None)
        trainer.generation_config.do_sample = False
        trainer._inputs = batch()
        prompts = [item["prompt"] for item in batch()]
        if share is None:
            places = [list(item["images"]) for item in batch()]
            prompts = [prepare_multimodal_messages(p, images=i) for p, i in zip(prompts, places, strict=True)]
        found.append(trainer._generate_single_turn(*trainer._tokenize_prompts(prompts), GROUP)[0])
    assert len({tuple(ids) for ids in found[0]}) == 4  # each prompt has its own text
    assert found[1] == found[0]
    assert found[2] == found[0]
    assert len(trainer._rewards._begun) == 3  # of 16 rollouts: each six are scored while the next are written


def test_an_image_is_prepared_and_encoded_once_per_group(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = made("prompt", micro_batch=8)
    trainer.current_gradient_accumulation_steps = 2
    prepared, encoded = list[Any](), list[int]()
    kind = type(trainer.processing_class.image_processor)
    stock = kind._preprocess

    def preprocess(self: Any, images: list[Any], *given: Any, **options: Any) -> Any:
        prepared.extend(images)
        return stock(self, images, *given, **options)

    def seen(_: Any, given: Any, options: dict[str, Any], __: Any) -> None:
        encoded.append(len(options["grid_thw"]))

    monkeypatch.setattr(kind, "_preprocess", preprocess)
    trainer.model.model.visual.register_forward_hook(seen, with_kwargs=True)
    for step in range(2):
        trainer._step = step
        trainer._compute_loss(trainer.model, trainer._prepare_inputs(batch()))
    total = sum(len(item["images"]) for item in studies())
    assert len(prepared) == total
    assert encoded == [total, 3, 3]  # for the rollouts, and for the loss of each micro-batch of two groups


def test_a_step_logs_what_the_report_reads(made: Made) -> None:
    trainer = made("prompt")
    trainer.train()
    entry = trainer.state.log_history[0]
    wanted = {
        *(f"rewards/{name}/{what}" for name in SCORES for what in ("mean", "std")),
        *("loss", "grad_norm", "learning_rate", "epoch", "step", "tokens"),
        *("reward", "reward_std", "advantage_std", "zero_spread_share", "clip/low", "clip/high", "entropy"),
        *("length/mean", "truncated_share", "duplicate_share"),
        *("seconds/generation", "seconds/rewards", "seconds/training"),
    }
    assert set(entry) == wanted
    assert entry["clip/low"] == entry["clip/high"] == 0  # the policy that wrote them is the one that learns
    assert entry["entropy"] > 0
    assert 2 <= entry["length/mean"] <= 12
    assert min(entry[f"seconds/{part}"] for part in ("generation", "rewards", "training")) > 0


def test_duplicates_are_counted_within_their_group(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = made("prompt")
    alike = [[30, 31], [30, 31], [32], [33]]  # one of four repeats another of its group, in each group
    monkeypatch.setattr(trainer, "_generate_single_turn", lambda *_: (alike * 4, None))
    trainer._prepare_inputs(batch())
    assert trainer._metrics["train"]["duplicate_share"] == [0.25]


def test_stock_trl_is_one_switch_away_and_logs_the_same_names(made: Made) -> None:
    logs = []
    for share in ("nothing", "prompt"):
        trainer = made(share)
        trainer.train()
        logs.append(trainer.state.log_history[0])
    assert logs[0].keys() == logs[1].keys()


def test_kl_is_the_k3_estimate_to_the_policy_that_the_step_starts_from(made: Made, policy: Path) -> None:
    trainer = made("prompt", kl=0.5)
    first = checkpoint.load_model(policy).state_dict()
    reference = trainer.ref_model.state_dict()
    assert all(torch.equal(first[name], reference[name]) for name in first)
    part = trainer._prepare_inputs(batch())
    part["ref_per_token_logps"] = part["ref_per_token_logps"] - 0.3
    part["advantages"] = torch.zeros_like(part["advantages"])
    trainer.current_gradient_accumulation_steps = 2
    loss = trainer._compute_loss(trainer.model, part)
    k3 = math.exp(-0.3) + 0.3 - 1
    assert trainer._metrics["train"]["kl"][0] == pytest.approx(k3, rel=1e-3)
    tokens = part["completion_mask"].sum() / part["num_items_in_batch"]
    assert loss.item() == pytest.approx(0.5 * k3 * tokens.item(), rel=1e-3)


def test_several_updates_on_the_same_rollouts_are_clipped_against_their_writer(made: Made) -> None:
    trainer = made("prompt", micro_batch=4, updates=2, save_steps=2)
    many = batch() + [{**item, "study_id": f"{item['study_id']}+"} for item in batch()]
    parts = []
    for step in range(8):
        trainer._step = step
        parts.append(trainer._prepare_inputs(many))
    assert len({id(part) for part in parts}) == 8  # of one generation: 32 rollouts in 8 micro-batches
    assert all("old_per_token_logps" in part for part in parts)


def test_the_rollouts_of_vllm_are_scored_while_the_next_are_written(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM itself is not here: what TRL gives of it stands in, part by part."""
    trainer = made("prompt", rollout_batch=8)
    ids, events = written(trainer._tokenizer.eos_token_id), list[str]()
    fresh = iter(ids)

    def of_vllm(self: Any, prompts: list[Any], images: list[Any], *rest: Any) -> tuple[list[Any], list[Any]]:
        assert len(images) == len(prompts)
        events.append(f"{len(prompts)} written")
        some = [next(fresh) for _ in prompts]
        return some, [[-1.0] * len(row) for row in some]

    begin = trainer._rewards.begin

    def begun(pairs: list[tuple[str, str]]) -> None:
        events.append(f"{len(pairs)} handed over")
        begin(pairs)

    monkeypatch.setattr(GRPOTrainer, "_generate_single_turn", of_vllm)
    monkeypatch.setattr(trainer._rewards, "begin", begun)
    trainer.use_vllm, trainer._inputs = True, batch()
    prompts, _, fields = trainer._tokenize_prompts([row["prompt"] for row in trainer._inputs])
    found, log_probs = trainer._generate_single_turn(prompts, None, fields, GROUP)
    assert events == ["8 written", "8 handed over"] * 2
    assert found == ids
    assert [len(row) for row in log_probs] == [len(row) for row in ids]
