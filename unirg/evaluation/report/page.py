"""Numbers and example cases -> the HTML page: what each figure and table shows, how a number is printed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from unirg.evaluation.aggregates import shown_first
from unirg.evaluation.history import VALIDATION
from unirg.evaluation.report import (
    figures_conditions,
    figures_dynamics,
    figures_errors,
    figures_longitudinal,
    figures_reports,
    figures_subgroups,
    figures_zero_shot,
    markdown,
    plots,
    told,
)
from unirg.evaluation.report import shown as showing
from unirg.evaluation.report.cases import KINDS, Case
from unirg.evaluation.report.shown import SETTINGS, SPLITS, Drawn, Shown, formatted
from unirg.metrics.catalog import CATALOG
from unirg.metrics.chexprompt import CATEGORIES

TERMS = {
    **{name: entry.label for name, entry in CATALOG.items()},
    "errors": "1 / (errors + 1)",
    "loss": "Loss",
    "reward": "Reward",
    "kl": "KL divergence",
}
"""Names of the terms of a reward, and of what a trainer logs beside them."""
BEST_BY = "radcliq_v1"
"""The validation's score that the best checkpoint is known by; it is drawn first."""
LOWER = "lower is better"
DRAWN: Mapping[str, Callable[[Any, Shown], list[Drawn]]] = {
    "reports": figures_reports.figures,
    "errors": figures_errors.figures,
    "conditions": figures_conditions.figures,
    "longitudinal": figures_longitudinal.figures,
    "zero_shot": figures_zero_shot.figures,
    "subgroups": figures_subgroups.figures,
    "dynamics": figures_dynamics.figures,
    "sanity": lambda suite, shown: [],  # its numbers are a table
}


class Alarm(NamedTuple):
    """How an alarm of a training is told."""

    what: str
    """What its value is."""
    limit: str
    """The setting that the value is beyond."""


ALARMS = {
    "entropy": Alarm("Collapse: entropy of the policy, nats per token", "entropy_floor"),
    "duplicates": Alarm("Sameness: share of rollouts that repeat another of their group", "duplicate_share"),
    "length": Alarm("Length: of a report, as a multiple of the first steps'", "length_ratio"),
    "hacking": Alarm("Hacking: rise of one reward, in its spread, while every other fell", "hacking_spread"),
}
"""Those of `unirg.training.alarms`, by name."""
Data = Mapping[str, Any]


class Page(NamedTuple):
    """The report in its two forms."""

    html: str
    markdown: str


