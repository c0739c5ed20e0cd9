"""The gate's first round: whether there is anything to test, and whether the numbers may decide.

Looks left, both sides measured and asked alike by scorers that are fit to decide, enough studies, scores of
nearly all of them, no alarm. None of these rules depends on who is better, so one that fails costs no alpha.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from unirg.artifact import Artifact, open_artifact
from unirg.errors import UserError
from unirg.evaluation import suites
from unirg.lifecycle.gate_data import Judged
from unirg.lifecycle.gate_rules import GateConfig, Rule
from unirg.metrics.offline_judge import MODEL as OFFLINE_JUDGE

ASKED = ("with_priors", "max_tokens", "truncated", "temperature", "permute_images", "limit")
"""Settings of `scoring` that change what a model is asked; with its prompts they must be the same."""
OF_FILES = ("two_runs", "uneven")
"""Alarms that say that a system's predictions are not what it wrote: the champion's count, too."""


@dataclass(frozen=True)
class Side:
    """One of the two that are compared."""

    name: str
    """Of the system in the evaluation."""
    checkpoint: Artifact


@dataclass(frozen=True)
class Look:
    """An earlier verdict on the same test set."""

    judged: str
    """Digest of what was judged, and by which rules."""
    before: tuple[str, ...]
    """`judged` of the looks before it."""
    spent: float
    """Of alpha; 0 where nothing was tested."""
    shared: float
    """Share of the present test set that it judged."""
    uri: str


class Checks:
    """The rules of the first round over one evaluation.

    `gains` is rival -> (studies,) the challenger's gain over it; `used` counts the looks made before.
    """

    def __init__(
        self,
        config: GateConfig,
        found: Judged,
        challenger: Side,
        champion: Side | None,
        before: Sequence[Look],
    ) -> None:
        self._config, self._found, self._before = config, found, before
        self._challenger, self._champion = challenger, champion
        rivals = [champion.name] if champion else found.baselines
        self.gains = {rival: found.gain(challenger.name, rival, config.metric) for rival in rivals}
        self.used = sum(look.spent > 0 for look in before)

    def rules(self) -> list[Rule]:
        found = [self._looks(), self._scorers(), self._asked(), *self._sizes(), self._unscored()]
        return [*found, self._alarms()] if self._config.alarms else found

    def _looks(self) -> Rule:
        """Whether there is a look left, and alpha for it: earlier ones may have had other rules."""
        planned, level = self._config.looks, self._config.alpha / self._config.looks
        left = self._config.alpha - sum(look.spent for look in self._before)
        passed = self.used < planned and left >= level * (1 - 1e-9)
        told = f"{self.used} of {planned} planned looks at this test set were made before"
        over = self.used + 1 - planned
        return Rule(
            "looks",
            "looks left",
            passed,
            f"{told}." if passed else f"{told}, and {max(left, 0):.4f} of alpha is left: renew the test set.",
            *(float(self.used), None, float(planned), None if passed else float(max(over, 0)), "looks"),
        )

    def _scorers(self) -> Rule:
        """Both sides are measured in one evaluation, hence alike; whether by scorers that may decide."""
        wrong = list(self._doubts())
        return Rule(
            "scorers",
            "same scorers, fit to decide",
            not wrong,
            "; ".join(wrong) + "." if wrong else "Both were measured by the same scorers.",
            *(float(len(wrong)), None, 0.0, float(len(wrong)) if wrong else None, "doubts"),
        )

    def _doubts(self) -> Iterator[str]:
        config, data = self._config, self._found.data
        measured = {name: data["metrics"][name] for name in config.used}
        remedy = "use public weights and a language model, or set allow_toy=true for a trial"
        if not config.allow_toy:
            if data["scorers"] == "toy scorers" and any(each["modelled"] for each in measured.values()):
                yield f"Toy scorers are no basis of a promotion: {remedy}"
            if data["judge"] == OFFLINE_JUDGE and any(each["judged"] for each in measured.values()):
                yield f"The offline judge is no basis of a promotion: {remedy}"
            labeller = suites.read(self._found.evaluation).get("conditions", {}).get("labeller", "")
            if "toy" in labeller and config.guards.condition_margin is not None:
                yield f"A toy's labels of conditions are no basis of a promotion: {remedy}"
        for name, each in measured.items():
            if each["judged"] and data["judge"] is None:
                yield f"No judge counted errors, which {name} needs: set judge_model and judge_url"

    def _asked(self) -> Rule:
        """Whether both models were asked the same."""
        differing: list[str] = []
        if self._champion:
            ours, theirs = (
                _predictions(self._found.evaluation, side.name).manifest
                for side in (self._challenger, self._champion)
            )
            differing = [name for name in ASKED if ours.config.get(name) != theirs.config.get(name)]
            if ours.inputs.get("prompts") != theirs.inputs.get("prompts"):
                differing.append("prompt")
        return Rule(
            "scorers",
            "same question",
            not differing,
            f"The two were asked differently ({', '.join(differing)}): score both with one recipe."
            if differing
            else "Both were asked the same.",
            *(float(len(differing)), None, 0.0, float(len(differing)) if differing else None, "settings"),
        )

    def _sizes(self) -> Iterator[Rule]:
        if not self.gains:
            yield Rule(
                "size",
                "somebody to beat",
                False,
                "There is neither a champion nor a baseline: evaluate on a cohort with a training split.",
            )
        for rival, gain in self.gains.items():
            kept = ~np.isnan(gain)
            people = {who for who, scored in zip(self._found.people, kept.tolist(), strict=True) if scored}
            counts = {"studies": int(kept.sum()), "patients": len(people)}
            for unit, least in (
                ("studies", self._config.min_studies),
                ("patients", self._config.min_patients),
            ):
                short = least - counts[unit]
                yield Rule(
                    "size",
                    f"{unit} compared with {rival}",
                    short <= 0,
                    f"{counts[unit]} {unit} have both scores; {least} are needed"
                    + (f": short by {short}." if short > 0 else "."),
                    *(float(counts[unit]), None, float(least), float(short) if short > 0 else None, unit),
                    studies=counts["studies"],
                    patients=counts["patients"],
                )

    def _unscored(self) -> Rule:
        """Of the scores that any rule uses, the one that the challenger lacks most often counts."""
        limit, size = self._config.max_unscored, max(len(self._found.studies), 1)
        lacks = {
            name: int(np.isnan(self._found.column(self._challenger.name, name)).sum()) / size
            for name in self._config.used
        }
        worst = max(lacks, key=lambda name: lacks[name])
        share = lacks[worst]
        passed = share <= limit
        told = (
            f"{self._challenger.name} has no {worst} of {share:.1%} of the {len(self._found.studies)} studies"
        )
        return Rule(
            "unscored",
            "unscored studies",
            passed,
            f"{told}; {limit:.1%} may lack one" + ("." if passed else f": over by {share - limit:.1%}."),
            *(share, None, limit, None if passed else share - limit, "of the studies"),
            studies=len(self._found.studies),
        )

    def _alarms(self) -> Rule:
        told = suites.read(self._found.evaluation)
        wanted = self._config.alarms
        silent = [
            f"Suite {each['suite']} did not run: {each['why']}."
            for each in told["not_run"]
            if each["suite"] in wanted and not each.get("system")
        ]
        champion = self._champion.name if self._champion else ""
        raised = [
            each["sentence"]
            for each in suites.alarms(told)
            if each["suite"] in wanted
            and (
                each["system"] in (self._challenger.name, None)
                or (each["system"] == champion and each["alarm"] in OF_FILES)
            )
        ]
        found = raised + silent
        return Rule(
            "alarms",
            f"no alarm ({', '.join(wanted)})",
            not found,
            " ".join(found) if found else "No alarm was raised.",
            *(float(len(found)), None, 0.0, float(len(found)) if found else None, "alarms"),
        )


def check_checkpoint(evaluation: Artifact, side: Side) -> None:
    """Refuse a checkpoint that did not write what was evaluated under its name."""
    model = _predictions(evaluation, side.name).manifest.inputs.get("model")
    if model is None or model.digest != side.checkpoint.digest:
        raise UserError(
            f"{side.checkpoint.uri} is not the checkpoint that wrote the predictions of {side.name}: name "
            "that one, or score this one and evaluate again"
        )


def _predictions(evaluation: Artifact, name: str) -> Artifact:
    found = evaluation.manifest.inputs.get(f"predictions:{name}")
    if found is None or found.uri is None:
        raise UserError(
            f"the predictions of {name} are a file, so nobody knows its checkpoint: evaluate what `unirg "
            "score` made of it"
        )
    return open_artifact(found.uri, "score")
