"""KFP component: grid of settings -> its points, every one checked before any is trained."""

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def sweep_points(
    algorithm: str,
    recipe: str,
    overrides: list,
    grid: list,
    judge_url: str,
    weights: str,
    traceparent: str,
) -> list:
    """The overrides of each point of a grid; fails where one of them is refused.

    Args:
        algorithm: sft or grpo.
        recipe: shipped recipe or YAML file of the algorithm's configuration.
        overrides: `key=value` settings over the recipe, of every point.
        grid: the axes, each `key=value,value,...`.
        judge_url: OpenAI-compatible endpoint that counts errors, for recipes that reward them.
        weights: URI of the scorers' weights, for recipes that reward clinical metrics or validate by them.
        traceparent: W3C trace context of the run.
    """
    from unirg import telemetry
    from unirg.training.sweep import check

    telemetry.join_trace(traceparent)
    return [[*overrides, *point] for point in check(algorithm, recipe, overrides, grid, judge_url, weights)]
