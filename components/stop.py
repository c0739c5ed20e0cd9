"""KFP component: the end of an endpoint, whatever became of the tasks that used it."""

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def stop(
    store: str,
    recipe: str,
    overrides: list,
    checkpoint: str,
    traceparent: str,
    status: dsl.PipelineTaskFinalStatus,
) -> None:
    """Take the endpoint down that `serve` declares of the same inputs: an exit task gets no task's output.

    One on a single machine ended with its user; one in a cluster with `cluster.keep` stays.

    Args:
        store: URI below which every artifact lies.
        recipe: shipped recipe or YAML file of `unirg.serving.endpoint.ServeConfig`.
        overrides: `key=value` settings over the recipe.
        checkpoint: URI of the checkpoint that is served.
        traceparent: W3C trace context of the run.
        status: how the tasks ended, from KFP.
    """
    from unirg import artifact, config, telemetry
    from unirg.serving.endpoint import ServeConfig, open_endpoint, serve

    telemetry.join_trace(traceparent)
    settings = config.load(ServeConfig, recipe, overrides)
    open_endpoint(serve(settings, artifact.open_artifact(checkpoint), store)).stop()
