"""What one evaluation says of one checkpoint: numbers with intervals, subgroups, alarms, and its gaps.

Every sentence and number is the evaluation's own. No text of a report and no study is in them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from unirg.artifact import Artifact, ArtifactError, InputRef, open_artifact
from unirg.cohort.card_page import Table
from unirg.cohort.reader import Cohort
from unirg.errors import UserError
from unirg.evaluation import aggregates, suites
from unirg.evaluation.subgroups import told_worse
from unirg.metrics.offline_judge import MODEL as OFFLINE_JUDGE

SPLITS = {"test": "Test", "zero_shot": "Zero-shot"}
TOY = "toy scorers"
NO_NUMBER = "\N{EN DASH}"
MOST = 40
"""Rows of a table of subgroups, and alarms, that a card lists."""
Record = Mapping[str, Any]


def systems_of(evaluation: Artifact, checkpoint: Artifact) -> dict[str, Artifact | None]:
    """The systems of an evaluation that are this checkpoint -> their predictions, None where not at hand."""
    found: dict[str, Artifact | None] = {}
    for name, used in evaluation.manifest.inputs.items():
        kind, _, system = name.partition(":")
        if kind == "checkpoint" and used.digest == checkpoint.manifest.action_key:
            found.setdefault(system, None)
        if kind == "predictions" and (made := _opened(used)):
            model = made.manifest.inputs.get("model")
            if model and model.digest == checkpoint.digest:
                found[system] = made
    return found


def _opened(reference: InputRef) -> Artifact | None:
    """The artifact that an input names, if it is still there and the same; a prediction file is none."""
    if reference.uri is None:
        return None
    try:
        made = open_artifact(reference.uri)
    except ArtifactError:
        return None
    return made if made.digest == reference.digest else None


@dataclass(frozen=True)
class Results:
    """An evaluation, read for one checkpoint."""

    evaluation: Artifact
    systems: Mapping[str, Artifact | None]

    @classmethod
    def of(cls, evaluation: Artifact, checkpoint: Artifact) -> Results:
        """Raises: UserError where the evaluation did not measure this checkpoint."""
        systems = systems_of(evaluation, checkpoint)
        if not systems:
            raise UserError(
                f"the evaluation {evaluation.uri} did not measure {checkpoint.uri}: name one with its "
                "predictions or --checkpoint, or `none`"
            )
        return cls(evaluation, systems)

    @cached_property
    def data(self) -> Record:
        return aggregates.read(self.evaluation)

    @cached_property
    def suites(self) -> Record:
        return suites.read(self.evaluation)

    @cached_property
    def names(self) -> list[str]:
        """Of the systems, in the evaluation's order."""
        return [each["name"] for each in self.data["systems"] if each["name"] in self.systems]

    @property
    def first(self) -> str | None:
        """The system whose numbers stand for the model: asked as it is served, no control."""
        plain = [name for name in self.names if not self._asked(name, "permute_images")]
        greedy = [name for name in plain if not self._asked(name, "temperature")]
        return next(iter([*greedy, *plain]), None)

    def _asked(self, name: str, setting: str) -> object:
        made = self.systems[name]
        return made.manifest.config.get(setting) if made else None

    def how(self, name: str) -> str:
        """How a system was asked."""
        made = self.systems[name]
        if made is None or "temperature" not in made.manifest.config:
            return "how it was asked is not known"
        temperature = made.manifest.config["temperature"]
        words = [f"sampled at temperature {temperature}" if temperature else "greedy"]
        words.append("with priors" if self._asked(name, "with_priors") else "without priors")
        words += ["images permuted, as a control"] if self._asked(name, "permute_images") else []
        return ", ".join(words)

    @cached_property
    def corpus(self) -> str:
        """What the studies are of; of a combined cohort all names, joined."""
        cohort = self.evaluation.manifest.inputs.get("cohort")
        made = _opened(cohort) if cohort else None
        return Cohort.open(made).index.corpus if made else str(self._config("corpus") or "unknown")

    def _config(self, name: str) -> object:
        return self.evaluation.manifest.config.get(name)

    @property
    def toy(self) -> bool:
        return bool(self.data["scorers"] == TOY)

    @property
    def offline(self) -> bool:
        return bool(self.data["judge"] == OFFLINE_JUDGE)

    def label(self, metric: str) -> str:
        """A metric's name, with who measured it."""
        about = self.data["metrics"][metric]
        by = [TOY] if about["modelled"] and self.toy else []
        if about["judged"] and self.data["judge"]:
            by.append("offline judge" if self.offline else f"judge {self.data['judge']}")
        return about["label"] + (f" ({', '.join(by)})" if by else "")

    @cached_property
    def metrics(self) -> list[str]:
        """Of the headline, in its order, that have a number anywhere."""
        there = {name for each in self.names for _, found in self._splits(each) for name in found}
        return [name for name in aggregates.shown_first(self.data["metrics"]) if name in there]

    def _splits(self, system: str) -> Iterator[tuple[str, dict[str, Record]]]:
        for split, found in self.data["headline"].get(system, {}).items():
            yield split, {name: each for name, each in (found or {}).items() if each["mean"] is not None}

    def values(self) -> Iterator[tuple[str, str, Record]]:
        """(split, metric, record) of the system that stands for the model."""
        for split, found in self._splits(self.first) if self.first else ():
            yield from ((split, name, found[name]) for name in self.metrics if name in found)

    def tables(self) -> Iterator[Table]:
        """The headline of each split: this model's systems first, then the baselines."""
        baselines = [each["name"] for each in self.data["systems"] if each["kind"] == "baseline"]
        for split, title in SPLITS.items():
            rows = []
            for name in [*self.names, *baselines]:
                found = dict(self._splits(name)).get(split)
                if found:
                    asked = self.how(name) if name in self.systems else "baseline"
                    studies = f"{max(each['n'] for each in found.values()):,}"
                    rows.append(
                        (name, asked, studies, *(_interval(found.get(metric)) for metric in self.metrics))
                    )
            if rows:
                heads = [f"{self.label(name)} {self._better(name)}" for name in self.metrics]
                yield Table(title, ("system", "asked", "studies", *heads), rows)

    def _better(self, metric: str) -> str:
        up = self.data["metrics"][metric]["higher_is_better"]
        return "\N{UPWARDS ARROW}" if up else "\N{DOWNWARDS ARROW}"

    def worse(self) -> Table | None:
        """Subgroups that the model is worse for than for the best one, beyond chance; None if none is."""
        rows = []
        for group in self._subgroups():
            for attribute, of in group["attributes"].items():
                for level, found in of["levels"].items():
                    for metric, each in found.get("values", {}).get(self.first, {}).items():
                        gap = each["gap"]
                        if gap and told_worse(gap):
                            cells = (f"{gap['gap']:.3f}", f"{-gap['in_sd']:.2f}", f"{found['studies']:,}")
                            rows.append((f"{attribute} {level}", _where(group), self.label(metric), *cells))
        note = f"The first {MOST} of {len(rows)}." if len(rows) > MOST else ""
        heads = ("subgroup", "of", "metric", "gap to the best", "in standard deviations", "studies")
        return Table("Subgroups with worse reports", heads, rows[:MOST], note=note) if rows else None

    def _subgroups(self) -> Iterator[Record]:
        for group in self.suites.get("subgroups", {}).get("groups", ()):
            # A split as a whole repeats what its corpora say.
            if group["setting"] == "report" and group["corpus"] and "too_small" not in group:
                yield group

    def alarms(self) -> list[str]:
        """Sentences of what raised an alarm, of this model or of all systems."""
        raised = suites.alarms(self.suites)
        return [each["sentence"] for each in raised if each["system"] in (None, *self.names)]

    def provenance(self) -> Iterator[str]:
        """Digests of what measured."""
        for name in ("cohort", "metrics", "weights", "judge"):
            if used := self.evaluation.manifest.inputs.get(name):
                yield f"{name} of the evaluation: {used.digest}"
        for name, digest in sorted(self.data["identity"].items()):
            yield f"scorer {name}: {digest}"

    def gaps(self) -> Iterator[str]:
        """What the evaluation does not tell, a sentence each."""
        if self.toy:
            yield (
                "Scores with a model are by toy scorers, small networks trained on phantoms: they say "
                "nothing of a clinical reading."
            )
        if self.offline:
            yield "Errors were counted by the offline judge, a program of rules, and not by a language model."
        if not self.data["judge"]:
            yield "No judge counted clinical errors."
        for split, words in SPLITS.items():
            if not any(found == split for found, _, _ in self.values()):
                yield f"There are no headline numbers on the {words.lower()} split."
        yield from self._small()
        status = self.suites.get("zero_shot", {}).get("lineage", {}).get(self.first)
        if status:
            yield f"Whether the zero-shot places are unseen: {status['sentence']}."
        for each in self.suites["not_run"]:
            if each.get("system") in (None, *self.names):
                yield f"The suite {each['suite']} did not run: {each['why']}."
        for each in self.data["unscored"]:
            if each["system"] == self.first and each["setting"] == "report":
                yield f"{each['studies']} studies of {each['split']} have no score: {each['reason']}."

    def _small(self) -> Iterator[str]:
        """Subgroups without numbers, and who is in none, a sentence an attribute."""
        small: dict[str, list[str]] = {}
        unknown: dict[str, list[str]] = {}
        for group in self._subgroups():
            for attribute, of in group["attributes"].items():
                few = [level for level, found in of["levels"].items() if "too_small" in found]
                if few:
                    small.setdefault(attribute, []).append(f"{', '.join(few)} ({_where(group)})")
                if of["unknown"]:
                    unknown.setdefault(attribute, []).append(f"{of['unknown']} ({_where(group)})")
        for attribute, found in small.items():
            yield f"Too few studies to measure by {attribute}: {'; '.join(found)}."
        for attribute, found in unknown.items():
            yield f"Studies that do not tell {attribute}: {'; '.join(found)}."


def _where(group: Record) -> str:
    return f"{group['corpus']}, {group['split']}"


def _interval(found: Record | None) -> str:
    if found is None:
        return NO_NUMBER
    if found["low"] is None:
        return f"{found['mean']:.3f}"
    return f"{found['mean']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"
