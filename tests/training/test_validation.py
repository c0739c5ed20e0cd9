"""Validation: the exact loss and the very reports of the model as it is, with nothing left behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from tests.training.sft_world import loaded, made
from unirg import checkpoint, prompts
from unirg.artifact import Artifact
from unirg.cohort.reader import Cohort
from unirg.errors import UserError
from unirg.metrics.engine import Engine
from unirg.training import distributed, validation
from unirg.training.packing import pad
from unirg.training.sft import SFTConfig, sft
from unirg.training.validation import Validation, callbacks, chosen

SCORES = ("bleu2", "rouge_l")
CONFIG = SFTConfig(
    validate_steps=2, validation_scores=SCORES, validation_tokens=8, prior_share=1.0, validation_studies=7
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Artifact, Artifact]:
    return made(str(tmp_path_factory.mktemp("world")), studies=32, validate=0.5)


@pytest.fixture(scope="module")
def policy(world: tuple[Artifact, Artifact]) -> tuple[Any, Any]:
    return loaded(world[1])


@pytest.fixture
def validate(
    world: tuple[Artifact, Artifact], policy: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> Validation:
    monkeypatch.setattr(validation, "BATCH", 3)
    return Validation(Cohort.open(world[0]), policy[1], CONFIG, Engine(SCORES))


def one_by_one(validate: Validation, model: Any) -> tuple[float, list[str]]:
    """(loss, reports) by transformers' own forward and generation, each study alone and nothing padded."""
    lost, tokens, reports = 0.0, 0, []
    tokenizer = validate.encoder.processor.tokenizer
    for number in range(len(validate.examples)):
        sample = validate.encoder(validate.examples[number])
        batch = pad([sample], 0, model.config.image_token_id)
        labels = batch.pop("labels")
        with torch.no_grad():
            logits = model(**batch).logits
        lost += cross_entropy(logits[0, :-1], labels[0, 1:], reduction="sum").item()
        tokens += len(sample.completion)
        prompt = {
            name: value[:, : sample.prompt] if value.shape == batch["input_ids"].shape else value
            for name, value in batch.items()
        }
        ids = model.generate(**prompt, max_new_tokens=8, do_sample=False)[0, sample.prompt :]
        reports.append(tokenizer.decode(ids, skip_special_tokens=True).strip())
    return lost / tokens, reports


def test_loss_and_scores_are_those_of_the_studies_one_by_one(
    validate: Validation, policy: tuple[Any, Any]
) -> None:
    model = policy[0]
    found = validate(model)
    loss, reports = one_by_one(validate, model)
    references = [prompts.report(study) for study in validate.examples.studies]
    rows = list(Engine(SCORES).score(zip(reports, references, strict=True)))
    assert found["validation/loss"] == pytest.approx(loss, rel=1e-6)
    for name in SCORES:
        assert found[f"validation/{name}"] == pytest.approx(sum(row.values[name] for row in rows) / 7)
    assert (found["validation/studies"], found["validation/missing"]) == (7, 0)
    assert 0 < found["validation/length"] <= 8
    assert 0 <= found["validation/truncated_share"] <= 1


