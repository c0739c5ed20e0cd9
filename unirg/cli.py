"""`unirg`: the verbs on the command line, the same functions that the pipelines call.

Exit codes: 0 done, 2 the user's mistake (one clear line, no traceback), 1 ours, 130 interrupted.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from unirg import (
    __version__,
    artifact,
    cli_audit,
    cli_cards,
    cli_cycles,
    cli_endpoints,
    cli_evaluate,
    cli_metrics,
    cli_pipeline,
    cli_promote,
    cli_registry,
    cli_retention,
    cli_watch,
    config,
    storage,
    telemetry,
)
from unirg.cli_evaluate import done as _done
from unirg.errors import UserError

app = typer.Typer(
    name="unirg",
    help="Train radiology-report generators, serve them, score archives with them, prove how good they are.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Store = Annotated[str, typer.Option(envvar="UNIRG_STORE", help="Where artifacts lie: a folder or s3://…")]
Recipe = Annotated[str | None, typer.Option(help="A shipped recipe such as toy/sft, or a YAML file.")]
Overrides = Annotated[list[str] | None, typer.Argument(help="Settings over the recipe: key=value …")]
Cohort = Annotated[str, typer.Option(help="URI of the cohort.")]
Weights = Annotated[str, typer.Option(help="URI of the scorers' weights (`unirg weights make`).")]
STORE = "runs/store"
POOL, WORKLOAD = "plan/pool_h100", "plan/workload_paper"
INTERRUPTED = 130

weights_app = typer.Typer(no_args_is_help=True, help="Weights of the metrics' models: fetch them, list them.")
app.add_typer(weights_app, name="weights")
app.add_typer(cli_metrics.app, name="metrics")
app.add_typer(cli_evaluate.app)
app.add_typer(cli_retention.app)
app.add_typer(cli_registry.app)
app.add_typer(cli_watch.app)
app.add_typer(cli_cards.app)
app.add_typer(cli_promote.app)
app.add_typer(cli_cycles.app, name="cycles")
app.add_typer(cli_endpoints.app, name="endpoint")
app.add_typer(cli_audit.app, name="audit")
app.add_typer(cli_pipeline.app, name="pipeline")


@app.command()
def stage(
    overrides: Overrides = None,
    recipe: Recipe = None,
    store: Store = STORE,
    part: Annotated[
        str, typer.Option(help="K/N: write the K-th (from 0) of N parts of the shards, and no cohort yet.")
    ] = "",
) -> None:
    """Corpus -> cohort: adapter, filter, split, decode once.

    Several machines may each write a part; `unirg stage` without one then finds the shards done.
    """
    from unirg.cohort.stage import StageConfig, stage, stage_part

    settings = config.load(StageConfig, recipe, overrides or ())
    if not part:
        _done(stage(settings, store))
        return
    done = stage_part(settings, store, *_part(part))
    print(f"part {part}: {done} shards are written", file=sys.stderr)


def _part(text: str) -> tuple[int, int]:
    numbers = re.fullmatch("([0-9]{1,6})/([0-9]{1,6})", text)
    if numbers is None or int(numbers[1]) >= int(numbers[2]):
        raise UserError(f"--part {text}: write it as K/N with K from 0 to N - 1, such as 0/8")
    return int(numbers[1]), int(numbers[2])


@app.command()
def combine(
    cohort: Annotated[
        list[str],
        typer.Option(help="URI of a cohort, or SPLITS=URI such as train,test=runs/store/…; several times."),
    ],
    store: Store = STORE,
) -> None:
    """Cohorts -> one cohort of all, or of some splits of each; no image is copied."""
    from unirg.cohort.combine import combine, parts

    _done(combine(parts(cohort), store))


@app.command()
def train(
    algorithm: Annotated[str, typer.Argument(help="base, sft or grpo.")],
    overrides: Overrides = None,
    cohort: Annotated[str, typer.Option(help="URI of the cohort; only a plan does without.")] = "",
    parent: Annotated[str, typer.Option(help="URI of the checkpoint to start from.")] = "",
    recipe: Recipe = None,
    store: Store = STORE,
    judge_url: Annotated[str, typer.Option(help="Endpoint that counts errors (CheXprompt).")] = "",
    weights: Weights = "",
    plan: Annotated[bool, typer.Option("--plan", help="Say what it will take, and start nothing.")] = False,
    pool: Annotated[str, typer.Option(help="Plan: the node pool, a recipe or YAML file.")] = POOL,
    model: Annotated[str, typer.Option(help="Plan: a recipe or model directory; else the parent's.")] = "",
    workload: Annotated[str, typer.Option(help="Plan: a recipe or YAML file, without a cohort.")] = WORKLOAD,
) -> None:
    """Cohort and parent policy -> checkpoint."""
    from unirg.training import train

    if plan:
        from unirg.training.plan import of_run

        print(of_run(algorithm, recipe, overrides or (), pool, model, workload, cohort, parent))
        return
    if not cohort:
        raise UserError("--cohort is missing: name the cohort to train on (`unirg stage` prints its URI)")
    _done(train(algorithm, recipe, overrides or (), cohort, parent, store, judge_url, weights))


@app.command()
def sweep(
    algorithm: Annotated[str, typer.Argument(help="sft or grpo.")],
    cohort: Cohort,
    parent: Annotated[str, typer.Option(help="URI of the checkpoint that every point starts from.")],
    grid: Annotated[list[str], typer.Option(help="KEY=VALUE,VALUE: an axis; may be given several times.")],
    overrides: Overrides = None,
    recipe: Recipe = None,
    store: Store = STORE,
    output: Annotated[str, typer.Option(help="A .csv or .md file for the table, too.")] = "",
    judge_url: Annotated[str, typer.Option(help="Endpoint that counts errors (CheXprompt).")] = "",
    weights: Weights = "",
) -> None:
    """Train every point of a grid of settings, and tabulate them."""
    from unirg.training import sweep as sweeping

    form = sweeping.form_of(output) if output else ""
    rows = sweeping.sweep(algorithm, recipe, overrides or (), grid, cohort, parent, store, judge_url, weights)
    print(sweeping.as_text(rows))
    if form:
        Path(output).write_text(sweeping.FORMS[form](rows))
    if failed := [one for one in rows if one.failed]:
        raise UserError(f"{len(failed)} of {len(rows)} points failed: their rows say why")


@app.command()
def serve(
    checkpoint: Annotated[str, typer.Option(help="URI of the checkpoint.")],
    overrides: Overrides = None,
    recipe: Recipe = None,
    store: Store = STORE,
    host: Annotated[str, typer.Option(help="Address that it listens on; 0.0.0.0 = every one.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port of the OpenAI-compatible server; 0 = any.")] = 8080,
    token_file: Annotated[
        str, typer.Option(help="Requests must show this file's content as bearer token.")
    ] = "",
    canary: Annotated[
        int | None,
        typer.Option(min=0, max=100, help="In a cluster: try it with so many percent of the requests."),
    ] = None,
) -> None:
    """Checkpoint -> a running OpenAI-compatible endpoint: on this machine, until Ctrl-C, or in a cluster.

    With settings `cluster.…` it is begun or changed there, waited for and left, and its URI printed.
    """
    from unirg.serving.endpoint import ServeConfig, open_in_cluster, run_foreground, serve

    settings = config.load(ServeConfig, recipe, overrides or ())
    if settings.cluster and token_file:
        raise UserError("--token-file is for a server on this machine: a cluster's gateway guards its own")
    if not settings.cluster and canary is not None:
        raise UserError(
            f"--canary {canary} needs a cluster: --recipe paper/serve_cluster, or cluster.… settings"
        )
    declared = serve(settings, artifact.open_artifact(checkpoint), store)
    if not settings.cluster:
        run_foreground(declared, port, host, token_file)
        return
    endpoint = open_in_cluster(declared)
    endpoint.begin(canary)
    print(endpoint.wait(), file=sys.stderr)
    print(declared.uri)


@app.command()
def score(
    overrides: Overrides = None,
    archive: Annotated[
        str, typer.Option("--archive", "--cohort", help="A cohort's URI, or raw studies with --corpus.")
    ] = "",
    corpus: Annotated[str, typer.Option(help="Corpus of raw studies, such as institution or rexrank.")] = "",
    staging: Annotated[
        list[str] | None,
        typer.Option(help="Raw studies: KEY=VALUE of staging, such as institution.unknown_view=frontal."),
    ] = None,
    checkpoint: Annotated[str, typer.Option(help="URI of a checkpoint, which is served meanwhile.")] = "",
    endpoint: Annotated[
        str, typer.Option(help="Or an OpenAI-compatible base URL, or the URI that `unirg serve` printed.")
    ] = "",
    model: Annotated[str, typer.Option(help="Name of the model at that endpoint.")] = "",
    model_digest: Annotated[str, typer.Option(help="Its digest, where the server tells none.")] = "",
    recipe: Recipe = None,
    store: Annotated[
        str, typer.Option("--store", "--output", envvar="UNIRG_STORE", help="Where the predictions go.")
    ] = STORE,
    part: Annotated[
        str, typer.Option(help="K/N: the K-th (from 0) of N clients; a last call without it commits.")
    ] = "",
    status: Annotated[str, typer.Option(help="URI of predictions: how far they are.")] = "",
) -> None:
    """Archive -> predictions: a report for every study, or the reason why there is none."""
    from unirg.scoring import archive as scoring
    from unirg.scoring.inputs import archive_of
    from unirg.scoring.remote import endpoint_of
    from unirg.serving.endpoint import ServeConfig, open_endpoint, serve

    if status:
        for line in scoring.status(status):
            print(line)
        return
    if not archive:
        raise UserError("--archive is missing: name a cohort, or raw studies and their --corpus")
    if bool(checkpoint) == bool(endpoint):
        raise UserError("name either --checkpoint, which is served meanwhile, or --endpoint")
    settings = config.load(scoring.ScoreConfig, recipe, overrides or ())
    answering: scoring.Endpoint
    if checkpoint:
        answering = open_endpoint(serve(ServeConfig(), artifact.open_artifact(checkpoint), store))
    elif endpoint.startswith("s3://") or (storage.is_local(endpoint) and artifact.find(endpoint)):
        answering = open_endpoint(endpoint)
    else:
        answering = endpoint_of(endpoint, model, model_digest)
    cohort = archive_of(archive, corpus, store, staging or ())
    if part:
        print(scoring.score_part(settings, cohort, answering, store, _part(part)))
    else:
        _done(scoring.score(settings, cohort, answering, store))


@app.command()
def export(
    predictions: Annotated[str, typer.Option(help="URI of predictions.")],
    form: Annotated[str, typer.Option(help="rexrank (JSON), fhir (NDJSON) or sr (folder of DICOM SR).")],
    output: Annotated[str, typer.Option(help="The file or folder to make.")],
    source: Annotated[str, typer.Option(help="rexrank: the test file, if it is not where it was.")] = "",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an export that differs.")] = False,
) -> None:
    """Predictions -> ReXrank's submission, FHIR DiagnosticReports or DICOM structured reports."""
    from unirg.scoring.export import export

    counts = export(artifact.open_artifact(predictions, "score"), form, output, source, overwrite)
    print("export: " + ", ".join(f"{name} {value}" for name, value in counts.items()), file=sys.stderr)
    print(output)


