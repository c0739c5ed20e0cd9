"""KFP component: corpus -> cohort."""

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def stage(store: str, recipe: str, overrides: list, data: str, hold_out: list, traceparent: str) -> str:
    """Stage a corpus into a cohort; returns its URI.

    Args:
        store: URI below which every artifact lies.
        recipe: shipped recipe or YAML file of `unirg.cohort.stage.StageConfig`.
        overrides: `key=value` settings over the recipe.
        data: URI of the corpus; empty for phantoms.
        hold_out: institutions or corpora kept for the zero-shot set.
        traceparent: W3C trace context of the run.
    """
    from unirg import config, telemetry
    from unirg.cohort.stage import StageConfig, stage

    telemetry.join_trace(traceparent)
    settings = config.load(StageConfig, recipe, overrides, data=data, hold_out=tuple(hold_out))
    return stage(settings, store).uri