def test_the_model_is_left_as_it_was(validate: Validation, policy: tuple[Any, Any]) -> None:
    model = policy[0].train()
    before, drawn = model.model.language_model.config._attn_implementation, torch.get_rng_state()
    validate(model)
    assert all(part.training for part in model.modules())
    assert model.model.language_model.config._attn_implementation == before
    assert torch.equal(torch.get_rng_state(), drawn)
    model.eval()
    validate(model)
    assert not model.training


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_the_studies_and_agree_on_the_result(
    validate: Validation, policy: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch, processes: int
) -> None:
    """Of 7 studies in batches of 3, four processes leave one with nothing, which goes along all the same."""
    alone = validate(policy[0])
    parts: list[Any] = []
    batches: list[int] = []
    monkeypatch.setattr(distributed, "processes", lambda: processes)
    loss = validation.packing.loss

    def counted(*given: Any) -> torch.Tensor:
        batches[-1] += 1
        return loss(*given)

    monkeypatch.setattr(validation.packing, "loss", counted)
    monkeypatch.setattr(distributed, "agreed", lambda value: value)
    for rank in reversed(range(processes)):
        batches.append(0)
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)

        def gathered(mine: Any, last: bool = rank == 0) -> list[Any]:
            parts.insert(0, mine)
            return parts if last else [mine, *parts[1:]]

        monkeypatch.setattr(distributed, "gathered", gathered)
        if rank:
            with monkeypatch.context() as patch:
                patch.setattr(Validation, "_scores", lambda *_: {})
                if numbers := len(range(3 * rank, min(3 * rank + 3, 7))):
                    validate(policy[0])
                    assert len(parts[0].reports) == numbers
                else:
                    with pytest.raises(ZeroDivisionError):  # its own part, all that it sees here, is empty
                        validate(policy[0])
        else:
            together = validate(policy[0])
    assert len(set(batches)) == 1
    for name in ("loss", *SCORES, "studies", "length", "truncated_share"):
        assert together[f"validation/{name}"] == pytest.approx(alone[f"validation/{name}"], rel=1e-6)


def test_training_validates_on_time_and_is_the_same_training(
    world: tuple[Artifact, Artifact], tmp_path: Path
) -> None:
    shared: dict[str, Any] = {
        "batch_size": 4,
        "micro_batch": 4,
        "max_steps": 3,
        "learning_rate": 1e-3,
        "prior_share": 0.5,
    }
    plain = sft(SFTConfig(**shared), *world, str(tmp_path))
    watched = CONFIG.model_copy(update=shared)
    validated = sft(watched, *world, str(tmp_path))
    assert validated.manifest.files.keys() == plain.manifest.files.keys()
    weights = f"{checkpoint.MODEL}/model.safetensors"
    assert validated.manifest.files[weights] == plain.manifest.files[weights]
    log = [json.loads(line) for line in (validated.directory / checkpoint.LOG).read_text().splitlines()]
    entries = {entry["step"]: entry for entry in log if "validation/loss" in entry}
    assert sorted(entries) == [2, 3]  # as configured, and after the last step
    assert entries[2]["validation/loss"] != entries[3]["validation/loss"]
    assert {f"validation/{name}" for name in SCORES} < entries[2].keys()


def test_the_studies_are_drawn_by_their_ids(world: tuple[Artifact, Artifact]) -> None:
    cohort = Cohort.open(world[0])
    everyone = chosen(cohort, 1024, seed=0)
    assert {study.study_id for study in everyone} == {study.study_id for study in cohort.studies("validate")}
    assert [study.study_id for study in everyone] != sorted(study.study_id for study in everyone)
    assert chosen(cohort, 5, seed=0) == everyone[:5]
    assert chosen(cohort, 5, seed=1) != everyone[:5]


def test_what_cannot_be_validated_is_refused_before_training(
    world: tuple[Artifact, Artifact], policy: tuple[Any, Any], tmp_path: Path
) -> None:
    cohort = Cohort.open(world[0])
    assert callbacks(SFTConfig(), cohort, policy[1], None) == []
    with pytest.raises(UserError, match="the validation's score `bertscore` needs its scorer's weights"):
        callbacks(SFTConfig(validate_steps=1), cohort, policy[1], None)
    with pytest.raises(ValueError, match="names errors, which needs a judge"):
        SFTConfig(validate_steps=1, validation_scores=("bleu2", "errors"))
    with pytest.raises(UserError, match="no score is named"):
        SFTConfig(validate_steps=1, validation_scores=("bleu3",))
    none = Cohort.open(made(str(tmp_path), studies=4, validate=0.0)[0])
    with pytest.raises(UserError, match="has no study in split validate: stage it with one"):
        callbacks(CONFIG, none, policy[1], None)
