"""`unirg audit`: what happened in a store, who did it, and whether the record is as it was written."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer

from unirg.errors import UserError

app = typer.Typer(no_args_is_help=True, help="What happened in a store: who, when, with what; and verify it.")

Store = Annotated[str, typer.Option(envvar="UNIRG_STORE", help="Where artifacts lie: a folder or s3://…")]
Tracking = Annotated[str, typer.Option(help="MLflow's tracking URI.")]
STORE = "runs/store"
MOST = 50
"""Problems that are told one by one."""


@app.command()
def show(
    last: Annotated[int, typer.Option(min=0, help="Only so many, the latest; 0: all.")] = 0,
    action: Annotated[str, typer.Option(help="Only this action, such as promote.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="A line of JSON each, as it is kept.")] = False,
    store: Store = STORE,
) -> None:
    """List the entries in order: number, time, action, who, note, subjects."""
    from unirg import journal

    head = journal.head(store)
    first = head.number - last + 1 if head and last else 1
    for entry in journal.read(store, max(first, 1)):
        if action and entry.action != action:
            continue
        if as_json:
            print(entry.model_dump_json())
            continue
        told = " ".join(f"{name}={value}" for name, value in entry.subjects.items())
        note = f" ({entry.note})" if entry.note else ""
        print(_plain(f"{entry.number} {entry.time} {entry.action} {entry.actor}{note} {told}"))
    if head is None:
        print(f"nothing is recorded in {store}", file=sys.stderr)


@app.command()
def verify(
    anchor: Annotated[
        list[str] | None, typer.Option(help="N:HASH that `unirg audit anchor` printed once; several times.")
    ] = None,
    tracking_uri: Tracking = "",
    store: Store = STORE,
) -> None:
    """Check every entry, its place in the chain, and the anchors given or kept in the metrics store."""
    from unirg.lifecycle import audit

    anchors = [audit.Anchor.of(text) for text in anchor or ()]
    if tracking_uri:
        anchors += audit.anchors(store, tracking_uri)
    problems = audit.verify(store, anchors)
    for problem in problems[:MOST]:
        print(problem.sentence)
    if problems:
        raise UserError(
            f"the audit of {store} is not as it was written ({len(problems)} problems): compare it with a "
            "copy, and ask who may write there"
        )
    print(f"{audit.head(store) or 'nothing is recorded'}: as it was written; {len(anchors)} anchors hold")
    if not anchors:
        print(
            "no anchor was compared, so a cut tail would not show: name --tracking-uri, or --anchor with "
            "what `unirg audit anchor` once printed",
            file=sys.stderr,
        )


@app.command()
def anchor(
    tracking_uri: Tracking = "",
    run: Annotated[str, typer.Option(help="Id of a run of MLflow to tag; else it gets one of its own.")] = "",
    store: Store = STORE,
) -> None:
    """Print the log's head, N:HASH, to keep elsewhere; with --tracking-uri the metrics store gets it too."""
    from unirg.lifecycle import audit

    if run and not tracking_uri:
        raise UserError(f"--run {run} needs --tracking-uri: name the metrics store that has it")
    found = audit.anchor(store, tracking_uri, run) if tracking_uri else audit.head(store)
    if found is None:
        raise UserError(f"nothing is recorded in {store}: check --store")
    print(found)


def _plain(text: str) -> str:
    """Without what a terminal would obey."""
    return text if text.isprintable() else json.dumps(text)
