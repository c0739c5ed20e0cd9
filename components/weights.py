"""KFP component: the scorers' weights, trained on phantoms or collected."""

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def weights(store: str, recipe: str, overrides: list, traceparent: str) -> str:
    """Make or collect what the clinical metrics load; returns the weights' URI.

    Args:
        store: URI below which every artifact lies.
        recipe: shipped recipe or YAML file of `unirg.training.scorers.WeightsConfig`.
        overrides: `key=value` settings over the recipe.
        traceparent: W3C trace context of the run.
    """
    from unirg import config, telemetry
    from unirg.training.scorers import WeightsConfig, weights

    telemetry.join_trace(traceparent)
    return weights(config.load(WeightsConfig, recipe, overrides), store).uri
