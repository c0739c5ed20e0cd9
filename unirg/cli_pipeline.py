"""`unirg pipeline`: pipelines for KFP; run them once, by a clock, or when data arrives."""

from __future__ import annotations

import re
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from unirg.errors import UserError

app = typer.Typer(no_args_is_help=True, help="Pipelines for Kubeflow: compile them, run them, schedule them.")

Pipeline = Annotated[str, typer.Argument(help="Its name: `unirg pipeline compile` writes all of them.")]
Given = Annotated[list[str] | None, typer.Argument(help="Its parameters: name=value …")]
Host = Annotated[
    str,
    typer.Option(envvar="KF_PIPELINES_ENDPOINT", help="URL of KFP's API, such as https://kfp.example.org."),
]
Namespace = Annotated[str, typer.Option(help="The user's namespace, where KFP has several users.")]
Token = Annotated[
    str, typer.Option("--kfp-token-file", help="Bearer token for KFP; else the one mounted in a pod.")
]
Experiment = Annotated[str, typer.Option(help="KFP's experiment; else the pipeline's name.")]
Account = Annotated[str, typer.Option(help="Service account of the run's pods; else KFP's default.")]
Named = Annotated[str, typer.Option("--name", help="The schedule's name; else the pipeline's.")]
Watch = Annotated[str, typer.Option(help="Events: the bucket and folder; else the parameter `data`.")]
Settle = Annotated[
    float, typer.Option(min=1, help="Events: seconds without a new one before a run; more than the watch's.")
]
Longest = Annotated[float, typer.Option(min=1, help="Events: seconds after which a run starts all the same.")]
LOOPBACK = re.compile(r"https?://(localhost|127\.[0-9.]+|\[::1\])([:/]|$)")
NAME = re.compile("[a-z]([-a-z0-9]{0,48}[a-z0-9])?")
SETTLE_S = 360.0
"""More than the 300 seconds that a watch lets an object rest, or the run would find it too young."""
LONGEST_S = 3600.0


@app.callback()
def _needs() -> None:
    if find_spec("kfp") is None:
        raise UserError("the kfp package is missing: pip install 'unirg[pipelines]'")


@app.command("compile")
def compile_pipelines(
    folder: Annotated[Path, typer.Argument(help="Where the YAML files go.")] = Path("pipelines/compiled"),
) -> None:
    """Write every pipeline as KFP's IR YAML."""
    from pipelines.compile import compile_all

    for path in compile_all(folder):
        print(path)


@app.command()
def submit(
    pipeline: Pipeline,
    given: Given = None,
    host: Host = "",
    namespace: Namespace = "",
    kfp_token_file: Token = "",
    experiment: Experiment = "",
    service_account: Account = "",
) -> None:
    """Run a pipeline once; prints the run's id. The same version of it is uploaded once."""
    from pipelines.package import package, parameters
    from pipelines.server import connect

    of = package(pipeline)
    values = parameters(of, given or ())
    server = connect(host, namespace, kfp_token_file)
    version = server.version(of)
    run = server.run(of.version, version, values, server.experiment(experiment or of.name), service_account)
    print(server.page_of(run), file=sys.stderr)
    print(run)


@app.command()
def schedule(
    pipeline: Pipeline,
    given: Given = None,
    cron: Annotated[
        str,
        typer.Option(help="When, in KFP's time zone (UTC unless set), such as '0 3 * * 0'."),
    ] = "",
    on_event: Annotated[
        bool, typer.Option("--on-event", help="When data arrives: deploy a listener in the cluster.")
    ] = False,
    name: Named = "",
    host: Host = "",
    namespace: Namespace = "",
    kfp_token_file: Token = "",
    experiment: Experiment = "",
    service_account: Account = "",
    watch: Watch = "",
    settle: Settle = SETTLE_S,
    longest: Longest = LONGEST_S,
    listener: Annotated[
        list[str] | None, typer.Option(help="Events: KEY=VALUE of the listener's pod: image, token, …")
    ] = None,
    recipe: Annotated[str | None, typer.Option(help="Events: a YAML file with those.")] = None,
) -> None:
    """Have a pipeline run by a clock or when data arrives. The same settings again change nothing."""
    from pipelines.package import package, parameters

    if bool(cron) == on_event:
        raise UserError("name either --cron EXPRESSION or --on-event")
    if cron and (listener or recipe or watch):
        raise UserError("--listener, --recipe and --watch are for --on-event: leave them out with --cron")
    of = package(pipeline)
    values = parameters(of, given or ())
    name = _name(name or of.name)
    if cron:
        from pipelines import recurring
        from pipelines.server import connect

        when = recurring.cron(cron)
        server = connect(host, namespace, kfp_token_file)
        done, made = recurring.schedule(
            server, of, values, when, name, experiment or of.name, service_account
        )
        print(f"schedule {name}: {done}; {when}, one run at a time", file=sys.stderr)
        print(made.recurring_run_id)
        return

    from pipelines import deploy
    from pipelines.events import Place
    from pipelines.server import connect
    from unirg import cluster, config

    if kfp_token_file:
        raise UserError("--kfp-token-file is of this machine: a listener's pod gets its own (kfp_audience)")
    settings = config.load(deploy.ListenerConfig, recipe, listener or ())
    watched = watch or str(values.get("data", ""))
    _burst(settle, longest)
    Place.of(watched)
    connect(host)  # is it an address at all
    if LOOPBACK.match(host):
        raise UserError(f"--host {host} is this machine's: name KFP's API as the listener's pod reaches it")
    words = [pipeline, *(given or ()), "--name", name, "--watch", watched, "--host", host]
    words += ["--settle", f"{settle:g}", "--longest", f"{longest:g}"]
    for option, value in (
        ("--namespace", namespace),
        ("--experiment", experiment),
        ("--service-account", service_account),
    ):
        words += [option, value] if value else []
    where = cluster.connect(settings.namespace, settings.context)
    told = deploy.apply(where, settings, name, words)
    print(f"schedule {name}: {told}; send the bucket's notices there:", file=sys.stderr)
    print(f"http://{deploy.name_of(name)}.{where.namespace}.svc/events")