def render(title: str, data: Data, cases: Sequence[Case]) -> Page:
    """The whole page. Every text goes through Jinja2's autoescape but the figures, which are ours."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("unirg.evaluation.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    view = View(data)
    environment.filters |= {
        "fmt": formatted,
        "signed": signed,
        "visible": plots.visible,
        "flat": flat,
        "alarm": alarm,
    }
    template = environment.get_template("report.html")
    shown, suites = Shown(data, view.judge), data["suites"]
    drawn = {name: draw(suites[name], shown) for name, draw in DRAWN.items() if name in suites}
    reports = suites.get("reports")
    boards = figures_reports.boards(reports, shown) if reports else []
    levels = dict.fromkeys(level for case in cases for level in case.levels)
    raised = told.alarms(data)
    html = template.render(
        **{"title": title, "data": data, "cases": cases, "view": view, "shown": shown},
        **{"kinds": KINDS, "levels": sorted(levels), "told": raised, "suite_names": told.SUITES},
        **{"figures": _figures(data, view), "suite_figures": drawn, "boards": boards},
        public_boards=figures_reports.public(reports) if reports else [],
        sanity_groups=told.summary(suites.get("sanity", {})),
    )
    tables = [figures_reports.as_table(board, shown) for board in boards]
    return Page(html.lstrip(), markdown.render(title, data, raised, drawn, tables))


def lead(data: Data) -> str:
    """The metric that the page speaks of first: the composite, or the next one where a part of it lacks."""
    known = {v["metric"] for v in data["values"] if v["mean"] is not None}
    first = shown_first(data["metrics"])
    return next((name for name in first if name in known), first[0])


def judge_label(model: str | None) -> str:
    """How the judge is named beside its numbers; empty where there is none."""
    from unirg.metrics.offline_judge import MODEL  # it brings a web server's modules with it

    return "offline judge" if model == MODEL else model or ""


class View:
    """What the template asks of the data."""

    errors = ("errors", "errors_significant", *(f"errors_{category}" for category in CATEGORIES))
    settings = SETTINGS

    def __init__(self, data: Data) -> None:
        self.data = data
        self.headline = shown_first(data["metrics"])
        self.others = [m for m in data["metrics"] if m not in (*self.headline, *self.errors)]
        self.lead = lead(data)
        self.judge = judge_label(data["judge"])
        self.colours = plots.colours(data["systems"])
        self.splits = [split for split in SPLITS if any(g["split"] == split for g in data["groups"])]
        self._values = {
            (v["system"], v["split"], v["metric"], v["setting"], v["corpus"], v["institution"]): v
            for v in data["values"]
        }

    def find(
        self,
        system: str,
        split: str,
        metric: str,
        setting: str = "report",
        corpus: str | None = None,
        institution: str | None = None,
    ) -> Data | None:
        """The record of one mean; None for a group that the evaluation does not have."""
        return self._values.get((system, split, metric, setting, corpus, institution))

    def group(self, split: str) -> Data:
        """Studies and patients of a whole split."""
        return next(g for g in self.data["groups"] if g["split"] == split and g["corpus"] is None)

    def split(self, name: str) -> str:
        return SPLITS[name]

    def markers(self) -> str:
        """Which marker of the figures is which split."""
        shapes = zip(("filled", "open", "open", "open"), self.splits, strict=False)
        return ", ".join(f"{shape} {SPLITS[split].lower()}" for shape, split in shapes) + "."

    def by(self, metric: str) -> str:
        """Whose numbers are in the metric, beside ours: the scorers', the judge's, both, or nobody's."""
        known = self.data["metrics"][metric]
        scorers = self.data["scorers"] if known["modelled"] else None
        return ", ".join(filter(None, (scorers, self.judge if known["judged"] else None)))

    def label(self, metric: str) -> str:
        """The metric's name, with whose numbers are in it."""
        label, whose = str(self.data["metrics"][metric]["label"]), self.by(metric)
        return f"{label} ({whose})" if whose else label

    def best(self, split: str, metric: str, setting: str = "report") -> float | None:
        """The best mean of a column."""
        found = [self.find(s["name"], split, metric, setting) for s in self.data["systems"]]
        means = [record["mean"] for record in found if record and record["mean"] is not None]
        pick = max if self.data["metrics"][metric]["higher_is_better"] else min
        return pick(means) if means else None

    def leader(self, split: str) -> Data | None:
        """The policy with the best mean of the lead metric: its record."""
        policies = [system["name"] for system in self.data["systems"] if system["kind"] == "policy"]
        found = [record for name in policies if (record := self.find(name, split, self.lead))]
        return max(
            (record for record in found if record["mean"] is not None),
            key=lambda record: float(record["mean"]),
            default=None,
        )

    def formula(self) -> str:
        """The composite as it was weighted."""
        times = "\N{MULTIPLICATION SIGN}"
        weights = self.data["composite"].items()
        return " + ".join(f"{weight:.3g} {times} {TERMS[name]}" for name, weight in weights if weight)

    def compared(self) -> list[list[dict[str, Any]]]:
        """One group a pair, one row a split: the headline metrics' differences under `by`."""
        pairs: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
        for record in self.data["comparisons"]:
            if record["setting"] == "report" and record["metric"] in self.headline:
                a, b, split = record["a"], record["b"], record["split"]
                rows = pairs.setdefault((a, b), {})
                row = rows.setdefault(split, {"a": a, "b": b, "split": split, "by": {}})
                row["by"][record["metric"]] = record
        return [[rows[split] for split in self.splits if split in rows] for rows in pairs.values()]

    def rewarded(self) -> bool:
        """Whether any system was trained with rewards, and so watched for alarms."""
        return any(curve["key"].startswith("rewards/") for curve in self.data["training"])

    small = staticmethod(showing.small)
    place = staticmethod(showing.place)

    def count(self, kinds: Sequence[told.Told]) -> int:
        """How many alarms there are."""
        return sum(len(kind.alarms) for kind in kinds)

    def public(self, boards: Sequence[Data]) -> bool:
        """Whether any board has public rows, beside ours or alone."""
        return bool(self.data["suites"]["reports"]["public"]["boards"])

    def contents(self, boards: Sequence[Data], cases: Sequence[Case]) -> list[tuple[str, str]]:
        """(anchor, label) of every section of the page."""
        suites = self.data["suites"]
        found = [
            ("leaderboard", "Leaderboard" if boards else ""),
            ("results", "Results"),
            ("comparisons", "Comparisons" if self.data["comparisons"] else ""),
            ("errors", "Errors" if self.judge and "errors" not in suites else ""),
            *((f"suite-{name}", label) for name, label in told.SUITES.items() if name in suites),
            ("places", "Institutions"),
            ("training", "Training logs" if self.data["training"] else ""),
            ("cases", "Cases" if cases else ""),
            ("unscored", "Not scored"),
            ("provenance", "Provenance"),
        ]
        return [(anchor, label) for anchor, label in found if label]

    def software(self) -> dict[str, str]:
        """Versions over all stages; several where stages ran with different ones."""
        found: dict[str, dict[str, None]] = {}
        for entry in self.data["provenance"]:
            for name, version in entry["software"].items():
                found.setdefault(name, {})[version] = None
        return {name: ", ".join(versions) for name, versions in sorted(found.items())}


