"""Packed batches: TRL's tokens and pixels, the model's own positions, and no sample that sees another."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from tests.training.sft_world import loaded, made
from unirg.artifact import Artifact
from unirg.cohort.reader import Cohort
from unirg.training import packing
from unirg.training.data import Examples
from unirg.training.packing import Encoder, Sample, pack, pad, positions

CLOSE = 2e-5
"""Of the largest entry: what fp32 sums in another order may differ by."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Artifact, Artifact]:
    return made(str(tmp_path_factory.mktemp("world")))


@pytest.fixture
def model(world: tuple[Artifact, Artifact]) -> Any:
    return loaded(world[1])[0].train()


@pytest.fixture(scope="module")
def processor(world: tuple[Artifact, Artifact]) -> Any:
    return loaded(world[1])[1]


@pytest.fixture(scope="module")
def items(world: tuple[Artifact, Artifact], processor: Any) -> list[dict[str, Any]]:
    """Eight studies with one image and two in turn."""
    cohort = Cohort.open(world[0])
    studies = sorted(cohort.studies("train"), key=lambda study: study.study_id)[:8]
    examples = Examples(cohort, studies, processor, 1.0, 0, completion=True)
    found = [examples[number] for number in range(8)]
    assert {len(item["images"]) for item in found} == {1, 2}
    return found


def drawn(config: Any, chance: random.Random) -> Sample:
    """A sample of random text around one or two images, not all of them square."""
    numbers = torch.Generator().manual_seed(chance.randrange(2**30))
    side = config.vision_config
    ids: list[int] = []

    def text(least: int) -> list[int]:
        return [chance.randrange(100, 200) for _ in range(chance.randrange(least, 9))]  # no special token

    grids = []
    for _ in range(chance.choice((1, 2))):
        high, wide = chance.choice((2, 4)), chance.choice((2, 4, 6))
        ids += [*text(1), *[config.image_token_id] * (high * wide // 4)]
        grids.append((1, high, wide))
    ids += text(1)
    completion = text(1)
    patches = sum(high * wide for _, high, wide in grids)
    width = side.in_channels * side.temporal_patch_size * side.patch_size**2
    return Sample(
        torch.tensor([*ids, *completion]),
        len(ids),
        torch.randn(patches, width, generator=numbers),
        torch.tensor(grids),
    )


def stock_loss(model: Any, sample: Sample) -> torch.Tensor:
    """The sample alone in transformers' own forward, which scores every position."""
    batch = pad([sample], 0, model.config.image_token_id)
    labels = batch.pop("labels")
    logits = model(**batch).logits
    return cross_entropy(logits[0, :-1], labels[0, 1:], reduction="sum")


def gradients(model: Any, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters()}


def assert_close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=CLOSE * max(1, value.abs().max().item()))


def test_a_sample_has_the_tokens_labels_and_pixels_of_trls_own_collator(
    items: list[dict[str, Any]], processor: Any, model: Any
) -> None:
    from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

    stock = DataCollatorForVisionLanguageModeling(processor, completion_only_loss=True)
    expected = stock([dict(item) for item in items])
    encode = Encoder(processor)
    found = pad(
        [encode(item) for item in items], processor.tokenizer.pad_token_id, model.config.image_token_id
    )
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name].to(value.dtype), value), name


def test_positions_are_the_models_own(model: Any) -> None:
    chance = random.Random(0)
    for _ in range(50):
        sample = drawn(model.config, chance)
        token = model.config.image_token_id
        kinds = (sample.ids == token).int()[None]
        expected, _ = model.model.get_rope_index(sample.ids[None], kinds, sample.grids)
        assert torch.equal(positions(sample.ids, sample.grids, token, 2), expected[:, 0])


@pytest.mark.parametrize("seed", range(6))
def test_any_packing_has_the_losses_and_gradients_of_its_samples_alone(model: Any, seed: int) -> None:
    chance = random.Random(seed)
    samples = [drawn(model.config, chance) for _ in range(chance.randrange(1, 7))]
    losses = [stock_loss(model, sample) for sample in samples]
    expected = gradients(model, torch.stack(losses).sum())
    packing.use(model)
    for parts in ([samples], [samples[:2], samples[2:]], [samples[::-1]]):
        packed = [packing.loss(model, pack(part, model.config)) for part in parts if part]
        whole = torch.stack(packed).sum()
        torch.testing.assert_close(whole, torch.stack(losses).sum(), rtol=1e-6, atol=1e-5)
        assert_close(gradients(model, whole), expected)


