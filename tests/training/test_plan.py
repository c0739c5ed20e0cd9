"""Plans against what models and trainings really take, and against 8B numbers worked out by hand."""

from __future__ import annotations

import json
import math
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from unirg import checkpoint
from unirg.artifact import Artifact
from unirg.cli import main
from unirg.cohort.stage import StageConfig, stage
from unirg.config import load
from unirg.errors import UserError
from unirg.training import policy, train
from unirg.training.grpo import GRPOConfig
from unirg.training.plan import GIB, Plan, Pool, plan
from unirg.training.policy import ToyConfig, toy_policy
from unirg.training.settings import TrainConfig
from unirg.training.sft import SFTConfig
from unirg.training.sizes import Sample, Shape, shape_of
from unirg.training.workload import Workload, measured

N = 8_767_123_696
"""Parameters of Qwen3-VL-8B-Instruct, as the hub states them."""
EIGHT_B = shape_of("plan/model_qwen3_vl_8b")
H100, LAPTOP = load(Pool, "plan/pool_h100"), load(Pool, "plan/pool_laptop")
LANGUAGE = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def planned(config: TrainConfig, pool: Pool = H100, shape: Shape = EIGHT_B) -> Plan:
    work = load(Workload, "plan/workload_paper")
    return plan(config, shape, pool, work.studies, work.sample(config, shape))


def sft(*overrides: str) -> SFTConfig:
    return load(SFTConfig, "paper/sft", overrides)


def grpo(*overrides: str) -> GRPOConfig:
    return load(GRPOConfig, "paper/grpo_step2", overrides)


def gib(made: Plan) -> dict[str, float]:
    return {part.name: part.bytes / GIB for part in made.parts}


# Against real models


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Shape]:
    """A toy policy of uneven sizes, and its shape as its saved config.json gives it."""
    sizes = ToyConfig(hidden_size=96, layers=3, vision_hidden_size=64, vision_depth=3)
    model, processor = toy_policy(sizes, ["The heart is enlarged ."] * 20, seed=0)
    folder = tmp_path_factory.mktemp("model")
    checkpoint.save(model, processor, folder)
    return model, shape_of(str(folder))


def test_parameters_are_exact(toy: tuple[Any, Shape]) -> None:
    model, shape = toy
    assert shape.parameters == model.num_parameters()
    assert EIGHT_B.parameters == N
    untied = EIGHT_B.model_copy(update={"tie_word_embeddings": True})
    assert untied.parameters == N - 151_936 * 4_096


@pytest.mark.parametrize("targets", [LANGUAGE, ("qkv",), ("proj", "linear_fc1"), ("lm_head",)])
def test_adapters_are_counted_as_peft_would_place_them(
    toy: tuple[Any, Shape], targets: tuple[str, ...]
) -> None:
    model, shape = toy
    found = 0
    for name, module in model.named_modules():
        if hasattr(module, "weight") and f".{name}".endswith(tuple(f".{target}" for target in targets)):
            outputs, inputs = module.weight.shape[0], module.weight[0].numel()
            found += 8 * (inputs + outputs)
    assert shape.adapters(8, targets) == found


def test_an_adapter_for_nothing_is_refused() -> None:
    with pytest.raises(UserError, match=r"lora\.targets names c_attn; matrices are self_attn\.q_proj, "):
        EIGHT_B.adapters(8, ("c_attn",))


def one_step(model: Any, checkpointing: bool, steps: int = 1) -> tuple[float, float, float]:
    """Bytes that autograd keeps, of gradients, and of AdamW's state, in a step of 4 samples of 120 tokens."""
    import torch

    config = model.config
    ids = torch.full((4, 120), 100)
    ids[:, 1:18] = torch.tensor([config.vision_start_token_id] + [config.image_token_id] * 16)
    ids[:, 18] = config.vision_end_token_id
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    model.train()
    (model.gradient_checkpointing_enable if checkpointing else model.gradient_checkpointing_disable)()
    optimiser = torch.optim.AdamW(model.parameters())
    for _ in range(steps):
        optimiser.zero_grad()
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = model(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                mm_token_type_ids=(ids == config.image_token_id).int(),
                pixel_values=torch.randn(4 * 64, 3 * 2 * 16 * 16),
                image_grid_thw=torch.tensor([[1, 8, 8]] * 4),
                labels=ids,
            ).loss
        loss.backward()
        optimiser.step()
    gradients = sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
    state = sum(t.nbytes for s in optimiser.state.values() for name, t in s.items() if name != "step")
    return sum(kept.values()) - 4 * 120 * config.text_config.vocab_size * 4, gradients, state


