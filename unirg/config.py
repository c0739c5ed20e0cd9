"""YAML + dotted overrides -> one frozen pydantic model per stage, and its resolved form back.

Every field changes a stage's output, and so its identity, unless it is declared `operational`: a field
forgotten there costs a needless rerun, never a stale result.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from unirg.errors import UserError


class Config(BaseModel):
    """Base of every stage's configuration: frozen, closed, documented field by field."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        serialize_by_alias=True,
        use_attribute_docstrings=True,
    )


ConfigT = TypeVar("ConfigT", bound=Config)


def operational(default: Any, **constraints: Any) -> Any:
    """Declare a field that cannot change the output (workers, URLs, timeouts): kept out of the identity."""
    return Field(default=default, json_schema_extra={"operational": True}, **constraints)


def load(
    model: type[ConfigT], recipe: str | None = None, overrides: Sequence[str] = (), **fields: Any
) -> ConfigT:
    """Resolve a configuration: recipe file, then `a.b=c` overrides, then `fields` set by the caller.

    Args:
        recipe: the name of a shipped recipe such as `toy/sft`, or a path to a YAML file, with or without its
            suffix; None = defaults.
        overrides: `dotted.key=value`, the value read as YAML (`lr=1e-4`, `rewards.bleu2=0.5`, `x=[1, 2]`).

    Raises:
        UserError: the file is missing or no mapping, a key is unknown (the nearest valid one is named),
            or a value is out of range (the value is named).
    """
    data = _read(recipe) if recipe else {}
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise UserError(f"override {override!r} is not of the form key=value")
        _set(data, key.strip().split("."), _parse(text, override), override)
    data.update(fields)
    return validate(model, data, origin=recipe or model.__name__)


def _parse(text: str, override: str) -> Any:
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise UserError(f"override {override!r}: the value is not valid YAML") from None
    if isinstance(value, str):  # YAML 1.1 reads 1e-4 (no dot) as text
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _set(data: dict[str, Any], keys: list[str], value: Any, override: str) -> None:
    for key in keys[:-1]:
        data = data.setdefault(key, {})
        if not isinstance(data, dict):
            raise UserError(f"override {override!r}: {key} holds a value, not a group of keys")
    data[keys[-1]] = value


def shipped_recipes() -> list[str]:
    """Names of the recipes in the package, such as `toy/sft`."""
    root = resources.files("unirg") / "recipes"
    with resources.as_file(root) as folder:
        return sorted(str(path.relative_to(folder).with_suffix("")) for path in folder.rglob("*.yaml"))


def _read(recipe: str) -> dict[str, Any]:
    path = Path(recipe)
    if recipe not in shipped_recipes() and Path(f"{recipe}.yaml").is_file():
        path = Path(f"{recipe}.yaml")  # a pipeline names recipes of a folder of the user's so
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise UserError(
                f"no recipe at {recipe}: name a YAML file or one of {', '.join(shipped_recipes())}"
            )
        try:
            text = path.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read {recipe} as text ({type(error).__name__})") from None
    elif recipe in shipped_recipes():
        text = (resources.files("unirg") / "recipes" / f"{recipe}.yaml").read_text()
    else:
        near = difflib.get_close_matches(recipe, shipped_recipes(), n=1)
        hint = f"did you mean {near[0]}?" if near else f"shipped are {', '.join(shipped_recipes())}"
        raise UserError(f"no recipe named {recipe}: {hint}")
    try:
        data = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise UserError(f"{recipe} is not valid YAML: {error}") from None
    if not isinstance(data, dict):
        raise UserError(f"{recipe} holds {type(data).__name__}, not a mapping of keys to values")
    return data


def validate(model: type[ConfigT], data: dict[str, Any], origin: str) -> ConfigT:
    """Build the model, naming every wrong key and value."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        lines = [_explain(model, dict(problem)) for problem in error.errors()]
        raise UserError(f"{origin}: " + "; ".join(lines)) from None


def _explain(model: type[BaseModel], problem: dict[str, Any]) -> str:
    location = [str(part) for part in problem["loc"]]
    dotted = ".".join(location)
    if problem["type"] == "extra_forbidden":
        valid = _valid_keys(model)
        near = difflib.get_close_matches(dotted, valid, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"valid keys are {', '.join(sorted(valid))}"
        return f"unknown key {dotted}: {hint}"
    if problem["type"] == "value_error":  # a rule of ours between fields, which names their values itself
        message = str(problem["msg"]).removeprefix("Value error, ")
        return f"{dotted}: {message}" if dotted else message
    if problem["type"] == "missing":
        return f"{dotted} is required"
    return f"{dotted} = {problem['input']!r}: {problem['msg']}"


def _valid_keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    keys = []
    for name, field in model.model_fields.items():
        key = prefix + (field.alias or name)
        keys.append(key)
        groups = get_args(field.annotation) if isinstance(field.annotation, UnionType) else [field.annotation]
        for group in groups:  # of `Group | None`, the group
            if isinstance(group, type) and issubclass(group, BaseModel):
                keys += _valid_keys(group, f"{key}.")
    return keys


def resolved(config: Config) -> dict[str, Any]:
    """Every field with its value, as JSON types."""
    return config.model_dump(mode="json")


def identity(config: Config) -> dict[str, Any]:
    """The fields that change the output, as JSON types: what a stage's action key is made of."""
    kept: dict[str, Any] = {}
    dumped = resolved(config)
    for name, field in type(config).model_fields.items():
        extra = field.json_schema_extra
        if isinstance(extra, dict) and extra.get("operational"):
            continue
        value = getattr(config, name)
        kept[name] = identity(value) if isinstance(value, Config) else dumped[field.alias or name]
    return kept


def canonical_json(value: Any) -> bytes:
    """One byte string for one value: sorted keys, no white space, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
