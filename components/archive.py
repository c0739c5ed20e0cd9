"""KFP component: archive -> cohort to score."""

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def archive(store: str, archive: str, corpus: str, overrides: list, traceparent: str) -> str:
    """Find or stage the studies of an archive; returns the cohort's URI.

    Args:
        store: URI below which every artifact lies.
        archive: URI of a cohort, of a ReXrank test file, or of a corpus' raw studies.
        corpus: adapter that reads raw studies; empty for a cohort or a ReXrank file.
        overrides: `key=value` settings of staging.
        traceparent: W3C trace context of the run.
    """
    from unirg import telemetry
    from unirg.scoring.inputs import archive_of

    telemetry.join_trace(traceparent)
    return archive_of(archive, corpus, store, overrides).uri
