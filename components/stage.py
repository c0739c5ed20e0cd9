"""KFP component: corpus -> cohort."""

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def stage(
    store: str, recipe: str, overrides: list, data: str, hold_out: list, cohorts: list, traceparent: str
) -> str:
    """Stage a corpus into a cohort, or combine cohorts that were staged before; returns its URI.

    Args:
        store: URI below which every artifact lies.
        recipe: shipped recipe or YAML file of `unirg.cohort.stage.StageConfig`.
        overrides: `key=value` settings over the recipe.
        data: URI of the corpus; empty for phantoms.
        hold_out: institutions or corpora kept for the zero-shot set.
        cohorts: URIs of cohorts, or SPLITS=URI: where there are any, they are combined and nothing is staged.
        traceparent: W3C trace context of the run.
    """
    from unirg import config, telemetry
    from unirg.cohort.combine import combine, parts
    from unirg.cohort.stage import StageConfig, stage

    telemetry.join_trace(traceparent)
    if cohorts:
        return combine(parts(cohorts), store).uri
    settings = config.load(StageConfig, recipe, overrides, data=data, hold_out=tuple(hold_out))
    return stage(settings, store).uri
