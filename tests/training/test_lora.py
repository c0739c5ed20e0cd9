"""Low-rank adapters: what is kept is a plain model, with them merged."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from unirg import checkpoint
from unirg.artifact import Artifact
from unirg.cohort.stage import StageConfig, stage
from unirg.training import policy, run, train

RANK = 3
SETTINGS = {
    "sft": ["micro_batch=2", "batch_size=4"],
    "grpo": ["micro_batch=4", "batch_size=4", "group_size=2", "max_completion_tokens=16", "kl=0.03"],
}
COMMON = ["max_steps=2", "save_steps=1", "learning_rate=1e-2", f"lora.rank={RANK}"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Artifact, Artifact]:
    """A handful of phantoms, and an untrained policy for them."""
    store = str(tmp_path_factory.mktemp("world"))
    cohort = stage(StageConfig(studies=12, size=64, workers=1), store)
    return cohort, policy.base(policy.BaseConfig(), cohort, store)


def trained(algorithm: str, world: tuple[Artifact, Artifact], store: Path) -> Artifact:
    cohort, base = world
    rewards = ["rewards={bleu2: 0.5, rouge_l: 0.5}"] if algorithm == "grpo" else []
    settings = [*SETTINGS[algorithm], *COMMON, *rewards]
    return train(algorithm, None, settings, cohort.uri, base.uri, str(store))


@pytest.mark.parametrize("algorithm", ["sft", pytest.param("grpo", marks=pytest.mark.soak)])
def test_adapters_are_merged_into_a_plain_model_and_survive_a_kill(
    algorithm: str, world: tuple[Artifact, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForImageTextToText

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run.checkpoint, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            trained(algorithm, world, tmp_path / "killed")
    made = trained(algorithm, world, tmp_path / "undisturbed")
    assert trained(algorithm, world, tmp_path / "killed").digest == made.digest
    log = [json.loads(line) for line in made.path(checkpoint.LOG).read_text().splitlines()]
    if algorithm == "grpo":  # against the policy without adapters, which they begin as
        first, second = (entry["kl"] for entry in log if "kl" in entry)
        assert first == 0 < second
    _, base = world
    weights = f"{checkpoint.MODEL}/model.safetensors"
    before, after = load_file(base.path(weights)), load_file(made.path(weights))
    assert after.keys() == before.keys()
    for name in before:
        change = np.linalg.matrix_rank(after[name] - before[name], tol=1e-4) if after[name].ndim == 2 else 0
        adapted = "language_model" in name and name.endswith("proj.weight")
        assert change == RANK if adapted else np.array_equal(after[name], before[name]), name
    model = AutoModelForImageTextToText.from_pretrained(made.directory / checkpoint.MODEL)
    assert type(model).__name__ == "Qwen3VLForConditionalGeneration"