@weights_app.command("make")
def make_weights(overrides: Overrides = None, recipe: Recipe = None, store: Store = STORE) -> None:
    """Make or collect scorers' weights -> one artifact, for training and evaluation to name."""
    from unirg.training.scorers import WeightsConfig, weights

    _done(weights(config.load(WeightsConfig, recipe, overrides or ()), store))


@weights_app.command("fetch")
def fetch_weights(
    names: Annotated[list[str] | None, typer.Argument(help="Scorers, such as chexbert; none = all.")] = None,
    source: Annotated[
        str | None,
        typer.Option("--from", help="A mirror of the original files: folder, s3://… or tar; else the hub."),
    ] = None,
    to: Annotated[str, typer.Option(help="Folder to fill; else $UNIRG_WEIGHTS, else the cache's.")] = "",
    accept: Annotated[bool, typer.Option("--accept", help="Take files with another digest.")] = False,
) -> None:
    """Original public checkpoints -> directories that the metrics read, checked and converted once."""
    from unirg import storage
    from unirg.metrics import weights, weights_fetch

    root = storage.local_path(to) if to else weights.default_root()
    for name in weights_fetch.known(names or ()):
        print(f"{name}: {', '.join(weights_fetch.pages(name))}", file=sys.stderr, flush=True)
        made = weights_fetch.fetch(name, root, source, accept)
        print(f"{name}: ready, identity {weights.identity(made)[:16]}", file=sys.stderr, flush=True)
        print(made, flush=True)


@weights_app.command("list")
def list_weights(
    source: Annotated[
        str,
        typer.Option("--weights", help="Folder, s3://… or artifact; else $UNIRG_WEIGHTS, else the cache's."),
    ] = "",
) -> None:
    """Which scorers have weights, from where, under which licence; and how to get the others."""
    from unirg.metrics import weights

    root = weights.local(source)
    print(root)
    for line in weights.listing(root):
        print(line)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"unirg {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True)] = False,
) -> None:
    pass


def main(argv: list[str] | None = None) -> Any:
    """Entry point: run a verb and turn failures into exit codes."""
    try:
        return app(argv, standalone_mode=True)
    except SystemExit as leaving:
        if leaving.code == INTERRUPTED:  # Typer makes this of Ctrl-C, without a word
            print("unirg: interrupted; finished work is kept, the same command goes on", file=sys.stderr)
        raise
    except Exception as error:
        shown = telemetry.safe_error(error)
        print(f"unirg: {shown}", file=sys.stderr)
        sys.exit(shown.exit_code if isinstance(shown, UserError) else 1)


if __name__ == "__main__":
    main()
