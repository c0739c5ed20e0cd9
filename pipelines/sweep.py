"""A grid of settings, each point a task of its own: check all, train each, tabulate them."""

from kfp import dsl

import components.record
import components.sweep_points
import components.sweep_table
import components.train


@dsl.pipeline(name="unirg-sweep", description="Train every point of a grid of settings and tabulate them.")
def sweep(
    store: str,
    cohort: str,
    parent: str,
    weights: str,
    algorithm: str = "sft",
    recipe: str = "paper/sft",
    overrides: list = [],  # noqa: B006 - KFP reads defaults from the signature
    grid: list = ["learning_rate=1e-5,5e-5", "batch_size=128,256,512"],  # noqa: B006
    judge_url: str = "",
    tracking_uri: str = "",
    traceparent: str = "",
) -> str:
    """Run the sweep, the paper's of its SFT by default; returns the table's URI.

    Args:
        store: URI below which every artifact lies, such as s3://bucket/unirg.
        cohort: URI of the cohort.
        parent: URI of the checkpoint that every point starts from.
        weights: URI of the scorers' weights; may be empty where the recipe has no use for them.
        algorithm: sft or grpo.
        recipe: shipped recipe or YAML file of the algorithm's configuration.
        overrides: `key=value` settings over the recipe, of every point.
        grid: the axes, each `key=value,value,...`.
        judge_url: OpenAI-compatible endpoint that counts errors, for recipes that reward them.
        tracking_uri: MLflow's tracking URI; empty writes no metrics store.
        traceparent: W3C trace context that every task joins.
    """
    shared = {"algorithm": algorithm, "recipe": recipe, "traceparent": traceparent}
    given = {"cohort": cohort, "parent": parent, "judge_url": judge_url, "weights": weights, "store": store}
    checked = components.sweep_points.sweep_points(
        overrides=overrides, grid=grid, judge_url=judge_url, weights=weights, **shared
    )
    checked.set_display_name("check the grid").set_caching_options(False)
    with dsl.ParallelFor(items=checked.output, name="points") as point:
        trained = components.train.train(overrides=point, **given, **shared)
        trained.set_display_name("train a point").set_caching_options(False)
    table = components.sweep_table.sweep_table(
        store=store, grid=grid, checkpoints=dsl.Collected(trained.output), traceparent=traceparent
    )
    table.set_display_name("tabulate").set_caching_options(False)
    recorded = components.record.record(
        store=store,
        pipeline="sweep",
        job=dsl.PIPELINE_JOB_ID_PLACEHOLDER,
        artifact=table.output,
        tracking_uri=tracking_uri,
        traceparent=traceparent,
    )
    recorded.set_display_name("record").set_caching_options(False)
    return table.output
