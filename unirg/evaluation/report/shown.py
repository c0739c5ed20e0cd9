"""What the suites' figures share: who is drawn and how, a drawn figure with the table of its numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from unirg.evaluation.report import plots
from unirg.evaluation.report.draw import Panel, Series
from unirg.metrics import catalog
from unirg.metrics.catalog import CATALOG

Data = Mapping[str, Any]
MARKERS = "osD^vPX*"
MOST = 4
"""Systems in a figure that has many categories; its table has all of them."""
SPLITS = {"test": "Held-out", "zero_shot": "Zero-shot", "validate": "Validation", "train": "Training"}
UNKNOWN = "Test set"
"""How the first of them is called where nobody can say that no policy has learned from it."""
SETTINGS = {"report": "Findings and impression", "findings": "Findings alone"}
INVERSE, RADCLIQ = "inverse_radcliq_v1", "radcliq_v1"
DASH, MINUS = "\N{EM DASH}", "\N{MINUS SIGN}"


@dataclass(frozen=True)
class Cell:
    """A number of a table."""

    number: Data | None
    """mean, low, high, missing."""
    metric: str
    signed: bool = False


@dataclass(frozen=True)
class Table:
    """The numbers of a figure."""

    caption: str
    heads: Sequence[str]
    """The first is of the rows' names."""
    rows: Sequence[tuple[str, Sequence[Cell | str]]]


@dataclass(frozen=True)
class Drawn:
    """A figure of the page."""

    name: str
    paper: str
    """The paper's figure; empty where it has none."""
    title: str
    caption: str
    svg: str
    tables: Sequence[Table] = field(default_factory=tuple)


def formatted(value: float | None, metric: str) -> str:
    """A number as it is printed: two decimals for counts of errors, a share in percent, three for scores."""
    if value is None or not math.isfinite(value):
        return DASH
    if metric == "share":
        return f"{100 * value:.1f}%".replace("-", MINUS)
    return f"{value:.{2 if metric.startswith('errors') else 3}f}".replace("-", MINUS)


def signed(value: float | None, metric: str) -> str:
    """A difference, always with its sign."""
    text = formatted(value, metric)
    return f"+{text}" if value is not None and value > 0 else text


def unfollowed(data: Data) -> list[str]:
    """Policies of which nobody can say what they learned from; all of them where there is no cohort."""
    policies = [system["name"] for system in data["systems"] if system["kind"] == "policy"]
    if not data["cards"]["data"]:
        return policies
    lineage = data["suites"].get("zero_shot", {}).get("lineage", {})
    status = {name: each["status"] for name, each in lineage.items()}
    status |= {each["system"]: "refused" for each in data["suites"]["not_run"] if each.get("system")}
    lost = data["cards"]["unknown"]
    return [n for n in policies if status.get(n, "unknown" if n in lost else "") in ("unknown", "claimed")]


