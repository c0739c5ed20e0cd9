"""What the pipeline `retrain` does beside the other pipelines' stages: its cycle, its challenger, its end.

begin       the champion, the cohort to compare with, what has arrived; nothing new ends the cycle
grow        (`cohort.grow`) the next cohort
challenger  the training steps, from the champion or from the base model
judge       the gate's verdict; the challenger is a version of the registry
conclude    promotion, or not; the runs in the metrics store, the audit's anchor, the cycle's end
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from unirg import storage, telemetry
from unirg.artifact import Artifact, open_artifact
from unirg.checkpoint import STAGES
from unirg.cohort.grow import grow
from unirg.config import Config, operational
from unirg.errors import UserError
from unirg.lifecycle import gate, recording
from unirg.lifecycle.cycle import Begin, Cycle, Cycles, End, Outcome
from unirg.lifecycle.gate_checks import Side
from unirg.lifecycle.gate_data import Judged
from unirg.lifecycle.gate_rules import GateConfig
from unirg.lifecycle.promote import VERDICT, Decided, Production, PromoteConfig, cohort_of, promote
from unirg.lifecycle.registry import Registry
from unirg.lifecycle.watch import WatchConfig, enough, models_that_saw, taken, watch
from unirg.training import train

PIPELINE = "retrain"
CHALLENGER, CHAMPION = "challenger", "champion"
"""The systems' names in the evaluation."""


class RetrainConfig(Config):
    """How an institution's new data becomes a challenger."""

    watch: WatchConfig = WatchConfig()
    """What is watched, and how much of it is enough."""
    start: Literal["champion", "base"] = "champion"
    """What the challenger is trained from."""
    steps: tuple[Annotated[str, StringConstraints(pattern=r"^(sft|grpo)\w*$")], ...] = Field(
        default=("sft", "grpo_step1", "grpo_step2"), min_length=1
    )
    """Recipes of the training steps, in order; what a name begins with is the algorithm."""
    lease_hours: float = operational(72.0, gt=0)
    """After how long without a sign of life another pipeline run takes a cycle over. There is one at the
    beginning of a run, of each training step, of the gate and of the promotion: longer than a step takes."""

    @property
    def lease_s(self) -> float:
        return self.lease_hours * 3600


@telemetry.verb("retrain.begin")
def begin(
    config: RetrainConfig, registry: Registry, cohort: str, store: str, run: str, tracking_uri: str
) -> tuple[Cycle, Artifact | None]:
    """(the cycle to work at, what has arrived); None where there is nothing to train on, and the cycle ends.

    Args:
        cohort: URI of what the first cycle compares with; empty: the champion's. Later ones go on from the
            last one's.
        run: the pipeline run's id.

    Raises:
        Busy: another run is at work.
        UserError: there is no champion, or what arrived cannot be read.
    """

    def start(last: Cycle | None) -> Begin:
        champion = registry.champion()
        if champion is None:
            raise UserError(
                f"model {registry.name} has no champion to retrain: train one (pipeline train), then "
                "`unirg promote CHECKPOINT --approve`"
            )
        ended = last and last.ended()
        begun = ended.cohort if ended else cohort or cohort_of(champion)
        number = last.number + 1 if last else 1
        return Begin(number=number, run=run, champion=champion.number, checkpoint=champion.uri, cohort=begun)

    cycle = Cycles(store, registry.name).open(run, config.lease_s, start)
    uri = cycle.watch()
    if not uri:
        before = open_artifact(cycle.begin.cohort, "cohort")
        uri = cycle.arrived(watch(config.watch, before, store).uri)
    found = open_artifact(uri, "watch")
    for one in models_that_saw(found, store):
        told = f"learned from {len(one.learned)} withdrawn studies"
        print(f"{one.stage} {told}: {one.uri}", file=sys.stderr)
    if enough(found, config.watch.minimum):
        print(f"cycle {cycle.number}: {taken(found)} new or corrected studies")
        return cycle, found
    why = f"{taken(found)} new or corrected studies, {config.watch.minimum} are needed: nothing is trained"
    print(f"cycle {cycle.number}: {why}")
    # Without what was withdrawn, so that the next cycle has a cohort once `unirg gc` removes this one. New
    # studies that are too few stay out of it, or they would never be enough.
    cohort = cycle.begin.cohort if taken(found) else grow(found, store).uri
    made = [found, open_artifact(cohort, "cohort")]
    _close(cycle, End(outcome="nothing new", why=why, cohort=cohort), made, store, tracking_uri)
    return cycle, None


