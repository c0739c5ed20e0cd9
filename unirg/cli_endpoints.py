"""`unirg endpoint`: models that a cluster serves, tried, promoted, taken back and taken down."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Endpoints in a cluster, which `unirg serve` began.")

Endpoint = Annotated[str, typer.Argument(help="URI of the endpoint, which `unirg serve` printed.")]


@app.command()
def show(endpoint: Endpoint) -> None:
    """Say whether the model is stable or a canary, and what keeps it from answering."""
    from unirg.serving.endpoint import open_in_cluster

    print(open_in_cluster(endpoint).status())


@app.command()
def promote(endpoint: Endpoint) -> None:
    """Make a canary the model that everybody gets. Its pods go on as they are."""
    from unirg.serving.endpoint import open_in_cluster

    found = open_in_cluster(endpoint)
    found.promote()
    print(found.wait(), file=sys.stderr)


@app.command()
def rollback(endpoint: Endpoint) -> None:
    """Take the model out: as a canary, or as the stable model, in whose place the one before it returns."""
    from unirg.serving.endpoint import open_in_cluster

    open_in_cluster(endpoint).roll_back()


@app.command()
def delete(endpoint: Endpoint) -> None:
    """Take the model down, and with the stable one its service. What is not there is deleted."""
    from unirg.serving.endpoint import open_in_cluster

    open_in_cluster(endpoint).delete()
