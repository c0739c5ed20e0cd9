"""The GRPO stage: what its configuration refuses, and a run that an alarm or a judge stops."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from unirg import checkpoint
from unirg.artifact import Artifact
from unirg.cohort.stage import StageConfig, stage
from unirg.errors import UserError
from unirg.training import policy, run
from unirg.training.alarms import Alarms
from unirg.training.grpo import GRPOConfig, arguments, grpo

TINY: dict[str, Any] = {
    "batch_size": 8,
    "group_size": 4,
    "micro_batch": 8,
    "max_completion_tokens": 8,
    "rewards": {"bleu2": 0.5, "rouge_l": 0.5},
    "save_steps": 1,
    "max_steps": 3,
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Artifact, Artifact]:
    """A handful of phantoms, and an untrained policy for them."""
    store = str(tmp_path_factory.mktemp("world"))
    cohort = stage(StageConfig(studies=12, size=64, workers=1), store)
    small = policy.ToyConfig(image_size=64)
    return cohort, policy.base(policy.BaseConfig(toy=small), cohort, store)


def log_of(made: Artifact) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (made.directory / checkpoint.LOG).read_text().splitlines()]


def test_an_alarm_stops_a_run_whose_checkpoints_are_kept_and_a_warning_goes_on_from_them(
    world: tuple[Artifact, Artifact], tmp_path: Path
) -> None:
    loud: dict[str, Any] = {"window": 2, "entropy_floor": 1e6}
    with pytest.raises(
        UserError, match=r"alarm entropy stops training at step 2: entropy .*lower learning_rate"
    ):
        grpo(GRPOConfig(**TINY, alarms=Alarms(entropy="stop", **loud)), *world, str(tmp_path))
    made = grpo(GRPOConfig(**TINY, alarms=Alarms(entropy="warn", **loud)), *world, str(tmp_path))
    entries = log_of(made)
    assert [entry["step"] for entry in entries if "alarm/entropy" in entry] == [2]
    assert [entry["step"] for entry in entries if "entropy" in entry] == [1, 2, 3]


def test_a_judge_that_is_down_stops_the_run_and_says_where_it_should_be(
    world: tuple[Artifact, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unirg.metrics.judge_endpoint.pause", lambda *_: None)  # no further attempt
    settings = {**TINY, "rewards": {"bleu2": 0.5, "errors": 0.5}, "judge_model": "judge"}
    config = GRPOConfig(**settings, judge_url="http://127.0.0.1:9/v1", kl=0.03)
    with pytest.raises(UserError, match=r"the judge at http://127\.0\.0\.1:9/v1 cannot be reached: start it"):
        grpo(config, *world, str(tmp_path))
    assert list(tmp_path.glob("grpo/*")) == []


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"batch_size": 9}, "batch_size 9 is no multiple of group_size 4"),
        ({"updates": 2}, "save_steps 1 is no multiple of updates x passes = 2"),
        ({"updates": 2, "passes": 3, "save_steps": 9}, "save_steps 9 is no multiple of updates x passes = 6"),
        ({"rollouts": "server"}, "server needs vllm_url"),
        (
            {"rollouts": "server", "vllm_url": "http://x", "rollout_batch": 6},
            "rollout_batch 6 or the 8 rollouts",
        ),
        (
            {"rollouts": "server", "vllm_url": "http://x", "rollout_batch": 4, "processes": 4},
            "rollout_batch 4 or the 2 rollouts",
        ),
        (
            {"export": "best", "validate_steps": 3, "updates": 2, "save_steps": 2},
            "validate_steps 3 is no multiple of updates x passes = 2",
        ),
        ({"share": "everything"}, "'nothing', 'images' or 'prompt'"),
        ({"alarms": {"entropy": "shout"}}, "'off', 'warn' or 'stop'"),
    ],
)
def test_what_cannot_be_trained_with_is_refused(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        GRPOConfig(**{**TINY, **settings})


@pytest.mark.parametrize("rollouts", ["colocate", "server"])
def test_vllm_is_asked_for_in_vain_where_it_is_absent(
    rollouts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: Any = "0" * 64  # a digest: nothing of the inputs is opened
    settings = GRPOConfig(**{**TINY, "rollouts": rollouts, "vllm_url": "http://there:8000"})
    monkeypatch.setattr("unirg.training.grpo.find_spec", lambda _: None)
    with pytest.raises(
        UserError, match=rf"rollouts: {rollouts} needs .*vLLM is not installed: .*transformers"
    ):
        grpo(settings, made, made, str(tmp_path))
    monkeypatch.setattr("unirg.training.grpo.find_spec", lambda name: name)
    monkeypatch.setattr(run, "has_gpu", lambda: False)
    with pytest.raises(UserError, match="torch sees no GPU"):
        grpo(settings, made, made, str(tmp_path))


def test_trl_is_told_the_papers_objective_and_samples_the_whole_distribution() -> None:
    config = GRPOConfig(**{**TINY, "kl": 0.03, "updates": 2, "save_steps": 2, "rollouts": "colocate"})
    common = {"output_dir": "/nowhere", "use_cpu": True, "bf16": False, "per_device_train_batch_size": 8}
    told = arguments(config, common, 7)
    assert (told.epsilon, told.epsilon_high, told.beta) == (0.2, 0.28, 0.03)
    assert not told.use_bias_correction_kl
    assert (told.temperature, told.top_p, told.top_k) == (1.0, 1.0, 0)
    assert (told.use_vllm, told.vllm_mode) == (True, "colocate")
    assert told.vllm_importance_sampling_mode == "token_truncate"
    assert told.vllm_max_model_length == 4096
    assert told.generation_kwargs == {"logit_bias": {7: -100}}
    assert told.steps_per_generation == 2 * told.gradient_accumulation_steps == 2


def test_alarms_vllm_and_saving_leave_the_identity_alone_and_what_is_shared_does_not() -> None:
    plain = GRPOConfig(**TINY)

    def key(**changes: Any) -> dict[str, Any]:
        from unirg import config

        return config.identity(GRPOConfig(**{**TINY, **changes}))

    assert key(alarms=Alarms(entropy="stop"), vllm_memory=0.5, reward_attempts=9) == key()
    assert key(share="nothing") != key()
    assert plain.rollout_steps == 1
