"""KFP component: cohort and what has arrived -> the next cohort."""

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def grow(store: str, watch: str, traceparent: str) -> str:
    """Add what a watch found to the cohort that it was compared with; returns the next cohort's URI.

    Args:
        store: URI below which every artifact lies.
        watch: URI of the watch.
        traceparent: W3C trace context of the run.
    """
    from unirg import artifact, telemetry
    from unirg.cohort.grow import grow

    telemetry.join_trace(traceparent)
    return grow(artifact.open_artifact(watch, "watch"), store).uri
