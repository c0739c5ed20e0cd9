"""KFP component: what has arrived at an institution -> a cycle of retraining, or nothing to do."""

from typing import NamedTuple

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def watch(
    store: str,
    recipe: str,
    overrides: list,
    model: str,
    cohort: str,
    run: str,
    job: str,
    tracking_uri: str,
    traceparent: str,
    metrics: dsl.Output[dsl.Metrics],
) -> NamedTuple("Begun", Output=str, watch=str, champion=str):  # type: ignore[valid-type]
    """Begin a cycle, or go on with one; returns URIs of cycle, watch and champion, empty for nothing to do.

    The cycle is called Output because KFP's local runner decides by outputs of that name alone.

    Args:
        store: URI below which every artifact lies.
        recipe: shipped recipe or YAML file of `unirg.lifecycle.retrain.RetrainConfig`.
        overrides: `key=value` settings over the recipe, such as watch.stage.data=s3://incoming.
        model: the registered model's name.
        cohort: URI of the cohort that the first cycle compares with; empty: the champion's.
        run: this run's id, where a run that is started again keeps it; empty: `job`.
        job: KFP's id of the run.
        tracking_uri: MLflow's tracking URI, with the registry.
        traceparent: W3C trace context of the run.
        metrics: what was found, in numbers.
    """
    from unirg import config, telemetry
    from unirg.lifecycle.cycle import Busy
    from unirg.lifecycle.registry import Registry
    from unirg.lifecycle.retrain import RetrainConfig, begin

    telemetry.join_trace(traceparent)
    settings = config.load(RetrainConfig, recipe, overrides)
    try:
        cycle, found = begin(settings, Registry(tracking_uri, model), cohort, store, run or job, tracking_uri)
    except Busy as busy:
        print(busy)
        metrics.log_metric("busy", 1)
        return ("", "", "")
    for name, count in found.manifest.counts.items() if found else ():
        metrics.log_metric(name, count)
    return (cycle.uri, found.uri, cycle.begin.checkpoint) if found else ("", "", "")
