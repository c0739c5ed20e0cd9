"""KFP component: evaluation -> the gate's verdict on the challenger."""

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def gate(
    store: str,
    recipe: str,
    overrides: list,
    model: str,
    cycle: str,
    evaluation: str,
    challenger: str,
    tracking_uri: str,
    traceparent: str,
    markdown: dsl.Output[dsl.Markdown],
) -> str:
    """Judge the challenger against the champion, and register it; returns the verdict's URI.

    Args:
        store: URI below which every artifact lies.
        recipe: shipped recipe or YAML file of `unirg.lifecycle.gate_rules.GateConfig`.
        overrides: `key=value` settings over the recipe.
        model: the registered model's name.
        cycle: URI of the cycle.
        evaluation: URI of the evaluation of both.
        challenger: URI of the challenger's checkpoint.
        tracking_uri: MLflow's tracking URI, with the registry.
        traceparent: W3C trace context of the run.
        markdown: the verdict in sentences.
    """
    from pathlib import Path

    from unirg import artifact, config, telemetry
    from unirg.lifecycle import gate, retrain
    from unirg.lifecycle.cycle import opened
    from unirg.lifecycle.registry import Registry

    telemetry.join_trace(traceparent)
    settings = config.load(gate.GateConfig, recipe, overrides)
    judged = artifact.open_artifact(evaluation, "evaluate")
    made = artifact.open_artifact(challenger)
    verdict = retrain.judge(settings, Registry(tracking_uri, model), opened(cycle), judged, made, store)
    Path(markdown.path).write_text("\n\n".join(gate.sentences(gate.read(verdict))))
    return verdict.uri
