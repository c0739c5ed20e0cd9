"""New data to a new champion: watch, grow, train, score, evaluate, gate, promote.

A run whose incoming place holds too little ends after `watch`, green, as does one that finds another at work.
"""

from kfp import dsl

import components.challenger
import components.evaluate
import components.gate
import components.grow
import components.promote
import components.report
import components.score
import components.serve
import components.watch
import components.weights

COMPARED = [
    "systems=[champion, challenger]",
    "comparisons=[[challenger, champion]]",
    "regression_pairs=[[challenger, champion]]",
    "prior_pairs=[]",
    "ablations={}",
    "experiment=retrain",
]
"""What is evaluated in place of the training recipe's systems."""


@dsl.pipeline(name="unirg-retrain", description="Retrain on new data; a better model becomes the champion.")
def retrain(
    store: str,
    tracking_uri: str,
    recipe: str = "paper",
    overrides: list = [],  # noqa: B006 - KFP reads defaults from the signature
    cohort: str = "",
    model: str = "unirg",
    judge_url: str = "",
    gate_overrides: list = [],  # noqa: B006
    promote_overrides: list = [],  # noqa: B006
    serving: str = "paper/serve_cluster",
    serving_overrides: list = ["cluster.service=unirg-cxr"],  # noqa: B006
    run: str = "",
    traceparent: str = "",
) -> None:
    """Run a cycle. How it ended is the output of the task `promote`.

    Args:
        store: URI below which every artifact lies, such as s3://bucket/unirg.
        tracking_uri: MLflow's tracking URI, with the registry that says who is champion.
        recipe: folder of recipes: `paper` or `toy`.
        overrides: `key=value` settings over its `retrain`, such as watch.stage.data=s3://incoming.
        cohort: URI of the cohort that the first cycle compares with; empty: the champion's.
        model: the registered model's name.
        judge_url: OpenAI-compatible endpoint that counts errors (CheXprompt).
        gate_overrides: `key=value` settings over its `gate`.
        promote_overrides: `key=value` settings over its `promote`, such as approval=true.
        serving: recipe or YAML file of the champion's endpoint.
        serving_overrides: `key=value` settings over it; `cluster.service` names it.
        run: id of this run, where one that is started again keeps it; empty: KFP's own.
        traceparent: W3C trace context that every task joins.
    """
    shared = {"store": store, "traceparent": traceparent}
    registry = {"model": model, "tracking_uri": tracking_uri}

    def task(factory, name, **inputs):  # type: ignore[no-untyped-def]
        return factory(**shared, **inputs).set_display_name(name).set_caching_options(False)

    def made(factory, name, step, **inputs):  # type: ignore[no-untyped-def]
        given = {"recipe": f"{recipe}/{step}", "overrides": [], **inputs}
        return task(factory, name, **given).outputs["Output"]

    begun = task(
        components.watch.watch,
        "watch",
        recipe=f"{recipe}/retrain",
        overrides=overrides,
        cohort=cohort,
        run=run,
        job=dsl.PIPELINE_JOB_ID_PLACEHOLDER,
        **registry,
    )
    cycle, champion = begun.outputs["Output"], begun.outputs["champion"]
    with dsl.If(cycle != "", name="a cycle"):
        grown = task(components.grow.grow, "grow", watch=begun.outputs["watch"]).output
        weights = made(components.weights.weights, "weights", "weights")
        judged = {"judge_url": judge_url, "weights": weights}
        challenger = task(
            components.challenger.challenger,
            "train challenger",
            recipe=recipe,
            overrides=overrides,
            cycle=cycle,
            cohort=grown,
            **judged,
        ).output
        policies = {"champion": champion, "challenger": challenger}
        predictions = {}
        for name, policy in policies.items():
            endpoint = made(components.serve.serve, f"serve {name}", "serve", checkpoint=policy)
            given = {"cohort": grown, "endpoint": endpoint}
            predictions[name] = made(components.score.score, f"score {name}", "score", **given)
        results = {"cohort": grown, "predictions": predictions, "checkpoints": policies}
        given = {"overrides": COMPARED, "tracking_uri": tracking_uri, **results, **judged}
        evaluation = made(components.evaluate.evaluate, "evaluate", "evaluate", **given)
        given = {"overrides": ["focus=challenger", "title=Challenger and champion"], **results}
        page = made(components.report.report, "report", "report", evaluation=evaluation, **given)
        given = {"evaluation": evaluation, "challenger": challenger, "cycle": cycle, **registry}
        verdict = made(components.gate.gate, "gate", "gate", overrides=gate_overrides, **given)
        task(
            components.promote.promote,
            "promote",
            recipe=f"{recipe}/promote",
            overrides=promote_overrides,
            cycle=cycle,
            verdict=verdict,
            report=page,
            cohort=grown,
            asking=f"{recipe}/score",
            serving=serving,
            serving_overrides=serving_overrides,
            **registry,
        )
