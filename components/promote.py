"""KFP component: the gate's verdict -> the champion, and what the endpoint serves."""

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def promote(
    store: str,
    recipe: str,
    overrides: list,
    model: str,
    cycle: str,
    verdict: str,
    report: str,
    cohort: str,
    asking: str,
    serving: str,
    serving_overrides: list,
    tracking_uri: str,
    traceparent: str,
) -> str:
    """Promote a challenger that passed, by way of a canary, and end the cycle; returns how it ended.

    Args:
        store: URI below which every artifact lies.
        recipe: shipped recipe or YAML file of `unirg.lifecycle.promote.PromoteConfig`.
        overrides: `key=value` settings over the recipe.
        model: the registered model's name.
        cycle: URI of the cycle.
        verdict: URI of the gate's verdict.
        report: URI of the report. The cycle ends here, so that a run killed earlier comes back to all of it.
        cohort: URI of the cohort whose studies the canary is asked about.
        asking: shipped recipe or YAML file of `ScoreConfig`: how it is asked.
        serving: shipped recipe or YAML file of `ServeConfig`: the champion's endpoint.
        serving_overrides: `key=value` settings over it, such as cluster.service=unirg-cxr.
        tracking_uri: MLflow's tracking URI, with the registry.
        traceparent: W3C trace context of the run.
    """
    from unirg import artifact, config, telemetry
    from unirg.lifecycle import cycle as cycles
    from unirg.lifecycle import promote, retrain
    from unirg.lifecycle.registry import Registry
    from unirg.scoring.archive import ScoreConfig
    from unirg.serving.endpoint import ServeConfig

    telemetry.join_trace(traceparent)
    settings = config.load(promote.PromoteConfig, recipe, overrides)
    production = promote.Production(
        config.load(ServeConfig, serving, serving_overrides),
        config.load(ScoreConfig, asking),
        artifact.open_artifact(cohort, "cohort"),
        store,
    )
    registry, judged = Registry(tracking_uri, model), artifact.open_artifact(verdict, "gate")
    made = [judged, artifact.open_artifact(report, "report")]
    end = retrain.conclude(settings, registry, cycles.opened(cycle), made, production, tracking_uri)
    print(f"{end.outcome}: {end.why}")
    return end.outcome
