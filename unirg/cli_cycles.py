"""`unirg cycles`: what became of each cycle of retraining, and an end for one that cannot go on."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from unirg import artifact
from unirg.cli_promote import STORE, Store
from unirg.cli_registry import NAME, ModelName, Who
from unirg.errors import UserError

app = typer.Typer(no_args_is_help=True, help="Cycles of retraining: how each ended, or who works at it.")


@app.command("list")
def list_cycles(name: ModelName = NAME, store: Store = STORE) -> None:
    """Every cycle: number, the run that began it, how it ended and why."""
    from unirg.lifecycle.cycle import Cycles

    found = Cycles(store, name).all()
    for one in found:
        end = one.ended()
        told = f"{end.outcome}: {end.why}" if end else "open"
        print(f"{one.number:>4}  {one.begin.run}  {told}")
    if not found:
        print(f"model {name} has no cycles in {store}", file=sys.stderr)


@app.command()
def abandon(
    number: Annotated[int, typer.Argument(help="Of the open cycle (`unirg cycles list`).")],
    why: Annotated[str, typer.Option(help="No patient's name or number: it is kept for good.")],
    cohort: Annotated[str, typer.Option(help="URI of what the next compares with; else what this did.")] = "",
    who: Who = "",
    name: ModelName = NAME,
    store: Store = STORE,
) -> None:
    """End a cycle that cannot go on, so that the next run begins another. End its own run in KFP first."""
    from unirg import journal
    from unirg.lifecycle.cycle import Cycles, End

    last = Cycles(store, name).last()
    if last is None or last.number != number:
        raise UserError(f"cycle {number} is not the last one of model {name}: see `unirg cycles list`")
    if end := last.ended():
        raise UserError(f"cycle {number} has ended ({end.outcome}): there is nothing to abandon")
    try:
        next_one = artifact.open_artifact(cohort or last.begin.cohort, "cohort").uri
    except artifact.ArtifactError as error:
        raise UserError(f"{error}; or name another cohort for the next cycle with --cohort") from None
    # Before the end: who is killed between the two is told nothing else by the same command again.
    told = {"cycle": str(number), "registry": name, "cohort": next_one}
    journal.append(store, "abandon", told, why, who or journal.named_actor())
    end = last.end(End(outcome="abandoned", why=why, cohort=next_one))
    print(f"cycle {number}: {end.outcome}", file=sys.stderr)
