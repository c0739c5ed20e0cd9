"""`unirg runs`, `unirg registry`: what the metrics store holds, who is champion, what a person says of it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from unirg import telemetry

if TYPE_CHECKING:
    from unirg.lifecycle.registry import Registry, Version
    from unirg.lifecycle.store import Listed

app = typer.Typer()
registry_app = typer.Typer(no_args_is_help=True, help="Models, the champion, and what a person says of them.")
app.add_typer(registry_app, name="registry")

TrackingUri = Annotated[str, typer.Option(envvar="MLFLOW_TRACKING_URI", help="MLflow's tracking URI.")]
ModelName = Annotated[str, typer.Option(help="The registered model's name.")]
Number = Annotated[int, typer.Argument(help="Number of the version (`unirg registry list`).")]
Who = Annotated[str, typer.Option(envvar="UNIRG_ACTOR", help="The person who says it.")]
TRACKING = "sqlite:///runs/mlflow.db"
NAME = "unirg"


@app.command()
def runs(
    experiment: Annotated[str, typer.Option(help="Only of this experiment, such as retrain.")] = "",
    tracking_uri: TrackingUri = TRACKING,
) -> None:
    """The runs of the metrics store, newest first; below each, those that it is the parent of."""
    from unirg.lifecycle import store

    with telemetry.span("runs"):
        found = store.runs(tracking_uri, experiment)
    if not found:
        print("no runs", file=sys.stderr)
    known = {one.run_id for one in found}
    _print_below(found, [one for one in found if one.parent_id not in known], "")


def _print_below(found: Sequence[Listed], level: Sequence[Listed], indent: str) -> None:
    for one in level:
        when = f"{one.started:%Y-%m-%d %H:%M:%S}"
        made = f"  {one.tags['uri']}" if "uri" in one.tags else ""
        print(f"{indent}{one.run_id}  {when}  {one.status:<8}  {one.experiment}: {one.name}{made}")
        # Children by their beginning, as the pipeline went.
        _print_below(found, [each for each in reversed(found) if each.parent_id == one.run_id], f"{indent}  ")


@registry_app.command("list")
def list_versions(tracking_uri: TrackingUri = TRACKING, name: ModelName = NAME) -> None:
    """Every version, with the last decision; `*` is the champion."""
    from unirg.lifecycle.registry import Registry

    registry = Registry(tracking_uri, name)
    with telemetry.span("registry list"):
        found, promotions, alias = registry.versions(), registry.history(), registry.alias()
    if not found:
        print(f"model {name} has no versions", file=sys.stderr)
    champion = promotions[-1].version if promotions else None
    for one in found:
        print(f"{'*' if one.number == champion else ' '} {_line(one)}")
    if alias != champion:
        print(
            f"warning: MLflow's alias is on version {alias or 'none'}, the champion is {champion or 'none'}: "
            "somebody moved it by hand, or a promotion was killed; the next one puts it right",
            file=sys.stderr,
        )


@registry_app.command()
def champion(tracking_uri: TrackingUri = TRACKING, name: ModelName = NAME) -> None:
    """The champion's URI, and on stderr who made it champion, and every one before."""
    from unirg.lifecycle.registry import Registry

    registry = Registry(tracking_uri, name)
    with telemetry.span("registry champion"):
        found, promotions = registry.champion(), registry.history()
    for one in promotions:
        said = f" ({one.why})" if one.why else ""
        print(f"{one.time:%Y-%m-%d %H:%M:%S}  version {one.version} by {one.who}{said}", file=sys.stderr)
    if found is None:
        print(f"model {name} has no champion yet", file=sys.stderr)
    else:
        print(found.uri)


@registry_app.command()
def approve(
    version: Number,
    who: Who = "",
    why: Annotated[str, typer.Option(help="No patient's name or number: it is kept for good.")] = "",
    tracking_uri: TrackingUri = TRACKING,
    name: ModelName = NAME,
) -> None:
    """Note that a person approves a version."""
    from unirg.lifecycle.registry import Registry

    with telemetry.span("registry approve"):
        _audited(registry := Registry(tracking_uri, name), registry.approve(version, who, why))


@registry_app.command()
def refuse(
    version: Number,
    why: Annotated[str, typer.Option(help="No patient's name or number: it is kept for good.")],
    who: Who = "",
    tracking_uri: TrackingUri = TRACKING,
    name: ModelName = NAME,
) -> None:
    """Note that a person refuses a version: it becomes champion no more, until one approves it."""
    from unirg.lifecycle.registry import Registry

    with telemetry.span("registry refuse"):
        _audited(registry := Registry(tracking_uri, name), registry.refuse(version, who, why))


def _audited(registry: Registry, version: Version) -> None:
    """Print a version that somebody has decided on, once the audit of its store has it."""
    from unirg.lifecycle.promote import record_decisions

    record_decisions(version.uri.rsplit("/", 2)[0], registry, version)
    print(_line(version))


def _line(version: Version) -> str:
    last = version.decision
    said = f"{last.decision}d by {last.who}, {last.time}" if last else "no decision"
    return f"{version.number:>4}  {version.digest[:16]}  {said}  {version.uri}"