def _figures(data: Data, view: View) -> dict[str, str]:
    """Name -> SVG; a figure without data is left out."""
    splits = [(split, SPLITS[split]) for split in view.splits]
    where = " and ".join(label.lower() for _, label in splits)
    figures = {}

    def dots(name: str, alt: str, metrics: Sequence[str]) -> None:
        if any(v["metric"] in metrics and v["mean"] is not None for v in data["values"]):
            panels = [(m, str(data["metrics"][m]["label"]), view.by(m)) for m in metrics]
            alt = f"{alt}, by system, {where}, with 95% intervals; the table below has the numbers."
            figures[name] = plots.dots(name, alt, data["systems"], panels, splits, view.find)

    titles = ", ".join(str(data["metrics"][metric]["label"]) for metric in view.headline)
    dots("headline", titles, view.headline)
    dots("errors", "Errors per report in six categories", [f"errors_{category}" for category in CATEGORIES])
    logged, scored = _training(data["training"])
    if logged:
        panels = []
        for curve in logged:
            name = term(curve["key"])
            whose = ", ".join(filter(None, (curve["system"], curve["scorers"], judge_label(curve["judge"]))))
            panels.append((TERMS.get(name, name), whose, [_line(curve, view)]))
        alt = "Training curves: " + "; ".join(f"{title} of {whose}" for title, whose, _ in panels)
        figures["training"] = plots.curves("training", alt, panels)
    if scored:
        panels = []
        for name, found in scored.items():
            better = "higher is better" if name in CATALOG and CATALOG[name].higher_is_better else LOWER
            whose = ", ".join(filter(None, (found[0]["scorers"], better)))
            panels.append((TERMS[name], whose, [_line(curve, view) for curve in found]))
        titles = ", ".join(title for title, *_ in panels)
        alt = f"Scores on validation studies against training steps, by system: {titles}."
        figures["validation"] = plots.scored("validation", alt, panels)
    return figures


def _training(found: Sequence[Data]) -> tuple[list[Data], dict[str, list[Data]]]:
    """Curves of the training's own log, and those of the validation by score, RadCliQ-v1 first."""
    logged: list[Data] = []
    scored: dict[str, list[Data]] = {}
    for curve in found:
        if curve["key"].startswith(VALIDATION):
            scored.setdefault(term(curve["key"]), []).append(curve)
        else:
            logged.append(curve)
    return logged, {name: scored[name] for name in sorted(scored, key=lambda name: name != BEST_BY)}


def term(key: str) -> str:
    """What a key of a trainer's log is of: `rewards/bleu2/mean` and `validation/bleu2` of `bleu2`."""
    return key.removeprefix("rewards/").removesuffix("/mean").removeprefix(VALIDATION)


def alarm(name: str) -> Alarm:
    """How it is told; one of another version by its name."""
    return ALARMS.get(name, Alarm(name, ""))


def _line(curve: Data, view: View) -> plots.Line:
    return curve["system"], curve["steps"], curve["values"], view.colours[curve["system"]]


def signed(value: float | None, metric: str) -> str:
    """A difference, always with its sign."""
    text = formatted(value, metric)
    return f"+{text}" if value is not None and value > 0 else text


def flat(settings: Data, prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as (dotted name, text) pairs."""
    pairs: list[tuple[str, str]] = []
    for name, value in settings.items():
        if isinstance(value, Mapping):
            pairs += flat(value, f"{prefix}{name}.")
        else:
            text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
            pairs.append((prefix + name, text))
    return pairs
