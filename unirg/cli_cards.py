"""`unirg card`, `unirg export-model`: what a model or a cohort is, for whoever it is handed to."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from unirg import artifact, checkpoint, telemetry
from unirg.errors import UserError

if TYPE_CHECKING:
    from unirg.lifecycle.export import Measured

app = typer.Typer()

Evaluation = Annotated[
    str,
    typer.Option(help="URI of an evaluation of it; `none`; else the newest of the store that measured it."),
]
Verdict = Annotated[
    str, typer.Option(help="URI of the gate's verdict on it; `none`; else the newest of the store on it.")
]
Licence = Annotated[str, typer.Option(help="Of the weights, as the hub spells it, such as apache-2.0.")]
Store = Annotated[str, typer.Option(help="Whose lineage counts; else the store that it lies in.")]
NONE = "none"


@app.command()
def card(
    uri: Annotated[str, typer.Argument(help="URI of a checkpoint or a cohort.")],
    evaluation: Evaluation = "",
    verdict: Verdict = "",
    licence: Licence = "unknown",
    store: Store = "",
) -> None:
    """Print the model card of a checkpoint, or the data card of a cohort, in Hugging Face's form."""
    from unirg.lifecycle import cards

    with telemetry.span("card"):
        made = artifact.open_artifact(uri, (*checkpoint.STAGES, "cohort"))
        if made.manifest.stage == "cohort":
            if evaluation or verdict:
                raise UserError(f"{uri} is a cohort: leave out --evaluation and --verdict")
            print(cards.data_card(made), end="")
            return
        found = _found(made, evaluation, verdict, store or made.store)
        print(cards.model_card(made, store or made.store, found.evaluation, found.verdict, licence), end="")


@app.command("export-model")
def export_model(
    checkpoint_uri: Annotated[str, typer.Option("--checkpoint", help="URI of the checkpoint.")],
    output: Annotated[str, typer.Option(help="The folder or s3:// prefix to make.")],
    evaluation: Evaluation = "",
    verdict: Verdict = "",
    licence: Licence = "unknown",
    store: Store = "",
) -> None:
    """Checkpoint -> a folder for transformers or a hub: model directory, model card, data cards."""
    from unirg.lifecycle import export

    made = artifact.open_artifact(checkpoint_uri, checkpoint.STAGES)
    found = _found(made, evaluation, verdict, store or made.store)
    names = export.export_model(made, output, store or made.store, found, licence)
    print(f"export-model: {len(names)} files, {', '.join(names)}", file=sys.stderr)
    print(output)


def _found(made: artifact.Artifact, evaluation: str, verdict: str, store: str) -> Measured:
    """What is named, `none`, or the newest of the store; what was taken is told."""
    from unirg.lifecycle import export, gate

    newest = export.measured(made, store) if not (evaluation and verdict) else export.Measured()
    found = export.Measured(
        _named(evaluation, "evaluate") if evaluation else newest.evaluation,
        _named(verdict, gate.STAGE) if verdict else newest.verdict,
    )
    for what, one in (("evaluation", found.evaluation), ("verdict", found.verdict)):
        print(f"{what}: {one.uri if one else 'none'}", file=sys.stderr)
    return found


def _named(uri: str, stage: str) -> artifact.Artifact | None:
    return None if uri == NONE else artifact.open_artifact(uri, stage)