def challenger(
    config: RetrainConfig,
    recipe: str,
    cycle: Cycle,
    cohort: Artifact,
    store: str,
    judge_url: str = "",
    weights: str = "",
) -> Artifact:
    """Train the challenger; its checkpoint.

    Args:
        recipe: folder of recipes with the steps' names.

    Raises:
        UserError: as `train`.
    """
    policy = cycle.begin.checkpoint
    if config.start == "base":
        policy = train("base", f"{recipe}/base", (), cohort.uri, "", store).uri
    for step in config.steps:
        cycle.alive()
        algorithm = "sft" if step.startswith("sft") else "grpo"
        policy = train(algorithm, f"{recipe}/{step}", (), cohort.uri, policy, store, judge_url, weights).uri
    return open_artifact(policy, STAGES)


def judge(
    config: GateConfig, registry: Registry, cycle: Cycle, evaluation: Artifact, made: Artifact, store: str
) -> Artifact:
    """Judge the challenger against the cycle's champion, and register it; the gate's verdict.

    Raises:
        UserError: as `gate`.
    """
    cycle.alive()
    looks = gate.earlier(store, Judged(config, evaluation).study_set, config.overlap)
    champion = Side(CHAMPION, open_artifact(cycle.begin.checkpoint, STAGES))
    verdict = gate.gate(config, evaluation, Side(CHALLENGER, made), champion, looks, store)
    told = gate.read(verdict)
    for line in gate.sentences(told):
        print(line)
    tags = {VERDICT: verdict.uri, "cycle": str(cycle.number)}
    registry.register(made, tags)
    return verdict


def conclude(
    config: PromoteConfig,
    registry: Registry,
    cycle: Cycle,
    made: Sequence[Artifact],
    production: Production,
    tracking_uri: str,
) -> End:
    """Promote the challenger where the gate let it pass, and end the cycle; how it ended.

    Args:
        made: the gate's verdict, and whatever else the cycle made last, for the record.

    Raises:
        UserError: the endpoint or a store is not to be had; the same call goes on.
    """
    if ended := cycle.ended():
        return ended
    cycle.alive()
    verdict = made[0]
    challenger = open_artifact(verdict.manifest.inputs["challenger"].uri or "", STAGES)
    version = registry.register(challenger)
    told = gate.read(verdict)
    outcome: Outcome = "kept"
    why = told["sentence"]
    if told["passed"] or version.decision:  # a person may approve what the gate refused
        key = f"{registry.name} cycle {cycle.number} {_name(cycle)}"
        decided = Decided(bool(told["passed"]), cycle.begin.champion, key, f"gate {verdict.digest[:16]}")
        promoted = promote(config, registry, version, decided, production)
        outcome, why = promoted.outcome, promoted.why
    end = End(
        outcome=outcome, why=why, cohort=production.cohort.uri, version=version.number, verdict=verdict.uri
    )
    return _close(cycle, end, made, production.store, tracking_uri)


def _close(cycle: Cycle, end: End, made: Sequence[Artifact], store: str, tracking_uri: str) -> End:
    """End a cycle, once its runs are in the metrics store and the audit's head is anchored there."""
    if tracking_uri:
        tags = {"outcome": end.outcome, "cycle": str(cycle.number), "champion": str(cycle.begin.champion)}
        tags["cycle_uri"] = cycle.uri
        run, name = f"{PIPELINE}-{_name(cycle)}", f"{PIPELINE}-{cycle.number}"
        before = [open_artifact(uri) for uri in (cycle.begin.checkpoint, cycle.begin.cohort)]
        recording.record(tracking_uri, PIPELINE, run, made, store, tags, before, name)
    return cycle.end(end)


def _name(cycle: Cycle) -> str:
    """What tells a cycle from another model's or store's of the same number, in one metrics store."""
    return storage.sha256(cycle.uri.encode())[:16]
