"""KFP component: checkpoint -> endpoint."""

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def serve(store: str, recipe: str, overrides: list, checkpoint: str, traceparent: str) -> str:
    """Declare an endpoint for a checkpoint; returns its URI. Replicas start with the first request.

    Args:
        store: URI below which every artifact lies.
        recipe: shipped recipe or YAML file of `unirg.serving.endpoint.ServeConfig`.
        overrides: `key=value` settings over the recipe.
        checkpoint: URI of the checkpoint to serve.
        traceparent: W3C trace context of the run.
    """
    from unirg import artifact, config, telemetry
    from unirg.serving.endpoint import ServeConfig, serve

    telemetry.join_trace(traceparent)
    settings = config.load(ServeConfig, recipe, overrides)
    return serve(settings, artifact.open_artifact(checkpoint), store).uri
