"""The paper's whole recipe: stage, weights, SFT, GRPO in two steps, serve, score, evaluate, report."""

from kfp import dsl

import components.evaluate
import components.record
import components.report
import components.score
import components.serve
import components.stage
import components.train
import components.weights

PERMUTED = ("images permuted", ["permute_images=1", "splits=[test]"])
"""The control: a policy shown other studies' images. A score as good as with their own would mean that it
does not look at the image."""
SAMPLED = ("sampled", ["temperature=1.0", "splits=[test]"])
"""Reports drawn as GRPO draws its rollouts: its objective is their expected reward, not the greedy one's."""
PRIORS = ("with priors", ["with_priors=true"])
"""What the previous study brings, beside the same policy without it: the paper's Figure 3a."""
EXTRA = {"sft": [PERMUTED, SAMPLED], "grpo step 1": [SAMPLED], "grpo step 2": [SAMPLED, PRIORS]}
"""How a policy is scored besides greedily on the held-out and zero-shot studies."""


@dsl.pipeline(name="unirg-train", description="Train, serve, score and evaluate a radiology-report policy.")
def train(
    store: str,
    recipe: str = "paper",
    stage_overrides: list = [],  # noqa: B006 - KFP reads defaults from the signature
    data: str = "",
    hold_out: list = [],  # noqa: B006
    cohorts: list = [],  # noqa: B006
    judge_url: str = "",
    tracking_uri: str = "",
    traceparent: str = "",
) -> str:
    """Run the recipe; returns the report's URI.

    Args:
        store: URI below which every artifact lies, such as s3://bucket/unirg.
        recipe: folder of shipped recipes: `paper` or `toy`.
        stage_overrides: `key=value` settings over the staging recipe, such as corpus=iu_xray.
        data: URI of the corpus; empty for phantoms.
        hold_out: institutions or corpora never trained on: the zero-shot set.
        cohorts: URIs of cohorts staged before, or SPLITS=URI, to combine in place of staging a corpus: the
            paper's four.
        judge_url: OpenAI-compatible endpoint that counts errors (CheXprompt).
        tracking_uri: MLflow's tracking URI; empty writes no metrics store.
        traceparent: W3C trace context that every task joins.
    """
    shared = {"store": store, "traceparent": traceparent}

    def component(factory, name, step, **inputs):  # type: ignore[no-untyped-def]
        given = {"overrides": [], **shared, **inputs}
        task = factory(recipe=f"{recipe}/{step}", **given)
        task.set_display_name(name).set_caching_options(False)
        return task.outputs["Output"]  # beside it, some tasks have what KFP's UI shows

    given = {"overrides": stage_overrides, "data": data, "hold_out": hold_out, "cohorts": cohorts}
    cohort = component(components.stage.stage, "stage", "stage", **given)
    weights = component(components.weights.weights, "weights", "weights")

    def trained(algorithm, step, parent):  # type: ignore[no-untyped-def]
        given = {"algorithm": algorithm, "cohort": cohort, "parent": parent, "judge_url": judge_url}
        given["weights"] = weights if algorithm != "base" else ""  # SFT validates with them
        return component(components.train.train, f"train {step}", step, **given)

    policies = {"untrained": trained("base", "base", "")}
    policies["sft"] = trained("sft", "sft", policies["untrained"])
    policies["grpo step 1"] = trained("grpo", "grpo_step1", policies["sft"])
    policies["grpo step 2"] = trained("grpo", "grpo_step2", policies["grpo step 1"])

    predictions = {}
    for name, policy in policies.items():
        endpoint = component(components.serve.serve, f"serve {name}", "serve", checkpoint=policy)
        given = {"cohort": cohort, "endpoint": endpoint}
        predictions[name] = component(components.score.score, f"score {name}", "score", **given)
        for how, overrides in EXTRA.get(name, []):
            system = f"{name}, {how}"
            task = component(components.score.score, f"score {system}", "score", overrides=overrides, **given)
            predictions[system] = task

    results = {"cohort": cohort, "predictions": predictions, "checkpoints": policies}
    evaluation = component(
        components.evaluate.evaluate,
        "evaluate",
        "evaluate",
        overrides=["experiment=train"],
        tracking_uri=tracking_uri,
        judge_url=judge_url,
        weights=weights,
        **results,
    )
    report = component(components.report.report, "report", "report", evaluation=evaluation, **results)
    recorded = components.record.record(
        pipeline="train",
        job=dsl.PIPELINE_JOB_ID_PLACEHOLDER,
        artifact=report,
        tracking_uri=tracking_uri,
        **shared,
    )
    recorded.set_display_name("record").set_caching_options(False)
    return report
