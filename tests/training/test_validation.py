"""Validation: the exact loss and the very reports of the model as it is, with nothing left behind."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from tests.metrics.judge_double import BAD, GOOD, Server
from tests.training.sft_world import loaded, made
from unirg import checkpoint, prompts
from unirg.artifact import Artifact
from unirg.cohort.reader import Cohort
from unirg.errors import Unavailable, UserError
from unirg.metrics.engine import Engine
from unirg.training import distributed, validation
from unirg.training.grpo import GRPOConfig, grpo
from unirg.training.grpo import inputs as grpo_inputs
from unirg.training.packing import pad
from unirg.training.sft import SFTConfig, sft
from unirg.training.sft import inputs as sft_inputs
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
    assert (found["validation/studies"], found["validation/missing"], found["validation/asked"]) == (7, 0, 14)
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


JUDGED: dict[str, Any] = {
    **{"batch_size": 4, "micro_batch": 4, "max_steps": 1, "validate_steps": 1, "validation_tokens": 8},
    **{"validation_studies": 5, "validation_scores": ("bleu2", "errors", "errors_significant")},
    **{"judge_model": "judge", "judge_concurrency": 1},
}


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.stop()


def validated(made: Artifact) -> dict[str, Any]:
    """The one entry of a validation in a log."""
    log = [json.loads(line) for line in (made.directory / checkpoint.LOG).read_text().splitlines()]
    (entry,) = [entry for entry in log if "validation/loss" in entry]
    return entry


def test_the_judge_counts_errors_once_a_study_and_what_it_owes_is_missing_and_no_zero(
    world: tuple[Artifact, Artifact], server: Server, tmp_path: Path
) -> None:
    config = SFTConfig(**JUDGED, judge_url=server.url)
    found = validated(sft(config, *world, str(tmp_path / "all")))
    assert (found["validation/errors"], found["validation/errors_significant"]) == (3, 3)
    assert (found["validation/missing"], found["validation/asked"]) == (0, 15)
    assert len(server.requests) == 5
    server.script = lambda number, body: GOOD if number < 8 else BAD  # the first three of the second run
    found = validated(sft(config, *world, str(tmp_path / "some")))
    assert (found["validation/errors"], found["validation/missing"]) == (3, 4)
    server.script = lambda number, body: BAD
    found = validated(sft(config, *world, str(tmp_path / "none")))
    assert (found["validation/missing"], found["validation/asked"]) == (10, 15)
    assert "validation/errors" not in found


def test_a_judge_that_is_down_ends_the_training_as_it_does_from_a_reward(
    world: tuple[Artifact, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unirg.metrics.judge_endpoint.pause", lambda *_: None)  # no further attempt
    config = SFTConfig(**JUDGED, judge_url="http://127.0.0.1:9/v1")
    with pytest.raises(
        Unavailable, match=r"the judge at http://127\.0\.0\.1:9/v1 cannot be reached: start it"
    ):
        sft(config, *world, str(tmp_path))
    assert list(tmp_path.glob("sft/*")) == []


def test_the_judge_of_the_validation_is_that_of_the_rewards_within_one_budget(
    world: tuple[Artifact, Artifact], server: Server, tmp_path: Path
) -> None:
    """Eight rollouts take eight calls; of the ten of the budget two are left for five studies."""
    settings = JUDGED | {
        **{"batch_size": 8, "group_size": 4, "micro_batch": 8, "max_completion_tokens": 8, "max_steps": 1},
        **{"rewards": {"bleu2": 0.5, "errors": 0.5}, "save_steps": 1},
    }
    config = GRPOConfig(**settings, judge_url=server.url, judge_calls=10)
    found = validated(grpo(config, *world, str(tmp_path)))
    assert len(server.requests) == 10
    assert (found["validation/errors"], found["validation/missing"]) == (3, 6)


def test_the_judge_is_part_of_the_identity_where_it_is_asked() -> None:
    made: Any = None  # nothing of the inputs is opened
    config = SFTConfig(**JUDGED)
    asked = sft_inputs(config, made, made, None)
    assert (
        asked["judge"]
        != sft_inputs(config.model_copy(update={"judge_model": "other"}), made, made, None)["judge"]
    )
    for unasked in ({"validate_steps": 0}, {"validation_scores": ("bleu2",)}):
        assert "judge" not in sft_inputs(config.model_copy(update=unasked), made, made, None)
    rl = GRPOConfig(**JUDGED | {"batch_size": 16})
    assert grpo_inputs(rl, made, made, None)["judge"] == asked["judge"]


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
    assert callbacks(SFTConfig(), cohort, policy[1], None, None) == []
    with pytest.raises(UserError, match="the validation's score `bertscore` needs its scorer's weights"):
        callbacks(SFTConfig(validate_steps=1), cohort, policy[1], None, None)
    errors: dict[str, Any] = {"validate_steps": 1, "validation_scores": ("bleu2", "errors_significant")}
    needs = "the validation's score `errors_significant` needs a judge: set"
    with pytest.raises(UserError, match=f"{needs} judge_url to an OpenAI-compatible endpoint"):
        callbacks(SFTConfig(**errors, judge_model="judge"), cohort, policy[1], None, None)
    with pytest.raises(UserError, match=f"{needs} judge_model to the model's name at http://there/v1"):
        callbacks(SFTConfig(**errors, judge_url="http://there/v1"), cohort, policy[1], None, None)
    with pytest.raises(UserError, match="no score is named"):
        SFTConfig(validate_steps=1, validation_scores=("bleu3",))
    none = Cohort.open(made(str(tmp_path), studies=4, validate=0.0)[0])
    with pytest.raises(UserError, match="has no study in split validate: stage it with one"):
        callbacks(CONFIG, none, policy[1], None, None)
