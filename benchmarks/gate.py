"""What the gate's tests promise and what they hold, on simulated scores. Its tables are in docs/gate.md.

    OMP_NUM_THREADS=1 nice -n 19 .venv/bin/python benchmarks/gate.py [--years 3000] [--scale 1.0] [part ...]

Parts: `years`, a year of weekly looks at one test set with models that are all equally good; `power`, how
often one look sees a true gain; `alarms`, how often guards fail a model that does no harm; `harm`, how often
they see harm in one subgroup, on one condition, in errors. All use the gate's own code and recipe
(paper/gate).

Patients have 1 to 4 studies. A model's score of a study is made of how hard the study is (patients differ,
too) and of the model's own noise, which a patient's studies share in part; scores are skewed as BLEU is,
errors are counts. In `rare losses` a challenger gains a little on most studies and loses much on a few, so
that it is equally good on average: the case in which an ordinary test errs most at a level of a thousandth.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np

from unirg.config import load
from unirg.evaluation.conditions import influences
from unirg.evaluation.one_sided import Mean
from unirg.evaluation.statistics import Array
from unirg.lifecycle.gate_rules import GateConfig, Guard, guarded

CONFIG = load(GateConfig, "paper/gate")
LEVEL = CONFIG.alpha / CONFIG.looks
FEW = CONFIG.enough
"""Resamples where power is measured, a quarter of the recipe's: the noisier bound shows a little less."""
HARD, OWN = 0.7, 0.3
"""Shares of a score's variance: how hard the study is, and the model's own noise."""
TOGETHER = 0.3
"""Share of either that a patient's studies have in common."""
LOSSES, LOSS = 0.03, 3.0
"""`rare losses`: share of the studies, and what is lost there, in standard deviations of the scores."""
SUBGROUPS = ((2, 0.5), (4, 0.3), (4, 0.7), (2, 0.6), (3, 0.4))
"""As sex, age, race, view and institution: levels, and the share of the first; the others share the rest."""
PREVALENCE = (0.4, 0.35, 0.3, 0.3, 0.25, 0.25, 0.2, 0.12, 0.1, 0.08, 0.07, 0.06, 0.05, 0.04)
"""Of the 14 conditions, as in docs/statistics.md."""
SEES, FALSE = NormalDist().inv_cdf(0.8), NormalDist().inv_cdf(0.05)
"""A model tells four of five conditions that are there, and one of twenty that are not."""


@dataclass
class Set:
    """The studies of one test set."""

    rng: np.random.Generator
    patients: int

    def __post_init__(self) -> None:
        times = self.rng.choice([1, 2, 3, 4], p=[0.5, 0.25, 0.15, 0.1], size=self.patients)
        self.patient = np.repeat(np.arange(self.patients), times)
        self.hard = self.noise()

    @property
    def size(self) -> int:
        return len(self.patient)

    def noise(self, columns: int = 1) -> Array:
        """(studies, columns) standard normal, alike within a patient."""
        shared = self.rng.standard_normal((self.patients, columns))[self.patient]
        own = self.rng.standard_normal((self.size, columns))
        return math.sqrt(TOGETHER) * shared + math.sqrt(1 - TOGETHER) * own

    def latent(self, models: int) -> Array:
        return math.sqrt(HARD) * self.hard + math.sqrt(OWN) * self.noise(models)

    def bleu(self, models: int) -> Array:
        """(studies, models) skewed scores with standard deviation 1."""
        spread = 0.6
        sd = math.sqrt((math.exp(spread**2) - 1) * math.exp(spread**2))
        return np.exp(spread * self.latent(models)) / sd

    def errors(self, models: int) -> Array:
        """(studies, models) minus the errors of each report, about 1.7, over their standard deviation."""
        counts = self.rng.poisson(np.exp(0.4 + 0.6 * self.latent(models)))
        return -counts / 1.9

    def rare_losses(self, models: int) -> Array:
        """(studies, models): the first is the champion, the others gain a little and rarely lose much."""
        gain = LOSS * LOSSES / (1 - LOSSES)
        lost = self.rng.random((self.size, models)) < LOSSES
        own = np.where(lost, -LOSS, gain) + 0.2 * self.noise(models)
        own[:, 0] = 0
        return self.hard + own

    def levels(self) -> list[np.ndarray]:
        """Which studies each subgroup has; all of a patient's are in one."""
        found = []
        for count, first in SUBGROUPS:
            shares = [first, *[(1 - first) / (count - 1)] * (count - 1)]
            level = self.rng.choice(count, p=shares, size=self.patients)[self.patient]
            found += [level == one for one in range(count)]
        return found


Scores = Callable[[Set, int], Array]
SCORES: dict[str, Scores] = {
    "scores as BLEU": Set.bleu,
    "errors per report": Set.errors,
    "rare losses": Set.rare_losses,
}


def wilson(found: int, of: int, level: float = 0.99) -> tuple[float, float]:
    """Interval of a share (Wilson, J. Am. Stat. Assoc. 22:209, 1927)."""
    z = NormalDist().inv_cdf((1 + level) / 2)
    share = found / of
    middle = (share + z * z / (2 * of)) / (1 + z * z / of)
    half = z * math.sqrt(share * (1 - share) / of + (z / (2 * of)) ** 2) / (1 + z * z / of)
    return middle - half, middle + half


