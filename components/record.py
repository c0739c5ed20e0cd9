"""KFP component: what a pipeline made -> its run in the metrics store, with a child for each stage."""

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def record(store: str, pipeline: str, job: str, artifact: str, tracking_uri: str, traceparent: str) -> None:
    """Record a pipeline's run and anchor the audit at it.

    Args:
        store: URI below which every artifact lies.
        pipeline: its name, the experiment's.
        job: KFP's id of the run.
        artifact: URI of what it made last; all that is behind it is recorded.
        tracking_uri: MLflow's tracking URI; empty writes no metrics store.
        traceparent: W3C trace context of the run.
    """
    from unirg import artifact as artifacts
    from unirg import telemetry
    from unirg.lifecycle.recording import record

    telemetry.join_trace(traceparent)
    if tracking_uri:
        record(tracking_uri, pipeline, job, [artifacts.open_artifact(artifact)], store)
