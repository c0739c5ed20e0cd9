"""Data and model cards: whose studies these are, and how each evaluated model was made.

All of it is read off manifests and the cohort's index, so a card tells what happened and not what was meant
to. After the model cards of Mitchell et al. (2019), as far as manifests can fill them.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from unirg.artifact import Artifact, ArtifactError, InputRef, open_artifact
from unirg.cohort.card import source
from unirg.cohort.reader import Cohort

MEASURES = ("metrics", "weights", "judge")
"""Inputs of an evaluation that say what measured: the metrics' code, the scorers' weights, the judge."""
TOLD = ("seed", "epochs", "learning_rate", "kl", "rewards")
"""Settings of a training that its card shows; all of them are in the recipe below."""
Record = dict[str, Any]


def cards(
    evaluation: Artifact,
    cohort: Cohort | None,
    predictions: Mapping[str, Artifact | str],
    checkpoints: Mapping[str, Artifact],
    policies: Sequence[str],
) -> Record:
    """All cards as JSON types.

    Keys of the result:
        data      `corpora` (corpus, name, licence, public, synthetic), hold_out, `splits` (split, studies,
                  patients), `places` (corpus, institution, split -> studies), dropped (reason -> records);
                  None without a cohort
        models    one a checkpoint: systems (that it wrote the reports of), base (the model it starts from,
                  None where that cannot be followed), parameters (None: not known), stages from the first:
                  stage, digest, steps, studies, and those of `TOLD` that it has
        unknown   policies that no checkpoint is known of
        measures  digests of `MEASURES`, of those that were used

    Args:
        predictions: of the policies; prediction files tell no checkpoint.
        policies: names of the evaluated systems that are no baselines.
    """
    models = [_model(name, made, predictions) for name, made in checkpoints.items()]
    known = {system for model in models for system in model["systems"]}
    inputs = evaluation.manifest.inputs
    return {
        "data": _data(cohort) if cohort else None,
        "models": sorted(models, key=lambda model: [policies.index(name) for name in model["systems"]]),
        "unknown": [name for name in policies if name not in known],
        "measures": {name: inputs[name].digest for name in MEASURES if name in inputs},
    }


def _data(cohort: Cohort) -> Record:
    studies = cohort.studies()
    patients: defaultdict[str, set[tuple[str, str]]] = defaultdict(set)
    splits: Counter[str] = Counter()
    places: defaultdict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for study in studies:
        split = str(study.split)
        splits[split] += 1
        patients[split].add((study.corpus, study.patient_id))
        places[study.corpus, study.institution][split] += 1
    corpora = []
    for corpus in dict.fromkeys(corpus for corpus, _ in sorted(places)):
        origin = source(corpus)
        about = {"name": origin.name, "licence": origin.licence, "public": origin.open}
        corpora.append({"corpus": corpus, **about, "synthetic": corpus == "phantom"})
    return {
        "corpora": corpora,
        "hold_out": list(cohort.index.hold_out),
        "splits": [{"split": n, "studies": splits[n], "patients": len(patients[n])} for n in sorted(splits)],
        "places": [
            {"corpus": corpus, "institution": place, "studies": dict(sorted(found.items()))}
            for (corpus, place), found in sorted(places.items(), key=lambda each: (-each[1].total(), each[0]))
        ],
        "dropped": cohort.index.dropped,
    }


def _model(name: str, checkpoint: Artifact, predictions: Mapping[str, Artifact | str]) -> Record:
    """The card of one checkpoint."""
    stages = list(_stages(checkpoint))[::-1]
    first = stages[0]
    writers = [
        system
        for system, made in predictions.items()
        if isinstance(made, Artifact)
        if (model := made.manifest.inputs.get("model")) and model.digest == checkpoint.digest
    ]
    return {
        "systems": sorted({name, *writers}, key=lambda system: (system != name, system)),
        "base": first.pop("base"),
        "parameters": first.pop("parameters"),
        "stages": stages,
    }


def _stages(made: Artifact) -> Iterator[Record]:
    """What was done to a model, the last first; the first record has `base` and `parameters`, too."""
    while True:
        manifest = made.manifest
        done: Record = {"stage": manifest.stage, "digest": made.digest}
        done |= {key: manifest.counts[key] for key in ("steps", "studies") if key in manifest.counts}
        done |= {key: manifest.config[key] for key in TOLD if manifest.config.get(key) is not None}
        parent = manifest.inputs.get("parent")
        if parent is None:
            base = {"base": manifest.config.get("source"), "parameters": manifest.counts.get("parameters")}
            yield done | base
            return
        yield done
        before = _opened(parent)
        if before is None:
            # It was dropped since, or lies in a store that is not at hand: the digest still names it.
            yield {"stage": None, "digest": parent.digest, "base": None, "parameters": None}
            return
        made = before


def _opened(reference: InputRef) -> Artifact | None:
    """The artifact that an input names, if it is still there and the same."""
    if reference.uri is None:
        return None
    try:
        found = open_artifact(reference.uri)
    except ArtifactError:
        return None
    return found if found.digest == reference.digest else None
