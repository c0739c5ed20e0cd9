"""KFP component: champion and the next cohort -> challenger."""

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def challenger(
    store: str,
    recipe: str,
    overrides: list,
    cycle: str,
    cohort: str,
    judge_url: str,
    weights: str,
    traceparent: str,
) -> str:
    """Train the steps that the recipe names; returns the challenger's URI.

    Args:
        store: URI below which every artifact lies.
        recipe: folder of recipes: `retrain` in it names the steps' recipes beside it.
        overrides: `key=value` settings over `retrain`.
        cycle: URI of the cycle.
        cohort: URI of the cohort that it is trained on.
        judge_url: OpenAI-compatible endpoint that counts errors.
        weights: URI of the scorers' weights.
        traceparent: W3C trace context of the run.
    """
    from unirg import artifact, config, telemetry
    from unirg.lifecycle.cycle import opened
    from unirg.lifecycle.retrain import RetrainConfig, challenger

    telemetry.join_trace(traceparent)
    settings = config.load(RetrainConfig, f"{recipe}/retrain", overrides)
    studies = artifact.open_artifact(cohort, "cohort")
    return challenger(settings, recipe, opened(cycle), studies, store, judge_url, weights).uri
