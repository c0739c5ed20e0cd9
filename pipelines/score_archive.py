"""An archive scored by a checkpoint: staged if it is not, served, scored, and the endpoint taken down."""

from kfp import dsl

import components.archive
import components.record
import components.score
import components.serve
import components.stop


@dsl.pipeline(name="unirg-score-archive", description="Serve a checkpoint and score an archive with it.")
def score_archive(
    store: str,
    checkpoint: str,
    archive: str,
    corpus: str = "",
    archive_overrides: list = [],  # noqa: B006 - KFP reads defaults from the signature
    serve_recipe: str = "paper/serve_cluster",
    serve_overrides: list = [],  # noqa: B006
    score_recipe: str = "paper/score",
    score_overrides: list = [],  # noqa: B006
    tracking_uri: str = "",
    traceparent: str = "",
) -> None:
    """Run it. The predictions' URI is the output of the task `score`: KFP lets none out of an exit handler.

    Args:
        store: URI below which every artifact lies, such as s3://bucket/unirg.
        checkpoint: URI of the checkpoint that writes the reports.
        archive: URI of a cohort, of a ReXrank test file, or of a corpus' raw studies.
        corpus: adapter that reads raw studies; empty for a cohort or a ReXrank file.
        archive_overrides: `key=value` settings of staging raw studies.
        serve_recipe: shipped recipe or YAML file of how it is served.
        serve_overrides: `key=value` settings over it, such as cluster.gpus=2.
        score_recipe: shipped recipe or YAML file of what is asked.
        score_overrides: `key=value` settings over it, such as splits=[zero_shot].
        tracking_uri: MLflow's tracking URI; empty writes no metrics store.
        traceparent: W3C trace context that every task joins.
    """
    shared = {"store": store, "traceparent": traceparent}
    serving = {"recipe": serve_recipe, "overrides": serve_overrides, "checkpoint": checkpoint, **shared}
    # Before anything is served, so that no GPU waits for images to be decoded.
    staged = components.archive.archive(archive=archive, corpus=corpus, overrides=archive_overrides, **shared)
    staged.set_display_name("archive").set_caching_options(False)
    stopped = components.stop.stop(**serving)
    stopped.set_display_name("stop").set_caching_options(False)
    with dsl.ExitHandler(stopped, name="serve and score"):
        served = components.serve.serve(**serving)
        served.set_display_name("serve").set_caching_options(False)
        scored = components.score.score(
            recipe=score_recipe,
            overrides=score_overrides,
            cohort=staged.output,
            endpoint=served.output,
            **shared,
        )
        scored.set_display_name("score").set_caching_options(False)
        recorded = components.record.record(
            pipeline="score_archive",
            job=dsl.PIPELINE_JOB_ID_PLACEHOLDER,
            artifact=scored.output,
            tracking_uri=tracking_uri,
            **shared,
        )
        recorded.set_display_name("record").set_caching_options(False)