class Shown:
    """Who is drawn, in which colour and with which marker, and how a metric is called."""

    def __init__(self, data: Data, judge: str) -> None:
        self.data = data
        self.suites: Data = data["suites"]
        self.systems: list[Data] = list(data["systems"])
        self.colours = plots.colours(self.systems)
        names = [system["name"] for system in self.systems]
        self.markers = {name: MARKERS[at % len(MARKERS)] for at, name in enumerate(names)}
        self.judge = judge
        self.unfollowed = unfollowed(data)
        kept_out = data["cards"]["data"] and not self.unfollowed
        self.splits = SPLITS if kept_out else {**SPLITS, "test": UNKNOWN}

    def split(self, name: str) -> str:
        return self.splits.get(name, name)

    def place(self, group: Data) -> str:
        """A group in words."""
        where = group.get("institution") or group["corpus"]
        return f"{self.split(str(group['split']))}, {where or 'all corpora'}"

    def small(self, suite: Data) -> list[str]:
        """The groups that are too small to be shown, in words."""
        return [
            f"{self.place(group)}, {SETTINGS.get(group['setting'], group['setting']).lower()}"
            for group in suite.get("groups", [])
            if "too_small" in group
        ]

    def about(self) -> str:
        """What is known of how the studies were chosen, for the head of the page."""
        if not self.data["cards"]["data"]:
            return "on the studies of prediction files; whether a system has learned from them is not known"
        if self.unfollowed:
            return (
                "on studies that the cohort keeps out of training; whether these policies have learned from "
                f"them is not known: {'; '.join(self.unfollowed)}"
            )
        return "on studies kept out of training"

    def series(self, names: Sequence[str]) -> list[Series]:
        return [Series(name, name, self.colours[name], self.markers[name]) for name in names]

    def names(self, found: Mapping[str, Any]) -> list[str]:
        """Those of the systems that a suite has numbers of, in the order of the page."""
        return [system["name"] for system in self.systems if system["name"] in found]

    def scored(self, found: Mapping[str, Any]) -> list[str]:
        """Those of them that have any mean, for a figure; its table tells the others' as missing."""
        return [name for name in self.names(found) if _has_mean(found[name])]

    def few(self, found: Mapping[str, Any], always: Sequence[str] = ()) -> list[str]:
        """At most `MOST` of them: `always`, then the policies from the best down, then baselines."""
        known = self.scored(found)
        policies = [s["name"] for s in self.systems if s["kind"] == "policy"]
        order = self.best()
        ranked = [name for name in order if name in policies] + [p for p in policies if p not in order]
        # `sft, sampled` has the colour of `sft`: of each such family the best comes before any other.
        first = list({self.colours[name]: name for name in reversed(ranked) if name in known}.values())[::-1]
        wanted = dict.fromkeys([*always, *sorted(first, key=ranked.index), *ranked, *known])
        kept = [name for name in wanted if name in known][:MOST]
        return [name for name in known if name in kept]

    def best(self) -> list[str]:
        """The systems from the best, on the first test set with an order."""
        groups = [g for g in self.suites.get("reports", {}).get("groups", []) if g.get("order")]
        groups.sort(key=lambda g: (g["split"] != "test", g["setting"] != "report"))
        return [place["system"] for place in groups[0]["order"]] if groups else []

    def label(self, metric: str) -> str:
        known = self.data["metrics"].get(metric)
        if known:
            return str(known["label"])
        if metric == INVERSE:
            return "1/RadCliQ-v1"
        return CATALOG[metric].label if metric in CATALOG else metric

    def higher(self, metric: str) -> bool:
        known = self.data["metrics"].get(metric)
        if known:
            return bool(known["higher_is_better"])
        return metric == INVERSE or (metric in CATALOG and CATALOG[metric].higher_is_better)

    def by(self, metric: str) -> str:
        """Whose numbers are in it: the scorers', the judge's, both, or nobody's."""
        name = RADCLIQ if metric == INVERSE else metric
        known = self.data["metrics"].get(name)
        modelled = known["modelled"] if known else bool(name in CATALOG and catalog.with_weights([name]))
        judged = known["judged"] if known else name.startswith("errors")
        scorers = str(self.data["scorers"] or "") if modelled else ""
        return ", ".join(name for name in (scorers, self.judge if judged else "") if name)

    def panel(self, metric: str, title: str | None = None) -> Panel:
        """A metric's plot: its name, whose numbers it rests on, and which way is better."""
        return Panel(metric, f"{title or self.label(metric)} {self.arrow(metric)}", self.by(metric))

    def arrow(self, metric: str) -> str:
        """Whether higher or lower is better."""
        return "\N{UPWARDS ARROW}" if self.higher(metric) else "\N{DOWNWARDS ARROW}"

    def heading(self, metric: str) -> str:
        """A column's head."""
        whose = self.by(metric)
        return f"{self.label(metric)} {self.arrow(metric)}" + (f" ({whose})" if whose else "")

    def first(self, metrics: Sequence[str], count: int) -> list[str]:
        """The metrics that a figure with little room shows, as the paper's figures do."""
        order = (INVERSE, "bertscore", "sembscore", "radgraph", "ratescore", "composite", "bleu2", "rouge_l")
        wanted = [name for name in (INVERSE, "errors", *order[1:]) if name in metrics]
        return wanted[:count]


def _has_mean(found: Any) -> bool:
    if not isinstance(found, Mapping):
        return False
    return found.get("mean") is not None or any(_has_mean(each) for each in found.values())


def measured(group: Data, key: str = "values") -> list[str]:
    """The metrics of a group's systems that have a mean anywhere."""
    found: dict[str, None] = {}
    for metrics in group[key].values():
        found |= {name: None for name, record in metrics.items() if record and record["mean"] is not None}
    return list(found)


def whole(suite: Data, settings: Sequence[str] = ("report",)) -> Iterator[tuple[str, Data]]:
    """The groups with numbers in these settings, held-out ones first, each with a name for ids."""
    order = list(SPLITS)
    groups = [g for g in suite.get("groups", []) if g["setting"] in settings and "too_small" not in g]
    groups.sort(key=lambda g: order.index(g["split"]) if g["split"] in order else len(order))
    for at, group in enumerate(groups):
        yield f"{suite['suite']}-{at}", group


def means(
    caption: str,
    names: Sequence[str],
    columns: Sequence[tuple[str, str]],
    find: Callable[[str, str], Data | None],
) -> Table:
    """One row a system, one column a metric: (key, head)."""
    rows = [(name, [Cell(find(name, key), key) for key, _ in columns]) for name in names]
    return Table(caption, ["System", *(head for _, head in columns)], rows)


def p_value(value: float | None) -> str:
    """As it is printed."""
    return DASH if value is None else "<0.001" if value < 0.001 else f"{value:.3f}"