@pytest.mark.parametrize("checkpointing", [False, True])
def test_memory_is_what_a_step_keeps(toy: tuple[Any, Shape], checkpointing: bool) -> None:
    model, shape = toy
    config = SFTConfig(micro_batch=4, batch_size=4, gradient_checkpointing=checkpointing)
    sample = Sample(prompt=90, report=14, images=1, image_tokens=16)
    parts = gib(plan(config, shape, LAPTOP, 8, sample))
    activations, gradients, state = one_step(model, checkpointing)
    assert parts["weights"] * GIB == parts["gradients"] * GIB == gradients == 4 * shape.parameters
    assert parts["optimiser"] * GIB == state
    planned = parts["activations"] * GIB
    if checkpointing:  # the layer that is computed anew is not kept in the forward pass, so not measured
        text, vision = shape.text_config, shape.vision_config
        deep = shape.activations(480, 256, False, False) - shape.activations(0, 256, False, False)
        planned -= deep / text.num_hidden_layers
        assert vision.depth == text.num_hidden_layers
    assert 0.85 < planned / activations < 1.15


STEP = """
import gc, resource, sys, torch
from unirg.training.policy import ToyConfig, toy_policy
from tests.training.test_plan import one_step
sizes = ToyConfig(hidden_size=512, layers=6, vision_hidden_size=256, vision_depth=4)
model, _ = toy_policy(sizes, ["The heart is enlarged ."] * 20, seed=0)
weights = sum(p.nbytes for p in model.parameters())
small, _ = toy_policy(ToyConfig(), ["The heart is enlarged ."] * 20, seed=0)
one_step(small, False)  # what torch itself takes is there before
gc.collect()
resident = int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
one_step(model, False, steps=2)  # the first makes the optimiser's state when activations are gone
model.config.save_pretrained(sys.argv[1])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - resident + weights)
"""


@pytest.mark.soak
def test_a_process_takes_what_was_planned_within_a_quarter(tmp_path: Path) -> None:
    command = [sys.executable, "-c", STEP, str(tmp_path)]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root, timeout=240)
    took = float(done.stdout)
    (tmp_path / "tokenizer_config.json").write_text("{}")
    sample = Sample(prompt=90, report=14, images=1, image_tokens=16)
    config = SFTConfig(micro_batch=4, batch_size=4)
    assert 0.75 < plan(config, shape_of(str(tmp_path)), LAPTOP, 8, sample).bytes / took < 1.25


# Against real trainings


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Artifact, Artifact]:
    store = str(tmp_path_factory.mktemp("world"))
    cohort = stage(StageConfig(studies=16, size=64, workers=1), store)
    return cohort, policy.base(policy.BaseConfig(), cohort, store)


def test_a_trainings_tokens_and_steps_are_exact(world: tuple[Artifact, Artifact], tmp_path: Path) -> None:
    cohort, base = world
    settings = ["micro_batch=2", "batch_size=4", "epochs=2", "prior_share=1"]
    config = load(SFTConfig, None, settings)
    studies, sample = measured(cohort, base, config)
    made = plan(config, shape_of(str(base.directory / checkpoint.MODEL)), LAPTOP, studies, sample)
    done = train("sft", None, settings, cohort.uri, base.uri, str(tmp_path))
    log = [json.loads(line) for line in done.path(checkpoint.LOG).read_text().splitlines()]
    assert sample.images > 1
    assert studies == done.manifest.counts["studies"]
    assert made.steps == done.manifest.counts["steps"]
    whole = {name: sum(entry.get(name, 0) for entry in log) for name in ("tokens", "images")}
    assert round(config.epochs * studies * sample.length) == whole["tokens"]
    assert round(config.epochs * studies * sample.images) == whole["images"]


