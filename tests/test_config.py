"""Configuration: wrong keys and values are named, overrides are typed, every shipped recipe parses."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, ValidationError, model_validator

from unirg import config
from unirg.config import Config, canonical_json, identity, load, operational, resolved, shipped_recipes
from unirg.errors import UserError

RECIPES = {
    "base": "unirg.training.policy.BaseConfig",
    "sft": "unirg.training.sft.SFTConfig",
    "grpo": "unirg.training.grpo.GRPOConfig",
    "model": "unirg.training.sizes.Shape",
    "pool": "unirg.training.plan.Pool",
    "workload": "unirg.training.workload.Workload",
    "weights": "unirg.training.scorers.WeightsConfig",
    "stage": "unirg.cohort.stage.StageConfig",
    "serve": "unirg.serving.endpoint.ServeConfig",
    "score": "unirg.scoring.archive.ScoreConfig",
    "evaluate": "unirg.evaluation.evaluate.EvaluateConfig",
    "report": "unirg.evaluation.report.render.ReportConfig",
    "gate": "unirg.lifecycle.gate_rules.GateConfig",
    "retrain": "unirg.lifecycle.retrain.RetrainConfig",
    "promote": "unirg.lifecycle.promote.PromoteConfig",
    "comparators": "unirg.prompt_recipes.PromptRecipe",
}
"""Which model reads a recipe, by the first word of its name without its folder; comparators by the folder."""


def kind(recipe: str) -> str:
    folder, name = recipe.rsplit("/", 1)
    return folder if folder == "comparators" else name.partition("_")[0]


def model_of(path: str) -> type[Config]:
    module, name = path.rsplit(".", 1)
    model: type[Config] = getattr(importlib.import_module(module), name)
    return model


class Clip(Config):
    low: float = 0.2
    """Lower."""
    high: float = Field(default=0.28, gt=0)
    """Upper."""


class Settings(Config):
    learning_rate: float = 1e-4
    """Step."""
    steps: int = Field(default=10, ge=1)
    """How many."""
    name: str = "a"
    """What."""
    mode: Literal["pad", "crop"] = "pad"
    """How."""
    hold_out: tuple[str, ...] = ()
    """Whom."""
    rewards: dict[str, float] = {}
    """Weights."""
    clip: Clip = Clip()
    """A group."""
    validate_: float = Field(default=0.1, alias="validate")
    """Its key is not its name."""
    judge_url: str = operational("")
    """Where."""

    @model_validator(mode="after")
    def _even(self) -> Settings:
        if self.steps % 2 and self.name == "even":
            raise ValueError(f"steps {self.steps} is odd")
        return self


# Recipes


@pytest.mark.parametrize("recipe", shipped_recipes())
def test_every_shipped_recipe_parses_into_its_model(recipe: str) -> None:
    made = load(model_of(RECIPES[kind(recipe)]), recipe)
    assert canonical_json(identity(made))


def test_recipes_are_shipped_at_all() -> None:
    assert {"toy/stage", "toy/sft", "paper/sft", "paper/grpo_step1", "paper/grpo_step2"} <= set(
        shipped_recipes()
    )


@pytest.mark.parametrize("path", sorted(set(RECIPES.values())))
def test_every_field_of_a_stage_is_documented(path: str) -> None:
    def undocumented(model: type[Config]) -> list[str]:
        nested = [f.annotation for f in model.model_fields.values()]
        inner = [n for n in nested if isinstance(n, type) and issubclass(n, Config)]
        missing = [name for name, field in model.model_fields.items() if not field.description]
        return missing + [name for each in inner for name in undocumented(each)]

    assert undocumented(model_of(path)) == []


@pytest.mark.parametrize("recipe", shipped_recipes())
def test_a_resolved_configuration_reads_back_as_itself(recipe: str) -> None:
    made = load(model_of(RECIPES[kind(recipe)]), recipe)
    assert type(made).model_validate(json.loads(json.dumps(resolved(made)))) == made


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ("toy/stag", r"no recipe named toy/stag: did you mean toy/stage\?"),
        ("elsewhere", "no recipe named elsewhere: shipped are .*toy/sft"),
        ("/nowhere/my.yaml", r"no recipe at /nowhere/my\.yaml: name a YAML file or one of .*toy/sft"),
    ],
)
def test_a_missing_recipe_is_named_with_those_there_are(recipe: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        load(Settings, recipe)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"learning_rate: [", "is not valid YAML"),
        (b"- 1\n- 2", "holds list, not a mapping"),
        (b"just text", "holds str, not a mapping"),
        (b"name: \xff\xfe", "cannot read .* as text"),
        (b"name: !!python/object/apply:os.getcwd []", "is not valid YAML"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "my.yaml").write_bytes(content)
    with pytest.raises(UserError, match=f"my.yaml.*{said}|{said}"):
        load(Settings, str(tmp_path / "my.yaml"))


def test_an_empty_recipe_is_the_defaults(tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text("# nothing\n")
    assert load(Settings, str(tmp_path / "my.yaml")) == Settings() == load(Settings)


def test_a_file_then_overrides_then_the_callers_fields(tmp_path: Path) -> None:
    (tmp_path / "my.yml").write_text("name: file\nsteps: 4\nclip: {low: 0.1}\n")
    made = load(Settings, str(tmp_path / "my.yml"), ["name=override", "clip.high=0.3"], name="caller")
    assert (made.name, made.steps, made.clip) == ("caller", 4, Clip(low=0.1, high=0.3))


# Overrides


@pytest.mark.parametrize(
    ("override", "field", "value"),
    [
        ("learning_rate=1e-4", "learning_rate", 1e-4),
        ("learning_rate=1.0e-4", "learning_rate", 1e-4),
        ("learning_rate=3E-5", "learning_rate", 3e-5),
        ("learning_rate=2", "learning_rate", 2.0),
        ("steps=4", "steps", 4),
        ("name=b", "name", "b"),
        ("name=a=b", "name", "a=b"),
        ("name=", "name", None),
        ("name=''", "name", ""),
        ("mode=crop", "mode", "crop"),
        ("hold_out=[a, b]", "hold_out", ("a", "b")),
        ("hold_out=[]", "hold_out", ()),
        ("rewards={bleu2: 0.5, errors: 1e-1}", "rewards", {"bleu2": 0.5, "errors": 0.1}),
        ("rewards.bleu2=0.25", "rewards", {"bleu2": 0.25}),
        ("clip.low=1e-1", "clip", Clip(low=0.1)),
        (" clip.low = 0.1", "clip", Clip(low=0.1)),
        ("validate=0.2", "validate_", 0.2),
    ],
)
def test_an_overrides_value_has_the_fields_type(override: str, field: str, value: Any) -> None:
    if value is None:
        with pytest.raises(UserError, match="name = None"):
            load(Settings, None, [override])
        return
    made = getattr(load(Settings, None, [override]), field)
    assert made == value
    assert type(made) is type(value)


@pytest.mark.parametrize("override", ["", "steps", "=3", "steps=[1", "steps=: :"])
def test_an_override_of_another_form_is_quoted(override: str) -> None:
    with pytest.raises(UserError, match="override "):
        load(Settings, None, [override])


def test_an_override_below_a_value_is_refused() -> None:
    with pytest.raises(UserError, match="steps holds a value, not a group of keys"):
        load(Settings, None, ["steps=4", "steps.more=3"])


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("learning_rat=1", r"unknown key learning_rat: did you mean learning_rate\?"),
        ("clip.hihg=1", r"unknown key clip\.hihg: did you mean clip\.high\?"),
        ("validate_=1", r"unknown key validate_: did you mean validate\?"),
        ("xyzzy=1", "unknown key xyzzy: valid keys are clip, clip.high, clip.low, hold_out,"),
        ("steps=0", "steps = 0: .*greater than or equal to 1"),
        ("steps=many", "steps = 'many': .*integer"),
        ("steps=1.5", "steps = 1.5: .*integer"),
        ("mode=fill", "mode = 'fill': .*'pad' or 'crop'"),
        ("clip.high=-1", r"clip\.high = -1: .*greater than 0"),
        ("learning_rate=.inf", "learning_rate = inf: .*finite"),
        ("learning_rate=nan", "learning_rate = nan: .*finite"),
        ("rewards.bleu2=.nan", r"rewards\.bleu2 = nan: .*finite"),
        ("hold_out=a", "hold_out = 'a': .*tuple"),
        ("hold_out=[1]", r"hold_out\.0 = 1: .*string"),
    ],
)
def test_a_wrong_key_or_value_is_named_with_the_remedy(override: str, said: str) -> None:
    with pytest.raises(UserError, match=f"Settings: {said}"):
        load(Settings, None, [override])


def test_every_wrong_key_and_value_is_named_at_once() -> None:
    with pytest.raises(UserError) as refused:
        load(Settings, None, ["stepz=1", "mode=fill", "learning_rate=fast"])
    assert all(text in str(refused.value) for text in ("stepz", "steps?", "fill", "fast"))


def test_a_rule_between_fields_speaks_for_itself() -> None:
    with pytest.raises(UserError) as refused:
        load(Settings, None, ["name=even", "steps=3"])
    assert str(refused.value) == "Settings: steps 3 is odd"


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_any_number_survives_being_written_as_an_override(value: float) -> None:
    assert load(Settings, None, [f"learning_rate={value!r}"]).learning_rate == value


@given(st.text(max_size=20), st.text(max_size=20))
def test_any_text_is_an_override_or_refused_as_a_users_mistake(key: str, value: str) -> None:
    try:
        load(Settings, None, [f"{key}={value}"])
    except UserError as error:
        assert str(error)  # noqa: PT017 - the other lawful outcome


# Identity and its bytes


def test_operational_fields_are_no_part_of_the_identity() -> None:
    kept = identity(Settings(judge_url="http://x"))
    assert "judge_url" not in kept
    assert kept == identity(Settings())
    assert set(kept) == set(Settings.model_fields) - {"judge_url"}


def test_a_configuration_is_frozen() -> None:
    with pytest.raises(ValidationError):
        Settings().steps = 3


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(json_values)
def test_canonical_json_is_json_of_the_same_value(value: Any) -> None:
    data = canonical_json(value)
    assert json.loads(data) == value
    assert canonical_json(json.loads(data)) == data


@given(st.dictionaries(st.text(max_size=5), st.integers(), min_size=2))
def test_canonical_json_does_not_depend_on_the_order_of_keys(value: dict[str, int]) -> None:
    backwards = dict(reversed(list(value.items())))
    assert canonical_json(value) == canonical_json(backwards)


def test_canonical_json_has_no_form_for_what_is_not_a_number() -> None:
    with pytest.raises(ValueError, match="JSON"):
        canonical_json(float("nan"))


def test_an_unreadable_recipe_is_the_users_to_mend(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no recipe at"):
        config.load(Settings, str(tmp_path / "folder.yaml"))
