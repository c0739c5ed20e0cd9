"""`unirg gate`, `promote`, `rollback`: who is champion, by a verdict or by a person's word."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from unirg import artifact, config
from unirg.checkpoint import STAGES
from unirg.cli_evaluate import done
from unirg.cli_registry import NAME, TRACKING, ModelName, TrackingUri, Who
from unirg.errors import UserError

if TYPE_CHECKING:
    from unirg.lifecycle.gate_checks import Side
    from unirg.lifecycle.promote import Production
    from unirg.lifecycle.registry import Registry, Version

app = typer.Typer()

Store = Annotated[str, typer.Option(envvar="UNIRG_STORE", help="Where artifacts lie: a folder or s3://…")]
Settings = Annotated[
    list[str] | None, typer.Argument(help="Settings of serving: cluster.service=unirg-cxr …")
]
Serving = Annotated[
    str | None, typer.Option(help="How the champion is served, such as paper/serve_cluster; none: here.")
]
Asking = Annotated[str | None, typer.Option(help="How the trial asks, such as paper/score.")]
Why = Annotated[str, typer.Option(help="No patient's name or number: it is kept for good.")]
STORE = "runs/store"


@app.command()
def gate(
    evaluation: Annotated[str, typer.Argument(help="URI of an evaluation of both.")],
    challenger: Annotated[str, typer.Option(help="NAME=CHECKPOINT: what the evaluation calls it, its URI.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Settings: key=value …")] = None,
    champion: Annotated[str, typer.Option(help="NAME=CHECKPOINT; none: the baselines must be beaten.")] = "",
    recipe: Annotated[str, typer.Option(help="A shipped recipe or a YAML file of rules.")] = "paper/gate",
    store: Store = STORE,
) -> None:
    """An evaluation -> the verdict whether the challenger may become champion; exit code 1 where not."""
    from unirg.lifecycle import gate as gates
    from unirg.lifecycle.gate_data import Judged

    rules = config.load(gates.GateConfig, recipe, overrides or ())
    sides = _side(challenger), _side(champion) if champion else None
    judged = artifact.open_artifact(evaluation, "evaluate")
    looks = gates.earlier(store, Judged(rules, judged).study_set, rules.overlap)
    verdict = gates.gate(rules, judged, *sides, looks, store)
    told = gates.read(verdict)
    for line in gates.sentences(told):
        print(line, file=sys.stderr)
    done(verdict)
    if not told["passed"]:
        raise typer.Exit(1)


@app.command()
def promote(
    model: Annotated[str, typer.Argument(help="A version's number, or a checkpoint's URI.")],
    overrides: Settings = None,
    serving: Serving = None,
    asking: Asking = None,
    cohort: Annotated[str, typer.Option(help="URI of the cohort to try it with; else its own.")] = "",
    recipe: Annotated[str | None, typer.Option(help="Such as paper/promote, or a YAML file.")] = None,
    approve: Annotated[bool, typer.Option("--approve", help="Approve it, whatever the gate said.")] = False,
    why: Why = "",
    who: Who = "",
    tracking_uri: TrackingUri = TRACKING,
    name: ModelName = NAME,
    store: Store = STORE,
) -> None:
    """Make a model the champion, by way of a canary: one that the gate let pass or a person approves."""
    from unirg import journal
    from unirg.lifecycle.promote import Decided, PromoteConfig, cohort_of, finish, promote, record_decisions
    from unirg.lifecycle.registry import Registry

    settings = config.load(PromoteConfig, recipe)
    registry = Registry(tracking_uri, name)
    version = _version(registry, model)
    who = who or journal.named_actor()
    if approve:
        version = registry.approve(version.number, who, why)
        record_decisions(store, registry, version)
    uri = cohort or cohort_of(version)
    production = _production(serving, overrides, asking, uri, store)
    champion = registry.champion()
    expected = champion.number if champion else None
    if expected == version.number:
        finish(registry, production)  # whoever made it champion may have been killed before it was served
        print(f"version {version.number} is champion already", file=sys.stderr)
        print(version.uri)
        return
    passed = _passed(version, champion)
    key = f"{name} {version.number} over {expected or 'none'} after {len(registry.history())}"
    found = promote(settings, registry, version, Decided(passed, expected, key, why, who), production)
    print(f"{found.outcome}: {found.why}", file=sys.stderr)
    if found.outcome != "promoted":
        raise typer.Exit(1)
    print(version.uri)


@app.command()
def rollback(
    why: Why,
    overrides: Settings = None,
    serving: Serving = None,
    who: Who = "",
    tracking_uri: TrackingUri = TRACKING,
    name: ModelName = NAME,
    store: Store = STORE,
) -> None:
    """Make the champion before this one the champion again, and what the endpoint serves.

    Again after a rollback, it finishes that one; to go further back, `unirg promote N --approve`.
    """
    from unirg.lifecycle.promote import cohort_of, roll_back
    from unirg.lifecycle.registry import Registry

    registry = Registry(tracking_uri, name)
    champion = registry.champion()
    if champion is None:
        raise UserError(f"model {name} has no champion yet: promote one")
    production = _production(serving, overrides, None, cohort_of(champion), store)
    made = roll_back(registry, production, why, who)
    print(f"version {made.version} is champion by {made.who}'s rollback: {made.why}", file=sys.stderr)
    print(registry.version(made.version).uri)


def _side(text: str) -> Side:
    from unirg.lifecycle.gate_checks import Side

    name, equals, uri = text.rpartition("=")
    if not equals or not name:
        raise UserError(f"{text!r}: write NAME=CHECKPOINT, with the system's name in the evaluation")
    return Side(name, artifact.open_artifact(uri, STAGES))


def _version(registry: Registry, model: str) -> Version:
    if model.isdecimal():
        return registry.version(int(model))
    return registry.register(artifact.open_artifact(model, STAGES))


def _production(
    serving: str | None, overrides: list[str] | None, asking: str | None, cohort: str, store: str
) -> Production:
    from unirg.lifecycle.promote import Production
    from unirg.scoring.archive import ScoreConfig
    from unirg.serving.endpoint import ServeConfig

    return Production(
        config.load(ServeConfig, serving, overrides or ()),
        config.load(ScoreConfig, asking),
        artifact.open_artifact(cohort, "cohort"),
        store,
    )


def _passed(version: Version, champion: Version | None) -> bool:
    """Whether the gate let a version pass against whoever is champion now."""
    from unirg.lifecycle import gate as gates
    from unirg.lifecycle.promote import VERDICT

    if not (uri := version.tags.get(VERDICT)):
        return False
    told = gates.read(artifact.open_artifact(uri, gates.STAGE))
    rival = (told["champion"] or {}).get("digest")
    return bool(told["passed"]) and rival == (champion.digest if champion else None)
