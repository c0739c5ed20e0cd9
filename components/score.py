"""KFP component: cohort and endpoint -> predictions."""

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def score(store: str, recipe: str, overrides: list, cohort: str, endpoint: str, traceparent: str) -> str:
    """Have an endpoint write a report for every study of a cohort; returns the predictions' URI.

    Args:
        store: URI below which every artifact lies.
        recipe: shipped recipe or YAML file of `unirg.scoring.archive.ScoreConfig`.
        overrides: `key=value` settings over the recipe.
        cohort: URI of the cohort.
        endpoint: URI of the endpoint that `serve` declared.
        traceparent: W3C trace context of the run.
    """
    from unirg import artifact, config, telemetry
    from unirg.scoring.archive import ScoreConfig, score
    from unirg.serving.endpoint import open_endpoint

    telemetry.join_trace(traceparent)
    settings = config.load(ScoreConfig, recipe, overrides)
    served = open_endpoint(artifact.open_artifact(endpoint, "serve"))
    return score(settings, artifact.open_artifact(cohort, "cohort"), served, store).uri