@pytest.mark.parametrize("settings", [["updates=1"], ["updates=2"], ["passes=2", "epochs=1.5"]])
def test_the_steps_of_grpo_are_what_trl_makes_of_its_data(
    world: tuple[Artifact, Artifact], tmp_path: Path, settings: list[str]
) -> None:
    from unirg.training.grpo import arguments
    from unirg.training.run import prepare

    common = ["micro_batch=2", "batch_size=4", "group_size=2", "save_steps=2", *settings]
    config = load(GRPOConfig, None, common)
    studies, sample = measured(*world, config)
    made = plan(config, shape_of(str(world[1].directory / checkpoint.MODEL)), LAPTOP, studies, sample)
    prepare(config)
    given = {
        "output_dir": str(tmp_path),
        "per_device_train_batch_size": 2,
        "use_cpu": True,
        "num_train_epochs": config.epochs,
        "report_to": [],
    }
    assert made.steps == trl_steps(arguments(config, given, 0), studies, config.epochs)


def trl_steps(args: Any, studies: int, epochs: float) -> int:
    """What GRPOTrainer would count, from its own sampler, by transformers' arithmetic."""
    from torch.utils.data import DataLoader
    from trl.trainer.utils import RepeatSampler

    sampler = RepeatSampler(
        data_source=range(studies),
        mini_repeat_count=args.num_generations,
        batch_size=args.generation_batch_size // args.num_generations,
        repeat_count=args.num_iterations * args.steps_per_generation,
    )
    rows = args.per_device_train_batch_size * args.steps_per_generation
    loader = DataLoader(list(range(studies)), batch_size=rows, sampler=sampler)
    return math.ceil(epochs * math.ceil(len(loader) / args.gradient_accumulation_steps))


# Against numbers worked out by hand


def test_eight_billion_parameters_under_zero_take_what_its_paper_says() -> None:
    parts = gib(planned(sft()))
    assert parts["weights"] == pytest.approx(2 * N / GIB)  # 16.33
    assert parts["gradients"] == pytest.approx(2 * N / 8 / GIB)  # 2.04
    assert parts["optimiser"] == pytest.approx(12 * N / 8 / GIB)  # 12.25
    thirds = gib(planned(sft("zero=3", "processes=32", "micro_batch=4")))
    assert thirds["weights"] == pytest.approx(2 * N / 32 / GIB)
    assert thirds["gathered weights"] == pytest.approx(2 * 2 * 151_936 * 4_096 / GIB)
    assert EIGHT_B.cache_per_token == 2 * 36 * 8 * 128 * 2  # bytes: 144 KiB
    assert EIGHT_B.image_tokens(512) == 256
    # Rank 16: in each of 36 layers q and o 2 x (4096 + 4096), k and v 2 x (4096 + 1024), three of the MLP.
    assert EIGHT_B.adapters(16, LANGUAGE) == 36 * 16 * (2 * 8_192 + 2 * 5_120 + 3 * 16_384)


def test_plain_training_takes_sixteen_bytes_a_parameter_and_autocast_two_more() -> None:
    pool = H100.model_copy(update={"memory_gib": 400.0})
    parts = gib(planned(sft("zero=0", "processes=1"), pool))
    names = ("weights", "gradients", "optimiser", "autocast")
    assert [parts[name] * GIB / N for name in names] == pytest.approx([4, 4, 8, 2])
    assert "autocast" not in gib(planned(sft("zero=0", "processes=1", "bf16=false"), pool))


def test_adapters_leave_gradients_and_state_to_themselves() -> None:
    parts = gib(planned(sft("processes=1", "lora={}")))
    trained = EIGHT_B.adapters(16, LANGUAGE)
    assert [parts[name] * GIB for name in ("gradients", "optimiser")] == [2 * trained, 12 * trained]
    assert "reference policy" not in gib(planned(grpo("lora={}")))


