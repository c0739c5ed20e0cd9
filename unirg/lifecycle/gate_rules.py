"""The gate's rules as data, and the tests of differences between a challenger and a champion.

One primary test decides whether the challenger is better (or not worse by a margin); harm guards decide
whether it does harm to some: in a subgroup, on a condition, in the distribution of errors. Each guard tests
"no more harm than its margin", all of them are corrected together by Holm, and one that is rejected fails the
challenger. So a guard fails only on harm that is shown; docs/gate.md says how much of it can be seen.

Margins of scores are in standard deviations of the champion's scores, so that one recipe fits every metric.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from pydantic import Field, model_validator

from unirg.config import Config
from unirg.errors import UserError
from unirg.evaluation.groups import number
from unirg.evaluation.one_sided import Mean
from unirg.evaluation.statistics import Array, holm
from unirg.evaluation.suites import Suite
from unirg.study import Split

Attribute = Literal["sex", "age", "race", "view", "institution"]
Kind = Literal["looks", "scorers", "size", "unscored", "alarms", "primary", "guard"]


class GuardsConfig(Config):
    """What the challenger must not do worse. A margin of null leaves a kind of guard out."""

    alpha: float = Field(default=0.05, gt=0, le=0.5)
    """Chance at most, at one look, that guards fail a challenger that does no harm beyond any margin."""
    metrics: tuple[str, ...] = ("composite",)
    """Scores that are compared in each subgroup."""
    attributes: tuple[Attribute, ...] = ("sex", "age", "race", "view", "institution")
    """What subgroups are made by (`evaluation.subgroups`)."""
    subgroup_margin: float | None = Field(default=0.1, ge=0)
    """Loss that is let pass in a subgroup, in standard deviations of the champion's scores: half of what
    counts as small (`subgroups.MIN_EFFECT`)."""
    min_studies: int = Field(default=50, ge=2)
    """Studies that a subgroup needs, as references that state a condition."""
    min_patients: int = Field(default=30, ge=10)
    """Patients that it needs; of fewer the test sees little and the bootstrap knows little."""
    condition_margin: float | None = Field(default=0.05, ge=0)
    """Loss of F1 that is let pass on a condition."""
    significant_margin: float | None = Field(default=0.05, ge=0)
    """Significant errors per report more that are let pass."""
    four_or_more_margin: float | None = Field(default=0.02, ge=0)
    """Share of reports with four or more errors, the paper's last division: what more of it is let pass."""


class GateConfig(Config):
    """When a challenger becomes the champion."""

    split: Split = "test"
    """Studies that are compared."""
    setting: Literal["report", "findings"] = "report"
    """What of them is compared (`evaluation.candidates`)."""
    metric: str = "radcliq_v1"
    """The primary test's score, by its name in the evaluation."""
    test: Literal["superiority", "non_inferiority"] = "superiority"
    """superiority: the gain must lie above `margin`; non_inferiority: the loss must lie below it."""
    margin: float = Field(default=0.0, ge=0)
    """In standard deviations of the champion's scores."""
    alpha: float = Field(default=0.05, gt=0, le=0.5)
    """Chance at most that a challenger that is not better is promoted in all planned looks together."""
    looks: int = Field(default=52, ge=1)
    """Looks planned at one test set, which share `alpha` equally: a year of weekly cycles."""
    warn_looks: int = Field(default=8, ge=0)
    """Looks left from which the gate asks for a new test set: two months to gather one."""
    overlap: float = Field(default=0.1, ge=0, lt=1)
    """Share of the studies that an earlier verdict may have judged too without having been a look at this
    test set: one that grows by a few patients is not a new one."""
    min_studies: int = Field(default=300, ge=2)
    """Studies that both systems need a score of."""
    min_patients: int = Field(default=200, ge=10)
    """Patients that these are of."""
    max_unscored: float = Field(default=0.01, ge=0, le=1)
    """Share of the studies that the challenger may lack a score of: those are rarely the easy ones."""
    alarms: tuple[Suite, ...] = ("sanity",)
    """Suites in which no alarm may be raised about the challenger."""
    allow_toy: bool = False
    """Whether toy scorers and the offline judge may be the basis of a promotion."""
    guards: GuardsConfig = GuardsConfig()
    """The harm guards."""
    resamples: int = Field(default=20_000, ge=100)
    """Bootstrap resamples of patients."""
    seed: int = 0
    """Seed of the resamples."""

    @model_validator(mode="after")
    def _reached(self) -> GateConfig:
        if self.resamples * self.alpha < 5 * self.looks:
            raise ValueError(
                f"resamples {self.resamples} are too few to tell a level of {self.alpha / self.looks:.2g} "
                f"(alpha {self.alpha} over {self.looks} looks): raise them to {self.enough} or more"
            )
        if self.test == "non_inferiority" and self.margin == 0:
            raise ValueError("margin 0 is no margin of non-inferiority: set one, or test superiority")
        return self

    @property
    def enough(self) -> int:
        """Resamples of which five lie beyond the level of a look."""
        return int(np.ceil(5 * self.looks / self.alpha))

    @property
    def limit(self) -> float:
        """What the lower bound of the gain must lie above, in standard deviations."""
        return self.margin if self.test == "superiority" else -self.margin

    @property
    def used(self) -> tuple[str, ...]:
        """Scores that any rule is about."""
        guards = self.guards
        errors = [guards.significant_margin is not None, guards.four_or_more_margin is not None]
        named = [name for name, on in zip(("errors_significant", "errors"), errors, strict=True) if on]
        own = guards.metrics if guards.subgroup_margin is not None else ()
        return tuple(dict.fromkeys([self.metric, *own, *named]))


