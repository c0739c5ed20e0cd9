"""A pipeline as KFP gets it: its compiled text, the digest that names this version of it, its parameters.

    found = package("retrain")
    given = parameters(found, ["store=s3://bucket/unirg", "watch_overrides=[minimum=50]"])

Parameters are held against the compiled pipeline before anything is sent: KFP itself would find a wrong one
only when the run begins, which for a schedule is some night.
"""

from __future__ import annotations

import difflib
import json
import math
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from kfp import compiler

from pipelines.compile import PIPELINES
from unirg.errors import UserError
from unirg.storage import sha256

KINDS: dict[str, tuple[type | tuple[type, ...], str]] = {
    "NUMBER_INTEGER": (int, "a whole number"),
    "NUMBER_DOUBLE": ((int, float), "a number"),
    "BOOLEAN": (bool, "true or false"),
    "LIST": (list, "a list, such as [a, b]"),
    "STRUCT": (dict, "a mapping, such as {a: 1}"),
}
"""KFP's types of parameters, but for texts, which are taken as they are."""


@dataclass(frozen=True)
class Package:
    """One version of a pipeline."""

    name: str
    """What KFP calls the pipeline, such as unirg-train."""
    text: bytes = field(repr=False)
    """Compiled: IR YAML."""
    inputs: Mapping[str, Mapping[str, Any]] = field(repr=False)
    """Parameters by name, as KFP's specification defines them."""

    @property
    def version(self) -> str:
        """What KFP calls this version: the same text, the same name."""
        return f"{self.name}-{sha256(self.text)[:16]}"


@cache
def package(pipeline: str) -> Package:
    """Compile a pipeline of ours.

    Args:
        pipeline: its key in `PIPELINES`.

    Raises:
        UserError: there is none of that name.
    """
    if pipeline not in PIPELINES:
        raise UserError(f"no pipeline {pipeline}: {_hint(pipeline, PIPELINES)}")
    with tempfile.TemporaryDirectory(prefix="unirg-") as folder:
        target = Path(folder, "pipeline.yaml")
        compiler.Compiler().compile(PIPELINES[pipeline], str(target))
        text = target.read_bytes()
    found = next(yaml.safe_load_all(text))  # a second document holds what is Kubernetes' alone
    inputs = found["root"].get("inputDefinitions", {}).get("parameters", {})
    return Package(found["pipelineInfo"]["name"], text, inputs)


def parameters(of: Package, given: Sequence[str]) -> dict[str, Any]:
    """`name=value` words -> values of a run, each of the type that the pipeline wants.

    Texts are taken as they are, everything else is read as YAML, of which JSON is a part.

    Raises:
        UserError: a parameter is unknown, given twice, of another type, or missing.
    """
    values: dict[str, Any] = {}
    for word in given:
        name, equals, text = word.partition("=")
        if not equals or not name:
            raise UserError(f"parameter {word!r} is not of the form name=value")
        if name not in of.inputs:
            raise UserError(f"{of.name} has no parameter {name}: {_hint(name, of.inputs)}")
        if name in values:
            raise UserError(f"parameter {name} is given twice")
        kind = of.inputs[name]["parameterType"]
        values[name] = text if kind == "STRING" else _value(word, kind, text)
    missing = [
        f"{name} ({definition.get('description', 'no description')})"
        for name, definition in of.inputs.items()
        if name not in values and not definition.get("isOptional")
    ]
    if missing:
        raise UserError(f"{of.name} needs {', '.join(missing)}: give name=value")
    return values


def _value(word: str, kind: str, text: str) -> Any:
    wanted, told = KINDS[kind]
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise UserError(f"parameter {word!r}: the value is not valid YAML") from None
    if kind == "NUMBER_DOUBLE" and isinstance(value, str) and re.fullmatch("[-+0-9.eE]+", value):
        try:
            value = float(value)  # YAML 1.1 reads 1e-4 (no dot) as text
        except ValueError:
            value = None
    whole = isinstance(value, wanted) and (kind == "BOOLEAN" or not isinstance(value, bool))
    if not whole or (isinstance(value, float) and not math.isfinite(value)):
        raise UserError(f"parameter {word!r}: the pipeline wants {told}")
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        raise UserError(
            f"parameter {word!r}: a part of it (a date?) is no JSON; put it into quotes"
        ) from None
    return value


def _hint(name: str, among: Mapping[str, object]) -> str:
    near = difflib.get_close_matches(name, among, n=1)
    return f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(among))}"
