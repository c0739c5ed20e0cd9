"""Imports run one way, cost little, and reach for nothing: read from the source of every module."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("unirg", "components", "pipelines")
CLI = {
    *("cli_audit", "cli_cards", "cli_cycles", "cli_endpoints", "cli_evaluate", "cli_metrics", "cli_pipeline"),
    *("cli_promote", "cli_registry", "cli_retention", "cli_watch"),
}
"""Parts of the command line, which `cli` puts together."""
ABOVE = {"cli", *CLI, "components", "pipelines"}
RECORDS = {"lifecycle.audit", "lifecycle.database", "lifecycle.lineage", "lifecycle.store"}
"""What evaluation knows of the lifecycle; the rest of it, the gate before all, reads evaluations."""
STAGES = {*RECORDS, "lifecycle", "evaluation", "scoring", "serving", "training", "cohort", "metrics"}
FOUNDATION = {
    "artifact",
    "checkpoint",
    "cluster",
    "config",
    "errors",
    "journal",
    "objects",
    "processes",
    "prompt_recipes",
    "prompts",
    "storage",
    "study",
    "telemetry",
}
HEAVY = [
    "accelerate",
    "aiobotocore",
    "botocore",
    "datasets",
    "deepspeed",
    "fastapi",
    "kfp",
    "kserve",
    "kubernetes",
    "matplotlib",
    "mlflow",
    "openai",
    "pandas",
    "scipy",
    "sklearn",
    "tokenizers",
    "torch",
    "transformers",
    "trl",
    "uvicorn",
]


def modules() -> dict[str, Path]:
    """Every module of ours, by dotted name."""
    found = {}
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imported(path: Path) -> Iterator[str]:
    """Our modules that a file imports, wherever in it; `from unirg import x` names unirg.x."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            base = node.module or ""
            whole = [f"{base}.{alias.name}" for alias in node.names]
            names = [name if name in MODULES else base for name in whole]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        yield from (name for name in names if name in MODULES)


def part(module: str) -> str:
    """`unirg.training.sft` -> training; `components.stage` -> components; `unirg` -> unirg."""
    top, _, rest = module.partition(".")
    if rest in RECORDS:
        return rest
    return rest.split(".")[0] if top == "unirg" and rest else top


GRAPH = {
    (part(name), part(other), name)
    for name, path in MODULES.items()
    for other in imported(path)
    if part(name) != part(other)
}


def test_every_module_belongs_to_a_layer() -> None:
    assert {part(name) for name in MODULES} <= ABOVE | STAGES | FOUNDATION | {"unirg"}


def test_the_foundation_knows_no_stage_and_no_stage_knows_what_calls_it() -> None:
    up = {(a, b, name) for a, b, name in GRAPH if a in FOUNDATION and b in STAGES | ABOVE}
    up |= {(a, b, name) for a, b, name in GRAPH if a in STAGES and b in ABOVE}
    assert up == set()


def test_of_the_command_line_only_its_verb_for_pipelines_knows_them() -> None:
    allowed = {("pipelines", "components"), ("cli_pipeline", "pipelines")} | {("cli", one) for one in CLI}
    allowed |= {
        ("cli_watch", "cli_evaluate"),
        ("cli_promote", "cli_evaluate"),
        ("cli_promote", "cli_registry"),
        ("cli_cycles", "cli_promote"),
        ("cli_cycles", "cli_registry"),
    }
    across = {(a, b) for a, b, _ in GRAPH if a in ABOVE and b in ABOVE}
    assert across <= allowed


def test_metrics_know_of_no_other_stage() -> None:
    assert {b for a, b, _ in GRAPH if a == "metrics"} <= FOUNDATION


@pytest.mark.parametrize("one", ["training", "serving", "scoring"])
def test_training_serving_and_scoring_meet_in_artifacts_alone(one: str) -> None:
    assert {b for a, b, _ in GRAPH if a == one} & {"training", "serving", "scoring"} == set()


def test_no_two_parts_import_each_other() -> None:
    order = TopologicalSorter[str]()
    for a, b, _ in GRAPH:
        if a not in ABOVE and "unirg" not in (a, b):
            order.add(a, b)
    assert set(order.static_order()) >= STAGES - {"lifecycle"}


def run(script: str, *arguments: str) -> str:
    command = [sys.executable, "-c", script, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


LIGHT = [
    "unirg.cli",
    "unirg.training",
    "unirg.training.sft",
    "unirg.training.grpo",
    "unirg.training.launch",
    "unirg.training.policy",
    "unirg.cohort.stage",
    "unirg.serving.endpoint",
    "unirg.scoring.archive",
    "unirg.evaluation.evaluate",
    "unirg.evaluation.report.render",
]
"""What the command line imports, for help, for a mistake, and to find a stage done."""


def test_what_the_command_line_imports_is_light() -> None:
    script = f"import sys, {', '.join(LIGHT)}; print(*[name for name in {HEAVY} if name in sys.modules])"
    assert run(script) == ""


OFFLINE = """
import importlib, socket, sys

def refuse(*arguments, **options):
    raise AssertionError(f"the network at import: {arguments}")

socket.getaddrinfo = socket.create_connection = refuse
socket.socket.connect = socket.socket.connect_ex = refuse
for name in sys.argv[1].split(","):
    importlib.import_module(name)
"""


def test_no_module_reaches_for_the_network_when_imported() -> None:
    run(OFFLINE, ",".join(sorted(MODULES)))


@pytest.mark.parametrize("name", sorted(MODULES))
def test_a_module_tells_its_story_and_stays_short(name: str) -> None:
    text = MODULES[name].read_text()
    assert len(text.splitlines()) <= 400
    if text.strip():
        assert ast.get_docstring(ast.parse(text)), "no docstring"