@dataclass(frozen=True)
class Rule:
    """What one rule found. Numbers of the primary test are of a gain, those of a guard of harm."""

    kind: Kind
    name: str
    passed: bool | None
    """None: not tested, because a rule before it failed."""
    sentence: str
    """For a person; holds no text and no id."""
    estimate: float | None = None
    bound: float | None = None
    """Lower bound at `level`: what is shown of the gain or the harm."""
    limit: float | None = None
    failed_by: float | None = None
    """How far it is on the wrong side of the limit, in `unit`; None where it passed."""
    unit: str = ""
    level: float | None = None
    p: float | None = None
    adjusted: float | None = None
    """p after Holm over all guards."""
    studies: int | None = None
    patients: int | None = None

    def record(self) -> dict[str, Any]:
        """As JSON types, None where there is no number."""
        found = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {name: number(each) if isinstance(each, float) else each for name, each in found.items()}


@dataclass(frozen=True)
class Guard:
    """One guard's data."""

    name: str
    harm: Array
    """(studies,) how much worse the challenger is, in `unit`; NaN where the guard is not about the study."""
    margin: float
    unit: str


def primary(config: GateConfig, rival: str, gain: Array, sd: float, patients: Any, level: float) -> Rule:
    """The primary test at a look's level.

    Args:
        rival: the name of whom the challenger is compared with.
        gain: (studies,) how much better the challenger is, in the metric's units; NaN where either has none.
        sd: standard deviation of the rival's scores.
        patients: (studies,) whose study each is.
    """
    mean = Mean(gain, patients)
    limit = config.limit * sd
    p = mean.p(limit, level, config.resamples, config.seed)
    bound = mean.bound(level, config.resamples, config.seed)
    # The test decides; where it is met exactly the bound may differ from the limit by rounding.
    passed = p <= level
    numbers = f"{mean.estimate:+.4f}, at least {bound:+.4f} at level {level:.2g}"
    told = f"The gain in {config.metric} over {rival} is {numbers}; it must be above {limit:+.4f}"
    short = max(limit - bound, 0.0)
    return Rule(
        "primary",
        f"{config.test} over {rival}: {config.metric}",
        passed,
        f"{told}." if passed else f"{told}: short by {short:.4f}.",
        *(mean.estimate, bound, limit, None if passed else short, config.metric, level, p),
        studies=mean.studies,
        patients=mean.patients,
    )


def guarded(guards: Sequence[Guard], patients: Any, alpha: float, resamples: int, seed: int) -> list[Rule]:
    """All guards, corrected together by Holm.

    Raises:
        UserError: there are more guards than the resamples can tell apart from none.
        ValueError: a guard is about fewer than two patients.
    """
    if not guards:
        return []
    if alpha * (resamples + 1) < len(guards):
        raise UserError(
            f"resamples {resamples} are too few for {len(guards)} guards at {alpha:g}: raise them to "
            f"{int(np.ceil(5 * len(guards) / alpha))}, or name fewer guards.metrics"
        )
    means = [Mean(guard.harm, patients) for guard in guards]
    p = np.array([mean.student_p(guard.margin) for mean, guard in zip(means, guards, strict=True)])
    # Resampling only makes a p larger, so what Student's does not reject needs none.
    doubted = np.flatnonzero(holm(p) <= alpha).tolist()
    for at in doubted:
        p[at] = means[at].p(guards[at].margin, alpha, resamples, seed)
    adjusted = holm(p)
    # Holm's level of the i-th smallest p is alpha / (m - i), and stays where the first one is not rejected.
    rank = np.empty(len(p), dtype=np.int64)
    rank[np.argsort(p, kind="stable")] = np.arange(len(p))
    rejected = int((adjusted <= alpha).sum())
    rules = []
    for at, (guard, mean) in enumerate(zip(guards, means, strict=True)):
        level = alpha / (len(p) - min(int(rank[at]), rejected))
        passed = bool(adjusted[at] > alpha)
        shown = mean.bound(level, resamples, seed) if at in doubted else mean.student_bound(level)
        over = max(shown - guard.margin, 0.0)
        told = f"{guard.name}: {_how(mean.estimate, guard.unit)}"
        rules.append(
            Rule(
                "guard",
                guard.name,
                passed,
                f"{told}; no harm beyond {guard.margin:.3f} is shown."
                if passed
                else f"{told}, worse by at least {shown:.3f} where {guard.margin:.3f} is let pass: "
                f"over by {over:.3f}.",
                *(mean.estimate, shown, guard.margin, None if passed else over, guard.unit, level),
                p=float(p[at]),
                adjusted=float(adjusted[at]),
                studies=mean.studies,
                patients=mean.patients,
            )
        )
    return rules


def _how(harm: float, unit: str) -> str:
    return f"{'worse' if harm > 0 else 'better'} by {abs(harm):.3f} {unit}" if harm else "no difference"