@app.command()
def unschedule(
    pipeline: Pipeline,
    name: Named = "",
    on_event: Annotated[
        bool, typer.Option("--on-event", help="Take the listener down, not the recurring run.")
    ] = False,
    host: Host = "",
    namespace: Namespace = "",
    kfp_token_file: Token = "",
    cluster_namespace: Annotated[str, typer.Option(help="Where the listener runs; else the context's.")] = "",
    context: Annotated[str, typer.Option(help="The kubeconfig's context; else its current one.")] = "",
) -> None:
    """Remove a schedule. Runs under way go on; what is not there is removed."""
    from pipelines.package import package

    name = _name(name or package(pipeline).name)
    if on_event:
        from pipelines import deploy
        from unirg import cluster

        gone = int(deploy.remove(cluster.connect(cluster_namespace, context), name))
    else:
        from pipelines import recurring
        from pipelines.server import connect

        gone = recurring.unschedule(connect(host, namespace, kfp_token_file), name)
    print(f"schedule {name}: {'removed' if gone else 'there was none'}", file=sys.stderr)


@app.command()
def schedules(host: Host = "", namespace: Namespace = "", kfp_token_file: Token = "") -> None:
    """List the schedules by time: name, cron, whether it is enabled, pipeline's version, id."""
    from pipelines import recurring
    from pipelines.server import connect

    for one in recurring.schedules(connect(host, namespace, kfp_token_file)):
        version = one.pipeline_version_reference.pipeline_version_id
        on = "enabled" if one.mode == "ENABLE" else "disabled"
        print(
            f"{one.display_name}\t{one.trigger.cron_schedule.cron}\t{on}\t{version}\t{one.recurring_run_id}"
        )


@app.command()
def listen(
    pipeline: Pipeline,
    given: Given = None,
    name: Named = "",
    host: Host = "",
    namespace: Namespace = "",
    kfp_token_file: Token = "",
    experiment: Experiment = "",
    service_account: Account = "",
    watch: Watch = "",
    settle: Settle = SETTLE_S,
    longest: Longest = LONGEST_S,
    address: Annotated[str, typer.Option(help="Where it listens; 0.0.0.0 = everywhere.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port for notices; 0 = any.")] = 8080,
    token_file: Annotated[
        str,
        typer.Option(help="Holds the bearer token of the senders; else $UNIRG_LISTEN_TOKEN."),
    ] = "",
    catch_up: Annotated[
        bool, typer.Option("--catch-up", help="Begin with a run, for what came while nobody listened.")
    ] = False,
) -> None:
    """Take an object store's notices and start a run when data has arrived, until SIGTERM or Ctrl-C."""
    from pipelines.events import Place
    from pipelines.listen import Listener, Runs
    from pipelines.package import package, parameters
    from pipelines.server import connect
    from pipelines.webhook import serve

    of = package(pipeline)
    values = parameters(of, given or ())
    _burst(settle, longest)
    place = Place.of(watch or str(values.get("data", "")))
    server = connect(host, namespace, kfp_token_file)
    runs = Runs(server, of, values, experiment or of.name, service_account)
    listener = Listener(place, runs, _name(name or of.name), settle, longest)
    if catch_up:
        listener.catch_up()
    serve(listener, address, port, token_file)


def _burst(settle: float, longest: float) -> None:
    if longest < settle:
        raise UserError(f"--longest {longest:g} is less than --settle {settle:g}: give more")


def _name(name: str) -> str:
    if not NAME.fullmatch(name):
        raise UserError(
            f"--name {name}: write up to 50 lower-case letters, digits and hyphens, a letter first, such as "
            "retrain-north"
        )
    return name
