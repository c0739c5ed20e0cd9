"""KFP component: cohort and parent policy -> checkpoint."""

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def train(
    store: str,
    algorithm: str,
    recipe: str,
    overrides: list,
    cohort: str,
    parent: str,
    judge_url: str,
    weights: str,
    traceparent: str,
) -> str:
    """Train a policy; returns the checkpoint's URI.

    Args:
        store: URI below which every artifact lies.
        algorithm: base (make or fetch the policy to start from), sft or grpo.
        recipe: shipped recipe or YAML file of the algorithm's configuration.
        overrides: `key=value` settings over the recipe.
        cohort: URI of the cohort.
        parent: URI of the checkpoint to start from; empty for base.
        judge_url: OpenAI-compatible endpoint that counts errors, for recipes that reward them.
        weights: URI of the scorers' weights, for recipes that reward clinical metrics or validate
            by them; empty for none.
        traceparent: W3C trace context of the run.
    """
    from unirg import telemetry
    from unirg.training import train

    telemetry.join_trace(traceparent)
    return train(algorithm, recipe, overrides, cohort, parent, store, judge_url, weights).uri