@pytest.mark.parametrize(("images", "prompt", "tera"), [(1, 112, 22), (2, 252, 42)])
def test_a_trained_sample_costs_what_was_reckoned_before(images: int, prompt: float, tera: float) -> None:
    """STACK's 22 and 42 TFLOP, reckoned apart from this code."""
    sample = Sample(prompt, 120, images, 256)
    assert 3 * EIGHT_B.forward_flops(sample) / 1e12 == pytest.approx(tera, rel=0.15)


def test_reports_that_share_a_prompt_cost_less_than_each_with_its_own() -> None:
    sample = Sample(112, 120, 1, 256)
    shared, apart = EIGHT_B.forward_flops(sample, reports=16), 16 * EIGHT_B.forward_flops(sample)
    assert 2.5 < apart / shared < 4.1  # (368 + 120) x 16 tokens against 368 + 120 x 16, and the images


def test_hours_and_cost_of_the_papers_sft_are_its_operations_over_the_pools_rate() -> None:
    made = planned(sft())
    assert made.steps == 6_564  # 3 x ceil(560,000 / 256)
    assert made.tokens_per_step == 256 * 488
    work = 6_564 * 256 * 3 * EIGHT_B.forward_flops(made.sample)
    assert made.seconds == pytest.approx((work / (8 * 0.40 * 989e12), work / (8 * 0.33 * 989e12)))
    assert planned(sft("processes=32", "micro_batch=4")).seconds == pytest.approx(
        tuple(second / 4 for second in made.seconds or ())
    )


def test_the_papers_rl_steps_take_their_tokens_over_the_pools_rate() -> None:
    made = planned(grpo())
    assert made.steps == 35_000  # 560,000 studies x 16 rollouts / 256
    tokens = 35_000 * 256 / 8 * made.sample.length * N / 8.03e9
    assert made.seconds == pytest.approx((tokens / 2161, tokens / 1562))
    assert planned(grpo("rollouts=transformers")).seconds is None


def test_with_rl_come_the_reference_policy_the_encoders_and_vllm() -> None:
    parts = gib(planned(grpo()))
    assert parts["reference policy"] == pytest.approx(2 * N / 8 / GIB)
    assert parts["reward encoders"] == pytest.approx(4 * (2 * 109_482_240 + 82_118_400) / GIB)
    assert parts["vLLM"] == pytest.approx(0.3 * 79.6)
    without = gib(planned(grpo("kl=0", "rewards={bleu2: 1}", "rollouts=server", "vllm_url=http://x")))
    assert {"reference policy", "reward encoders", "vLLM", "KV cache"} & set(without) == set()
    cached = planned(grpo("rollouts=transformers", "rollout_batch=16"))
    length = cached.sample.seen + 512
    assert gib(cached)["KV cache"] == pytest.approx(16 * length * 147_456 / GIB)


# What cannot fit


def refused(config: TrainConfig, pool: Pool = H100) -> str:
    with pytest.raises(UserError) as raised:
        planned(config, pool)
    return str(raised.value)


def test_a_full_training_on_one_gpu_is_refused_and_every_remedy_fits() -> None:
    said = refused(sft("processes=1"))
    assert said.startswith("137.1 GiB of each H100 SXM are needed and 73.2 are there to use")
    assert "(the largest part: optimiser, 98.0)" in said
    remedies = said.split("what fits: ")[1].split("; ")
    assert remedies == ["offload=True zero=2", "lora={}"]
    for remedy in remedies:
        planned(sft("processes=1", *remedy.split()))


