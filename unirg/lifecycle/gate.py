"""The stage `gate`: may this challenger take the champion's place? The verdict is an artifact.

    found = gate_data.Judged(config, evaluation)
    looks = earlier(store, found.study_set, config.overlap)
    verdict = gate(config, evaluation, Side("challenger", made), Side("champion", now), looks, store)

Rules come in two rounds. The first asks whether there is anything to test: looks left, both sides measured
alike, enough studies, no alarm. If one of these fails nothing is tested and no alpha is spent. Then come the
primary test and the harm guards (`gate_rules`). `verdict.json` has

    passed           whether the challenger may become the champion
    sentence         why, for a person
    rules            `gate_rules.Rule` each, in order
    alpha            total, level (of this look), before, spent, left
    looks            planned, before (what was judged), left
    renew_test_set   whether it is time for a new test set
    test_set, split, setting, evaluation, challenger, champion, scorers, judge, judged

**Looks.** Every verdict that tested something on (nearly) the same studies is a look at that test set,
whoever was champion. Each spends alpha / planned looks, so that the chance of any false promotion among all
of them is at most alpha (Bonferroni, whatever the tests have in common); after the last one the gate refuses.
The same judgement made again finds its verdict and is no look; with other rules it is one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from unirg import artifact, storage, telemetry
from unirg.artifact import Artifact
from unirg.config import canonical_json, identity
from unirg.errors import UserError
from unirg.lifecycle.gate_checks import Checks, Look, Side, check_checkpoint
from unirg.lifecycle.gate_data import Judged, StudySet
from unirg.lifecycle.gate_rules import GateConfig, Rule, guarded, primary
from unirg.lifecycle.lineage import artifacts

VERSION = 1
STAGE = "gate"
FILE = "verdict.json"
STUDIES = "studies.json"
"""The digests of `StudySet`, by which a later gate knows its own test set again."""


def read(verdict: Artifact) -> dict[str, Any]:
    """The content of a verdict."""
    return dict(json.loads(verdict.path(FILE).read_bytes()))


def earlier(store: str, studies: StudySet, overlap: float = 0.1) -> tuple[Look, ...]:
    """The looks at a test set that the store has verdicts of, sorted.

    Args:
        overlap: share of the studies that a verdict on another test set may have judged, too.

    Raises:
        ArtifactError: a verdict cannot be read, so nobody can say what was spent.
    """
    found = []
    for made in artifacts(store, STAGE):
        shared = studies.shared(json.loads(made.path(STUDIES).read_bytes()))
        if shared > overlap:
            told = read(made)
            before = tuple(told["looks"]["before"])
            found.append(Look(told["judged"], before, told["alpha"]["spent"], shared, made.uri))
    return tuple(sorted(found, key=lambda look: look.judged))


@telemetry.verb("gate")
def gate(
    config: GateConfig,
    evaluation: Artifact,
    challenger: Side,
    champion: Side | None,
    looks: Sequence[Look],
    store: str,
) -> Artifact:
    """Judge a challenger; the artifact holds the verdict, whatever it is.

    Args:
        evaluation: of stage `evaluate`, with both systems scored on the same studies.
        champion: None where there is none yet: the challenger must then beat the baselines.
        looks: `earlier` verdicts on the same test set; this one, made before, may be among them.

    Raises:
        UserError: the evaluation lacks what a rule needs, or a checkpoint is not the one that was evaluated.
    """
    sides = [side for side in (challenger, champion) if side]
    if len({side.name for side in sides}) < len(sides):
        raise UserError(f"{challenger.name} is both challenger and champion: name two systems")
    digests = {side.name: side.checkpoint.digest for side in sides}
    told = [identity(config), evaluation.digest, challenger.name, champion and champion.name, digests]
    judged = storage.sha256(canonical_json(told))
    before = _before(looks, judged)
    inputs: dict[str, Artifact | str] = {
        "evaluation": evaluation,
        "challenger": challenger.checkpoint,
        "names": storage.sha256(canonical_json([side.name for side in sides])),
        "looks": storage.sha256(canonical_json([[look.judged, look.spent] for look in before])),
    }
    if champion:
        inputs["champion"] = champion.checkpoint
    with artifact.draft(store, STAGE, VERSION, config, inputs) as draft:
        if draft.committed:
            return draft.committed
        found = Judged(config, evaluation)
        for side in sides:
            found.need(side.name)
            check_checkpoint(evaluation, side)
        verdict = _Verdict(config, found, challenger, champion, before).made() | {"judged": judged}
        for name, content in ((FILE, verdict), (STUDIES, sorted(found.study_set.studies))):
            (draft.out / name).write_text(json.dumps(content, indent=1, sort_keys=True, allow_nan=False))
        failed = sum(rule["passed"] is False for rule in verdict["rules"])
        return draft.commit({"passed": int(verdict["passed"]), "failed": failed})


def sentences(verdict: Mapping[str, Any]) -> list[str]:
    """The verdict for the terminal and the audit: the decision, what failed by how much, what is left."""
    failed = [rule["sentence"] for rule in verdict["rules"] if rule["passed"] is False]
    shown = [rule["sentence"] for rule in verdict["rules"] if rule["kind"] == "primary" and rule["passed"]]
    left, planned = verdict["looks"]["left"], verdict["looks"]["planned"]
    lines = [verdict["sentence"], *failed, *shown]
    lines.append(
        f"{left} of {planned} looks at this test set are left, and {verdict['alpha']['left']:.4f} of alpha "
        f"{verdict['alpha']['total']:g}."
    )
    if verdict["renew_test_set"]:
        lines.append("Renew the test set: hold out patients who were in no earlier one.")
    return lines


def _before(looks: Sequence[Look], judged: str) -> tuple[Look, ...]:
    """The looks before this judgement, which may have been made already."""
    own = next((look for look in looks if look.judged == judged), None)
    return tuple(look for look in looks if own is None or look.judged in own.before)


class _Verdict:
    """One judgement."""

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
        self._level = config.alpha / config.looks
        self._checks = Checks(config, found, challenger, champion, before)

    def made(self) -> dict[str, Any]:
        """The content of `verdict.json` but for `judged`."""
        config, found = self._config, self._found
        rules = self._checks.rules()
        tested = all(rule.passed for rule in rules)
        if tested:
            rules += [*self._primary(), *self._guards()]
        else:
            told = "Not tested, because a rule before it failed."
            rules += [Rule(kind, kind, None, told) for kind in ("primary", "guard")]
        passed = all(rule.passed for rule in rules)
        failed = [rule.name for rule in rules if rule.passed is False]
        before, spent = sum(look.spent for look in self._before), self._level if tested else 0.0
        left = config.looks - self._checks.used - tested
        return {
            "passed": passed,
            "sentence": f"{self._challenger.name} passes the gate."
            if passed
            else f"{self._challenger.name} fails the gate ({', '.join(failed)}): "
            f"{self._champion.name + ' stays' if self._champion else 'there is still no champion'}.",
            "rules": [rule.record() for rule in rules],
            "alpha": {
                **{"total": config.alpha, "level": self._level, "before": before, "spent": spent},
                "left": max(config.alpha - before - spent, 0.0),
            },
            "looks": {
                **{"planned": config.looks, "before": [look.judged for look in self._before]},
                "left": max(left, 0),
            },
            "renew_test_set": left <= config.warn_looks,
            **{"test_set": found.study_set.digest, "split": config.split, "setting": config.setting},
            "evaluation": found.evaluation.digest,
            "challenger": _named(self._challenger),
            "champion": _named(self._champion) if self._champion else None,
            "scorers": {name: found.data["identity"].get(name) for name in config.used},
            "judge": found.data["judge"],
        }

    def _primary(self) -> Iterator[Rule]:
        # Of two baselines both must be beaten, each at the whole level: an intersection needs no correction.
        for rival, gain in self._checks.gains.items():
            sd = self._found.spread(rival, self._config.metric)
            yield primary(self._config, rival, gain, sd, self._found.people, self._level)

    def _guards(self) -> list[Rule]:
        if self._champion is None:
            return []
        guards = self._found.guards(self._challenger.name, self._champion.name)
        config = self._config
        return guarded(guards, self._found.people, config.guards.alpha, config.resamples, config.seed)


def _named(side: Side) -> dict[str, str]:
    return {"name": side.name, "digest": side.checkpoint.digest}
