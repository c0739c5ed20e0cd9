"""A model directory: stock on disk, the same numbers after loading, and refused when it is not whole."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as PIL
from safetensors.torch import load_file, save_file

from unirg import checkpoint
from unirg.errors import UserError
from unirg.training.policy import ToyConfig, toy_policy

WEIGHTS = "model.safetensors"
TEXTS = ["Findings: the lungs are clear. Impression: no acute disease."] * 40
Policy = tuple[Any, Any]


@pytest.fixture(scope="module")
def policy() -> Policy:
    model, processor = toy_policy(ToyConfig(), TEXTS, seed=3)
    return model.eval(), processor


@pytest.fixture(scope="module")
def saved(policy: Policy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("saved") / "model"
    checkpoint.save(*policy, directory)
    return directory


@pytest.fixture
def directory(saved: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(saved, tmp_path / "model"))


def inputs(processor: Any) -> Any:
    """A batch of two chats of different length, one image each."""
    pixels = np.random.default_rng(0).integers(0, 255, (2, 512, 512), dtype=np.uint8)
    chats = [
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]
        for text in ("lungs", "the lungs are clear")
    ]
    texts = [processor.apply_chat_template(chat, add_generation_prompt=True) for chat in chats]
    shown = [[PIL.fromarray(image).convert("RGB")] for image in pixels]
    return processor(text=texts, images=shown, padding=True, return_tensors="pt")


@torch.inference_mode()
def logits(model: Any, processor: Any) -> torch.Tensor:
    return model(**inputs(processor)).logits


def test_a_saved_policy_gives_the_same_logits_when_loaded(policy: Policy, saved: Path) -> None:
    model, processor = checkpoint.load_model(saved), checkpoint.load_processor(saved)
    assert not model.training
    assert torch.allclose(logits(*policy), logits(model, processor), atol=1e-5)
    again = checkpoint.load_model(saved)
    assert torch.equal(logits(again, processor), logits(model, processor))


def test_loading_and_saving_again_changes_no_byte_from_then_on(saved: Path, tmp_path: Path) -> None:
    once, twice = tmp_path / "once", tmp_path / "twice"
    for source, target in ((saved, once), (once, twice)):
        checkpoint.save(checkpoint.load_model(source), checkpoint.load_processor(source), target)
    names = sorted(path.name for path in saved.iterdir())
    assert names == sorted(path.name for path in twice.iterdir())
    assert (once / WEIGHTS).read_bytes() == (saved / WEIGHTS).read_bytes()
    assert [name for name in names if (once / name).read_bytes() != (twice / name).read_bytes()] == []


def test_the_directory_is_one_that_stock_transformers_reads(policy: Policy, saved: Path) -> None:
    from transformers import AutoModelForImageTextToText, AutoTokenizer

    stock = AutoModelForImageTextToText.from_pretrained(saved).eval()
    assert type(stock).__name__ == "Qwen3VLForConditionalGeneration"
    assert torch.allclose(logits(stock, policy[1]), logits(*policy), atol=1e-5)
    assert AutoTokenizer.from_pretrained(saved).chat_template == policy[1].tokenizer.chat_template
    kept = json.loads((saved / "processor_config.json").read_text())
    assert kept["processor_class"] == "Qwen3VLProcessor"
    assert (saved / "video_preprocessor_config.json").is_file()


def test_the_patch_embedding_as_a_product_equals_the_convolution(policy: Policy) -> None:
    embed = policy[0].model.visual.patch_embed
    patches = torch.randn(50, 3 * 2 * 16 * 16, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        convolved = type(embed).forward(embed, patches)
        product = checkpoint.patches_as_product(policy[0]).model.visual.patch_embed(patches)
    assert convolved.abs().max() > 1
    torch.testing.assert_close(product, convolved, rtol=1e-5, atol=1e-5)


def test_the_product_follows_the_weights_as_they_are_trained(saved: Path) -> None:
    model = checkpoint.load_model(saved)
    embed = model.model.visual.patch_embed
    patches = torch.ones(1, 3 * 2 * 16 * 16)
    before = embed(patches)
    assert before.requires_grad
    embed.proj.weight.data.zero_()
    assert torch.equal(embed(patches)[0], embed.proj.bias)


def test_prompts_are_padded_on_the_left_as_generation_needs(saved: Path) -> None:
    processor = checkpoint.load_processor(saved)
    mask = inputs(processor)["attention_mask"]
    assert mask[0, 0] == 0
    assert mask[:, -1].tolist() == [1, 1]


def test_the_same_seed_makes_the_same_policy_and_leaves_the_global_one_alone(policy: Policy) -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    again, processor = toy_policy(ToyConfig(), TEXTS, seed=3)
    assert torch.equal(torch.rand(3), expected)
    other, _ = toy_policy(ToyConfig(), TEXTS, seed=4)
    first = policy[0].state_dict()
    assert all(torch.equal(first[name], value) for name, value in again.state_dict().items())
    assert not torch.equal(first["lm_head.weight"], other.state_dict()["lm_head.weight"])
    assert processor.tokenizer.get_vocab() == policy[1].tokenizer.get_vocab()


def test_the_toys_tokenizer_writes_any_text_back(policy: Policy) -> None:
    tokenizer = policy[1].tokenizer
    for text in ("Findings: clear lungs.", "naïve café, 5 mm\n\ttab", "肺は正常 🫁"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


# What is refused


@pytest.mark.parametrize("place", ["/nowhere/model", "./nowhere", "~/nowhere-at-all"])
def test_a_directory_that_is_not_there_is_said_so(place: str) -> None:
    for load in (checkpoint.load_model, checkpoint.load_processor):
        with pytest.raises(UserError, match=rf"no model at {place}: config\.json, .* missing"):
            load(place)


def test_a_folder_without_a_model_names_what_is_missing(directory: Path) -> None:
    (directory / "config.json").unlink()
    with pytest.raises(UserError, match=r"config\.json missing; name a model directory or a hub id"):
        checkpoint.load_model(directory)


def test_a_home_directory_is_found(saved: Path, monkeypatch: pytest.MonkeyPatch, policy: Policy) -> None:
    monkeypatch.setenv("HOME", str(saved.parent))
    assert checkpoint.load_model("~/model").num_parameters() == policy[0].num_parameters()


def test_a_hub_id_that_cannot_be_reached_says_how_to_give_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"cannot load a model from nobody/nothing .*HF_HOME, HF_TOKEN"):
        checkpoint.load_model("nobody/nothing")


@pytest.mark.parametrize("weights", [None, b"", b"garbage", 1000])
def test_weights_that_are_missing_or_torn_are_refused(directory: Path, weights: bytes | int | None) -> None:
    file = directory / WEIGHTS
    whole = file.read_bytes()
    file.unlink()
    if weights is not None:
        file.write_bytes(whole[:weights] if isinstance(weights, int) else weights)
    with pytest.raises(UserError, match=r"cannot load a model from .*safetensors"):
        checkpoint.load_model(directory)


@pytest.mark.parametrize("change", ["lost", "of another shape"])
def test_a_tensor_that_is_missing_is_never_filled_with_random_numbers(directory: Path, change: str) -> None:
    tensors = load_file(directory / WEIGHTS)
    name = next(name for name in tensors if name.endswith("q_proj.weight"))
    del tensors[name]
    if change != "lost":
        tensors[name] = torch.zeros(3, 3)
    save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(UserError, match=f"1 tensors are missing or of another shape, such as .*{name}"):
        checkpoint.load_model(directory)


@pytest.mark.parametrize("file", ["config.json", "processor_config.json", "tokenizer.json"])
def test_a_torn_configuration_is_refused(directory: Path, file: str) -> None:
    (directory / file).write_text("{")
    load = checkpoint.load_model if file == "config.json" else checkpoint.load_processor
    with pytest.raises(UserError, match="cannot load a model from"):
        load(directory)


def test_a_tokenizer_without_a_chat_template_is_refused(directory: Path) -> None:
    (directory / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match="no chat template"):
        checkpoint.load_processor(directory)


def test_a_pickle_is_not_loaded(directory: Path) -> None:
    """A pickled checkpoint runs code when it is read; safetensors alone are."""
    tensors = load_file(directory / WEIGHTS)
    (directory / WEIGHTS).unlink()
    buffer = io.BytesIO()
    torch.save(tensors, buffer)
    (directory / "pytorch_model.bin").write_bytes(buffer.getvalue())
    with pytest.raises(UserError, match="cannot load a model from"):
        checkpoint.load_model(directory)