def told(found: int, of: int) -> str:
    low, high = wilson(found, of)
    return f"{found / of:.2%} | {low:.2%} to {high:.2%}"


def passes(gain: Array, patient: np.ndarray, seed: int, resamples: int = CONFIG.resamples) -> bool:
    """The primary test at the level of one look."""
    return Mean(gain, patient).p(0.0, LEVEL, resamples, seed) <= LEVEL


def ordinary(gain: Array, patient: np.ndarray) -> bool:
    """The same by the normal distribution alone, for comparison."""
    mean = Mean(gain, patient)
    return mean.estimate / mean.error > NormalDist().inv_cdf(1 - LEVEL)


def year(scores: Scores, patients: int, seed: int) -> tuple[int, bool]:
    """A year of challengers that are as good as the champion; who is promoted is the next champion.

    Returns:
        False promotions, and whether the first champion would have lost to a test by the normal distribution.
    """
    rng = np.random.default_rng(seed)
    data = Set(rng, patients)
    models = scores(data, CONFIG.looks + 1)
    champion, promoted, fooled = models[:, 0], 0, False
    for look in range(1, CONFIG.looks + 1):
        gain = models[:, look] - champion
        fooled = fooled or ordinary(models[:, look] - models[:, 0], data.patient)
        if passes(gain, data.patient, seed):
            promoted += 1
            champion = models[:, look]
    return promoted, fooled


def years(count: int, wanted: Sequence[str], sizes: Sequence[int]) -> bool:
    """Whether the rate of years with a false promotion holds its level in every scenario."""
    print(f"\nYears of {CONFIG.looks} looks with equal models, alpha {CONFIG.alpha}; {count} years each\n")
    print("| scores | patients | years with a false promotion | 99% interval | promotions | normal |")
    print("|---|---|---|---|---|---|")
    holds = True
    for name, scores in SCORES.items():
        for patients in sizes if name in wanted else ():
            many = count if patients == 500 else count // 2 if patients == 200 else count // 8
            found = [year(scores, patients, seed) for seed in range(many)]
            wrong = sum(promoted > 0 for promoted, _ in found)
            total = sum(promoted for promoted, _ in found)
            fooled = sum(each for _, each in found)
            print(
                f"| {name} | {patients} | {told(wrong, many)} | {total} in {many} | {fooled / many:.2%} |",
                flush=True,
            )
            holds = holds and wilson(wrong, many)[0] < CONFIG.alpha
    return holds


