"""Pipelines compile to IR that a cluster can load, and components stay thin adapters."""

from __future__ import annotations

import ast
import inspect
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from kfp import components as kfp_components

import components
from pipelines import compile as compiling

BODY_LINES = 40
FILES = sorted(path for path in Path(components.__file__).parent.glob("*.py") if path.stem != "__init__")


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    written = compiling.compile_all(tmp_path_factory.mktemp("compiled"))
    return {path.stem: path for path in written}


def specification(path: Path) -> dict[str, Any]:
    return next(yaml.safe_load_all(path.read_text()))


def tasks(spec: dict[str, Any]) -> dict[str, Any]:
    return spec["root"]["dag"]["tasks"]


def leaves(spec: dict[str, Any]) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """Tasks that run a component, those inside loops too, by name; each with the inputs it can name."""
    found, dags = {}, [spec["root"], *spec["components"].values()]
    for dag in (each["dag"] for each in dags if "dag" in each):
        for name, task in dag["tasks"].items():
            component = spec["components"][task["componentRef"]["name"]]
            if "executorLabel" in component:
                found[name] = task, component["inputDefinitions"]["parameters"]
    return found


def function_of(file: Path) -> ast.FunctionDef:
    (function,) = (node for node in ast.parse(file.read_text()).body if isinstance(node, ast.FunctionDef))
    return function


@pytest.mark.parametrize("name", sorted(compiling.PIPELINES))
def test_a_compiled_pipeline_loads_again_with_every_parameter_of_its_source(
    compiled: dict[str, Path], name: str
) -> None:
    loaded = kfp_components.load_component_from_file(str(compiled[name]))
    wanted = set(inspect.signature(compiling.PIPELINES[name].pipeline_func).parameters)
    assert set(loaded.component_spec.inputs) == wanted
    assert loaded.name == f"unirg-{name.replace('_', '-')}"


@pytest.mark.parametrize("name", sorted(compiling.PIPELINES))
def test_every_parameter_of_a_pipeline_and_of_its_components_is_described(
    compiled: dict[str, Path], name: str
) -> None:
    spec = specification(compiled[name])
    loops = [part for part in spec["components"].values() if "dag" in part]  # KFP's own, of what they pass on
    for part in [spec["root"], *(part for part in spec["components"].values() if part not in loops)]:
        for parameter, definition in part["inputDefinitions"]["parameters"].items():
            assert definition.get("description"), parameter


@pytest.mark.parametrize("name", sorted(compiling.PIPELINES))
def test_kfp_caches_no_task_as_identity_is_the_artifact_stores(compiled: dict[str, Path], name: str) -> None:
    found = leaves(specification(compiled[name]))
    assert found
    assert not [task for task, (given, _) in found.items() if given["cachingOptions"].get("enableCache")]


@pytest.mark.parametrize("name", sorted(compiling.PIPELINES))
def test_every_task_joins_the_runs_trace_and_writes_to_the_runs_store(
    compiled: dict[str, Path], name: str
) -> None:
    for task, (given, takes) in leaves(specification(compiled[name])).items():
        inputs = given["inputs"]["parameters"]
        assert "traceparent" in takes, task
        for parameter in {"store", "traceparent"} & set(takes):
            passed = inputs[parameter]["componentInputParameter"].removeprefix("pipelinechannel--")
            assert passed == parameter, task


def test_a_sweep_checks_its_grid_trains_each_point_as_a_task_and_tabulates_them(
    compiled: dict[str, Path],
) -> None:
    spec = specification(compiled["sweep"])
    found = tasks(spec)
    (loop,) = (name for name, task in found.items() if "parameterIterator" in task)
    assert found[loop]["dependentTasks"] == ["sweep-points"]
    assert found["sweep-table"]["dependentTasks"] == [loop]
    inside = spec["components"][found[loop]["componentRef"]["name"]]["dag"]["tasks"]
    item = found[loop]["parameterIterator"]["itemInput"]
    assert inside["train"]["inputs"]["parameters"]["overrides"] == {"componentInputParameter": item}


def test_the_training_pipeline_has_the_papers_steps_in_order(compiled: dict[str, Path]) -> None:
    found = tasks(specification(compiled["train"]))
    names = {key: task["taskInfo"]["name"] for key, task in found.items()}
    after = {
        names[key]: {names[other] for other in task.get("dependentTasks", [])} for key, task in found.items()
    }
    chain = ["stage", "train base", "train sft", "train grpo_step1", "train grpo_step2", "serve grpo step 2"]
    for earlier, later in zip(chain, [*chain[1:], "score grpo step 2"], strict=True):
        assert earlier in after[later], later
    assert {name for name in after if name.startswith("score ")} <= after["evaluate"]
    assert "evaluate" in after["report"]
    rewarded = {name for name in after if "weights" in after[name]}
    assert rewarded == {"train sft", "train grpo_step1", "train grpo_step2", "evaluate"}


def test_retraining_does_nothing_without_a_cycle_and_ends_it_last(compiled: dict[str, Path]) -> None:
    spec = specification(compiled["retrain"])
    found = tasks(spec)
    (conditional,) = set(found) - {"watch"}
    assert found[conditional]["triggerPolicy"]["condition"].endswith("!= ''")
    inside = spec["components"][found[conditional]["componentRef"]["name"]]["dag"]["tasks"]
    after = {name: set(task.get("dependentTasks", [])) for name, task in inside.items()}
    assert after["promote"] == {"gate", "grow", "report"}
    assert {"challenger", "evaluate"} <= after["gate"]
    assert not any("promote" in before for before in after.values())


@pytest.mark.parametrize("name", sorted(compiling.PIPELINES))
def test_components_run_in_the_projects_image_and_install_nothing(
    compiled: dict[str, Path], name: str
) -> None:
    for executor in specification(compiled[name])["deploymentSpec"]["executors"].values():
        assert executor["container"]["image"] == components.IMAGE
        assert "pip install" not in " ".join(executor["container"]["command"])


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.stem)
def test_a_component_is_a_thin_adapter_of_one_verb(file: Path) -> None:
    function = function_of(file)
    first, last = function.body[1], function.body[-1]  # after the docstring
    assert function.name == file.stem
    assert (last.end_lineno or 0) - first.lineno + 1 <= BODY_LINES


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.stem)
def test_a_component_imports_only_unirg_and_the_standard_library_and_does_so_in_its_body(file: Path) -> None:
    imported = set()
    for node in ast.walk(function_of(file)):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add((node.module or "").split(".")[0])
    assert "unirg" in imported
    assert imported - {"unirg"} <= set(sys.stdlib_module_names)
