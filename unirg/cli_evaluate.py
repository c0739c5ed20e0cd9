"""`unirg evaluate` and `unirg report`: predictions -> numbers with intervals -> a page."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from unirg import artifact, config
from unirg.errors import UserError

app = typer.Typer()

Store = Annotated[str, typer.Option(envvar="UNIRG_STORE", help="Where artifacts lie: a folder or s3://…")]
Recipe = Annotated[str | None, typer.Option(help="A shipped recipe such as toy/evaluate, or a YAML file.")]
Overrides = Annotated[list[str] | None, typer.Argument(help="Settings over the recipe: key=value …")]
Named = Annotated[list[str] | None, typer.Option(help="NAME=URI; may be given several times.")]
Predictions = Annotated[
    list[str] | None,
    typer.Option(help="NAME=URI of predictions or of a .csv, .jsonl or .json file; several times."),
]
STORE = "runs/store"


@app.command()
def evaluate(
    predictions: Predictions = None,
    overrides: Overrides = None,
    suite: Annotated[
        list[str] | None, typer.Option(help="Only this suite, such as sanity; several times. Else all.")
    ] = None,
    cohort: Annotated[
        str, typer.Option(help="URI of the cohort; without one the references are the prediction files'.")
    ] = "",
    references: Annotated[
        str, typer.Option(help="Without a cohort: a file with the references, where the others lack them.")
    ] = "",
    board: Annotated[str, typer.Option(help="Folder of ReXrank's public boards, to show beside.")] = "",
    checkpoint: Named = None,
    recipe: Recipe = None,
    store: Store = STORE,
    judge_url: Annotated[str, typer.Option(help="Endpoint that counts errors (CheXprompt).")] = "",
    tracking_uri: Annotated[str, typer.Option(help="MLflow's tracking URI.")] = "",
    weights: Annotated[str, typer.Option(help="URI of the scorers' weights (`unirg weights make`).")] = "",
) -> None:
    """Predictions -> evaluation: all suites with intervals, beside the baselines; what raised an alarm.

    Two prediction files need neither a cohort nor weights: what was not computed is told, and how to get it.
    """
    from unirg.evaluation import aggregates, suites
    from unirg.evaluation.evaluate import EvaluateConfig, evaluate, opened

    if not predictions and not cohort:
        raise UserError("--predictions is missing: name systems as NAME=URI, or --cohort for the baselines")
    given = list(overrides or ())
    if suite:
        given.append(f"suites=[{', '.join(suite)}]")
    operational = {"judge_url": judge_url, "tracking_uri": tracking_uri, "board": board}
    named_here = {name: value for name, value in operational.items() if value}  # else the recipe's
    settings = config.load(EvaluateConfig, recipe, given, **named_here)
    archive = artifact.open_artifact(cohort, "cohort") if cohort else None
    scorers = artifact.open_artifact(weights, "weights") if weights else None
    systems, checkpoints = opened(named(predictions)), artifact.open_all(named(checkpoint))
    made = evaluate(settings, archive, systems, checkpoints, store, scorers, references)
    found = suites.read(made)
    for line in [*aggregates.notes(aggregates.read(made)), *suites.missing(found)]:
        print(f"evaluate: {line}", file=sys.stderr)
    for raised in suites.alarms(found):
        print(f"evaluate: ALARM ({raised['suite']}): {raised['sentence']}", file=sys.stderr)
    done(made)


@app.command()
def report(
    evaluation: Annotated[str, typer.Option(help="URI of the evaluation.")],
    predictions: Predictions = None,
    overrides: Overrides = None,
    cohort: Annotated[str, typer.Option(help="URI of the cohort, if the evaluation had one.")] = "",
    references: Annotated[
        str, typer.Option(help="The file with the references, if the evaluation had one.")
    ] = "",
    checkpoint: Named = None,
    recipe: Recipe = None,
    store: Store = STORE,
) -> None:
    """Evaluation -> one self-contained HTML file; give it what the evaluation was made of."""
    from unirg.evaluation.evaluate import opened
    from unirg.evaluation.report.render import ReportConfig, report

    settings = config.load(ReportConfig, recipe, overrides or ())
    evaluated = artifact.open_artifact(evaluation, "evaluate")
    archive = artifact.open_artifact(cohort, "cohort") if cohort else None
    systems, checkpoints = opened(named(predictions)), artifact.open_all(named(checkpoint))
    made = report(settings, evaluated, archive, systems, checkpoints, store, references)
    done(made)
    print(made.path("report.html"))


def named(pairs: list[str] | None) -> dict[str, str]:
    """NAME=URI options -> URIs by name."""
    split = [pair.partition("=") for pair in pairs or ()]
    wrong = [pair for pair, (name, _, uri) in zip(pairs or (), split, strict=True) if not (name and uri)]
    if wrong:
        raise UserError(f"{', '.join(wrong)}: not of the form NAME=URI")
    if twice := {name for name, _, _ in split if [each[0] for each in split].count(name) > 1}:
        raise UserError(f"the name {min(twice)} comes twice: give each its own")
    return {name: uri for name, _, uri in split}


def done(made: artifact.Artifact) -> None:
    """Tell what a stage made: its counts to the terminal, its URI to whoever reads the output."""
    counts = ", ".join(f"{name} {value}" for name, value in made.manifest.counts.items())
    print(f"{made.manifest.stage}: {counts}", file=sys.stderr)
    print(made.uri)