def power(count: int) -> None:
    print(f"\nPower of one look at level {LEVEL:.5f}; {count} looks each, {count // 3} at 2000 patients\n")
    print("| true gain | patients | scores as BLEU | errors per report |")
    print("|---|---|---|---|")
    for patients, many in ((500, count), (2000, max(1, count // 3))):
        for gain in (0.05, 0.1, 0.2):
            shares = []
            for scores in (Set.bleu, Set.errors):
                seen = 0
                for seed in range(many):
                    data = Set(np.random.default_rng(10_000 + seed), patients)
                    champion, challenger = scores(data, 2).T
                    seen += passes(challenger + gain - champion, data.patient, seed, FEW)
                shares.append(f"{seen / many:.0%}")
            print(f"| {gain} SD | {patients} | {' | '.join(shares)} |", flush=True)


def conditions(data: Set, harmed: float = 0.0, which: int = 0) -> list[Guard]:
    """Guards of F1; of the `harmed` share of one condition the challenger says nothing."""
    found = []
    for at, prevalence in enumerate(PREVALENCE):
        point = NormalDist().inv_cdf(1 - prevalence)
        truth = data.noise()[:, 0] > point
        reading = math.sqrt(HARD) * data.noise() + math.sqrt(OWN) * data.noise(2)
        said = np.where(truth[:, None], reading < SEES, reading < FALSE)
        if at == which and harmed:
            said[:, 0] &= data.rng.random(data.size) >= harmed
        if truth.sum() >= CONFIG.guards.min_studies:
            ours, theirs = (
                influences(2.0 * (one & truth)[:, None], (one.astype(float) + truth)[:, None])
                for one in said.T
            )
            found.append(Guard(f"condition {at}", theirs - ours, CONFIG.guards.condition_margin or 0.0, ""))
    return found


def guards(
    data: Set, margin: bool, planted: tuple[str, int, float] = ("", 0, 0.0), boundary: bool = False
) -> list[Guard]:
    """Challenger and champion alike but for what is planted: (kind, which, how much).

    Args:
        margin: as the recipe has them; else none, so that equal models are at the limit of harm.
        boundary: every subgroup is worse by the margin itself.
    """
    rules, (kind, which, amount) = CONFIG.guards, planted
    found: list[Guard] = []
    levels = data.levels()
    for number, metric in enumerate(rules.metrics):
        challenger, champion = data.bleu(2).T
        harm = champion - challenger
        if kind == "subgroup" and number == 0:
            harm = harm + amount * levels[which]
        if boundary:
            harm = harm + (rules.subgroup_margin or 0.0)
        for at, inside in enumerate(levels):
            if (
                inside.sum() >= rules.min_studies
                and len(set(data.patient[inside].tolist())) >= rules.min_patients
            ):
                masked = np.where(inside, harm, np.nan)
                found.append(Guard(f"{metric} {at}", masked, rules.subgroup_margin or 0.0, ""))
    found += conditions(data, amount if kind == "condition" else 0.0, which)
    rates = np.exp(0.4 + 0.6 * data.latent(2))
    if kind == "errors":
        rates[:, 0] += amount
    errors = data.rng.poisson(rates)
    significant = data.rng.binomial(errors, 0.4).astype(np.float64)
    found.append(
        Guard("significant", significant[:, 0] - significant[:, 1], rules.significant_margin or 0.0, "")
    )
    four = (errors >= 4).astype(np.float64)
    found.append(Guard("four", four[:, 0] - four[:, 1], rules.four_or_more_margin or 0.0, ""))
    return found if margin else [Guard(one.name, one.harm, 0.0, "") for one in found]


def failing(data: Set, made: Sequence[Guard], seed: int, resamples: int = CONFIG.resamples) -> list[str]:
    rules = guarded(made, data.patient, CONFIG.guards.alpha, resamples, seed)
    return [rule.name for rule in rules if not rule.passed]


def alarms(count: int) -> None:
    print(f"\nGuards that fail a model that does no harm, alpha {CONFIG.guards.alpha}; {count} looks each\n")
    print("| models | patients | guards | looks with an alarm | 99% interval |")
    print("|---|---|---|---|---|")
    for patients in (200, 500, 2000):
        many = count if patients < 2000 else count // 4
        for name, margin, boundary in (
            ("equal, the recipe's margins", True, False),
            ("equal, no margins", False, False),
            ("worse by the margin in every subgroup", True, True),
        ):
            wrong, size = 0, 0
            for seed in range(many):
                data = Set(np.random.default_rng(20_000 + seed), patients)
                made = guards(data, margin, boundary=boundary)
                size += len(made)
                wrong += bool(failing(data, made, seed))
            print(f"| {name} | {patients} | {size / many:.0f} | {told(wrong, many)} |", flush=True)


def harm(count: int) -> None:
    print(f"\nHarm that is planted, and how often its guard sees it; {count} looks each, ", end="")
    print(f"{max(1, count // 3)} at 2000 patients\n")
    print("| harm | to | 500 patients | 2000 patients |")
    print("|---|---|---|---|")
    cases: list[tuple[str, str, str, int, float]] = []
    for which, share in ((0, "half"), (3, "a quarter"), (7, "a tenth")):
        cases += [
            (f"{amount} SD", f"a subgroup, {share} of the patients", "subgroup", which, amount)
            for amount in (0.2, 0.3, 0.5)
        ]
    for which in (0, 7):
        to = f"a condition of {PREVALENCE[which]:.0%} of the references"
        cases += [(f"{lost:.0%} not told", to, "condition", which, lost) for lost in (0.15, 0.3)]
    cases += [(f"{more} errors more", "all reports", "errors", 0, more) for more in (0.2, 0.4)]
    for name, to, kind, which, amount in cases:
        wanted = {
            "subgroup": {f"{CONFIG.guards.metrics[0]} {which}"},
            "condition": {f"condition {which}"},
            "errors": {"significant", "four"},
        }[kind]
        shares = []
        for patients, many in ((500, count), (2000, max(1, count // 3))):
            seen = 0
            for seed in range(many):
                data = Set(np.random.default_rng(30_000 + seed), patients)
                made = guards(data, True, (kind, which, amount))
                seen += bool(wanted & set(failing(data, made, seed, FEW)))
            shares.append(f"{seen / many:.0%}")
        print(f"| {name} | {to} | {' | '.join(shares)} |", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("parts", nargs="*", default=[], help="years, power, alarms, harm; none: all")
    parser.add_argument("--years", type=int, default=3000)
    parser.add_argument("--scores", choices=SCORES, help="of the years, only these")
    parser.add_argument("--patients", type=int, nargs="+", default=[200, 500, 2000], help="of the years")
    parser.add_argument("--scale", type=float, default=1.0, help="of the looks simulated in the other parts")
    asked = parser.parse_args()
    wanted = asked.parts or ["years", "power", "alarms", "harm"]
    holds = True
    for part in wanted:
        before = time.process_time()
        if part == "years":
            holds = years(asked.years, [asked.scores] if asked.scores else list(SCORES), asked.patients)
        elif part == "power":
            power(max(1, round(200 * asked.scale)))
        elif part == "alarms":
            alarms(max(1, round(2000 * asked.scale)))
        elif part == "harm":
            harm(max(1, round(100 * asked.scale)))
        else:
            raise SystemExit(f"no part {part}: name years, power, alarms or harm")
        print(f"\n{part}: {time.process_time() - before:.0f} CPU s", flush=True)
    return int(not holds)


if __name__ == "__main__":
    sys.exit(main())