@pytest.mark.parametrize(
    ("make", "remedy"),
    [
        (lambda: sft("zero=0"), "zero=2"),
        (lambda: sft("processes=4", "micro_batch=64"), "micro_batch=32"),
        (lambda: sft("gradient_checkpointing=false", "micro_batch=16"), "gradient_checkpointing=True"),
        (lambda: grpo("zero=2"), "zero=3"),
        (lambda: grpo("zero=2"), "rollouts=server vllm_url=..."),
        (lambda: grpo("vllm_memory=0.1"), "vllm_memory=0.3"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_does(make: Callable[[], TrainConfig], remedy: str) -> None:
    assert remedy in refused(make()).split("what fits: ")[1].split("; ")


def test_where_no_single_change_is_enough_several_are_named_together() -> None:
    small = H100.model_copy(update={"memory_gib": 24.0})
    said = refused(sft(), small)
    assert re.search(r"what fits: .*offload=True zero=3 gradient_checkpointing=True micro_batch=\d", said)


def test_where_nothing_is_enough_it_says_so() -> None:
    tiny = H100.model_copy(update={"memory_gib": 2.0})
    assert refused(sft(), tiny).endswith("nothing here makes it fit: take larger GPUs")


def test_offloaded_state_has_to_fit_the_machine() -> None:
    said = refused(sft("processes=1", "offload=true"), H100.model_copy(update={"host_gib": 64.0}))
    assert said.startswith("offload needs 98 GiB of a machine that has 64")


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (["processes=64"], r"processes = 64, and the pool has 4 x 8 H100 SXM: lower it"),
        (["micro_batch=6"], r"batch_size = 256 is no multiple of micro_batch x processes = 48"),
    ],
)
def test_what_cannot_start_is_refused(config: list[str], said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        planned(sft(*config))


# On the command line


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as left:
        main(list(arguments))
    return int(left.value.code or 0)


def test_a_plan_is_printed_and_starts_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    store = tmp_path / "store"
    assert run("train", "sft", "--plan", "--recipe", "paper/sft", "--store", str(store)) == 0
    said = capsys.readouterr().out
    assert "8,767,123,696 parameters, 8,767,123,696 trained (100.0%)" in said
    assert re.search(r"^hours +\d", said, re.M)
    assert re.search(r"^cost .* at 4\.92 an hour for each$", said, re.M)
    assert not store.exists()


def test_a_plan_of_a_cohort_and_its_parent_counts_their_own(
    world: tuple[Artifact, Artifact], capsys: pytest.CaptureFixture[str]
) -> None:
    cohort, base = world
    own = ["--cohort", cohort.uri, "--parent", base.uri, "--pool", "plan/pool_laptop"]
    assert run("train", "sft", "--plan", "--recipe", "toy/sft", *own) == 0
    said = capsys.readouterr().out
    assert f"{base.manifest.counts['parameters']:,} parameters" in said
    assert "cost" not in said  # the laptop has no price


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["base", "--plan"], "no plan for base: there are plans for sft and grpo"),
        (["sft", "--recipe", "paper/sft"], "--cohort is missing"),
        (["sft", "--plan", "--recipe", "paper/sft", "processes=1"], "what fits: offload=True zero=2"),
        (["sft", "--plan", "--recipe", "paper/sft", "--model", "."], "no model at ."),
        (["sft", "--plan", "--recipe", "paper/sft", "--model", "toy"], "no recipe named toy"),
    ],
)
def test_a_mistake_is_one_line_on_stderr(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("train", *arguments) == 2
    assert said in capsys.readouterr().err


def test_a_model_of_another_architecture_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text("{}")
    for content, said in (("{", "is not JSON"), ('{"model_type": "llama"}', "is not of a Qwen3-VL")):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(UserError, match=said):
            shape_of(str(tmp_path))


TOPOLOGY = Path(__file__).parents[2] / "docs" / "topology.md"
PASTED = re.findall(r"```\n\$ unirg (.*)\n([^`]*)```", TOPOLOGY.read_text())


@pytest.mark.parametrize(("command", "output"), PASTED, ids=range(len(PASTED)))
def test_what_the_topology_shows_is_what_the_command_prints(
    command: str, output: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run(*shlex.split(command))
    told = capsys.readouterr()
    assert (told.out or told.err.removeprefix("unirg: ")) == output


def test_the_topology_shows_1_8_and_32_gpus() -> None:
    shown = " ".join(output for _, output in PASTED)
    assert all(f"pool        {number} of" in shown for number in (1, 8, 32))
