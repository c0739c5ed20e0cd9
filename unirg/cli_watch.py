"""`unirg watch`, `unirg grow`: what has arrived at an institution, and the next cohort of it."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from unirg import artifact, config
from unirg.cli_evaluate import done

app = typer.Typer()

Store = Annotated[str, typer.Option(envvar="UNIRG_STORE", help="Where artifacts lie: a folder or s3://…")]
STORE = "runs/store"


@app.command()
def watch(
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Settings: stage.data=URI stage.institution.name=…")
    ] = None,
    cohort: Annotated[
        str, typer.Option(help="URI of the cohort to compare with, such as the champion's; none = nothing.")
    ] = "",
    recipe: Annotated[str | None, typer.Option(help="A YAML file.")] = None,
    store: Store = STORE,
) -> None:
    """Incoming studies -> what is new, corrected, late, delivered twice or withdrawn; trains nothing itself.

    Ends green also where nothing is new; `unirg grow` makes the next cohort where there is enough.
    """
    from unirg.lifecycle.watch import WatchConfig, enough, models_that_saw, taken, watch

    given = ["stage.corpus=institution", *(overrides or ())]
    settings = config.load(WatchConfig, recipe, given)
    made = watch(settings, artifact.open_artifact(cohort, "cohort") if cohort else None, store)
    for one in models_that_saw(made, store):
        told = f"learned from {len(one.learned)} withdrawn studies"
        print(f"watch: {one.stage} {told}: {one.uri}", file=sys.stderr)
    found = taken(made)
    if not enough(made, settings.minimum):
        print(
            f"watch: {found} new or corrected, {settings.minimum} are needed: train nothing", file=sys.stderr
        )
    done(made)


@app.command()
def grow(
    watch: Annotated[str, typer.Argument(help="URI of what `unirg watch` made.")], store: Store = STORE
) -> None:
    """A cohort and what a watch found -> the next cohort; no patient changes the split."""
    from unirg.cohort.grow import grow

    done(grow(artifact.open_artifact(watch, "watch"), store))