def test_studies_with_one_and_two_images_lose_nothing_by_packing(
    items: list[dict[str, Any]], processor: Any, model: Any
) -> None:
    encode = Encoder(processor)
    samples = [encode(item) for item in items]
    losses = torch.stack([stock_loss(model, sample) for sample in samples]).sum()
    expected = gradients(model, losses)
    found = packing.loss(packing.use(model), pack(samples, model.config))
    torch.testing.assert_close(found, losses, rtol=1e-6, atol=1e-5)
    assert_close(gradients(model, found), expected)


def test_no_sample_sees_another(model: Any) -> None:
    """The loss of one does not move with another's text or pixels, and its gradient does not reach them."""
    chance = random.Random(7)
    samples = [drawn(model.config, chance) for _ in range(3)]
    packing.use(model)

    def logits(samples: Sequence[Sample]) -> tuple[list[torch.Tensor], dict[str, Any]]:
        batch = pack(samples, model.config)
        batch["pixel_values"].requires_grad_()
        inputs = {name: value for name, value in batch.items() if name != "targets"}
        scored = model(**inputs).logits[0]
        return list(scored.split([len(sample.completion) for sample in samples])), batch

    before, batch = logits(samples)
    before[1].sum().backward()
    touched = batch["pixel_values"].grad.abs().sum(1) > 0
    first, second = (len(sample.pixels) for sample in samples[:2])
    assert touched[first : first + second].all()
    assert not touched[:first].any()
    assert not touched[first + second :].any()

    other = samples[0].ids.clone()
    other[-3:] = other[-3:] % 100 + 101
    changed = Sample(other, samples[0].prompt, samples[0].pixels + 1, samples[0].grids)
    after, _ = logits([changed, *samples[1:]])
    assert not torch.equal(after[0], before[0])
    assert torch.equal(after[1], before[1])
    assert torch.equal(after[2], before[2])


def test_gradient_checkpointing_changes_no_gradient(model: Any) -> None:
    chance = random.Random(3)
    batch = pack([drawn(model.config, chance) for _ in range(3)], packing.use(model).config)
    plain = gradients(model, packing.loss(model, batch))
    model.gradient_checkpointing_enable()
    assert_close(gradients(model, packing.loss(model, batch)), plain)


def test_a_model_that_packs_generates_as_before_and_is_saved_as_before(
    items: list[dict[str, Any]], processor: Any, model: Any, tmp_path: Path
) -> None:
    encode = Encoder(processor)
    asked = [encode(item) for item in items]
    asked = [Sample(one.ids[: one.prompt], one.prompt, one.pixels, one.grids) for one in asked]
    inputs = pad(asked, processor.tokenizer.pad_token_id, model.config.image_token_id, side="left")
    del inputs["labels"]

    def written() -> torch.Tensor:
        return model.eval().generate(**inputs, max_new_tokens=8, do_sample=False)

    expected = written()
    model.save_pretrained(tmp_path / "before")
    packing.use(model)
    assert torch.equal(written(), expected)
    model.save_pretrained(tmp_path / "after")
    before, after = ((tmp_path / name / "config.json").read_bytes() for name in ("before", "after"))
    assert before == after


def test_bfloat16_packs_as_well(model: Any) -> None:
    chance = random.Random(1)
    batch = pack([drawn(model.config, chance) for _ in range(3)], packing.use(model).config)
    exact = packing.loss(model, batch)
    with torch.autocast("cpu", torch.bfloat16):
        found = packing.loss(model, batch)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, exact, rtol=0.02, atol=0)


def test_a_template_that_rewrites_the_prompt_is_refused(items: list[dict[str, Any]], processor: Any) -> None:
    encode = Encoder(processor)
    encode.processor.chat_template = "{{ messages | length }}"
    with pytest.raises(ValueError, match="writes a prompt otherwise"):
        encode(items[0])
