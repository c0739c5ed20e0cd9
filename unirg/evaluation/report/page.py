"""Numbers and example cases -> the HTML page: what each figure and table shows, how a number is printed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from unirg.evaluation.aggregates import shown_first
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
    tables,
    told,
)
from unirg.evaluation.report.cases import KINDS, Case
from unirg.evaluation.report.shown import SETTINGS, SPLITS, Cell, Drawn, Shown, Table, formatted, signed
from unirg.metrics.catalog import CATALOG

Data = Mapping[str, Any]
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
    }
    template = environment.get_template("report.html")
    shown, suites = Shown(data, view.judge), data["suites"]
    drawn = {name: draw(suites[name], shown) for name, draw in DRAWN.items() if name in suites}
    reports = suites.get("reports")
    boards = figures_reports.boards(reports, shown) if reports else []
    levels = dict.fromkeys(level for case in cases for level in case.levels)
    raised = told.alarms(data)
    words = list(told.sentences(data, raised, shown))
    odd = told.summary(suites.get("sanity", {}))
    beside = {"sanity": tables.sanity(odd, shown)}
    html = template.render(
        **{"title": title, "data": data, "cases": cases, "view": view, "shown": shown},
        **{"kinds": KINDS, "levels": sorted(levels), "told": raised, "suite_names": told.SUITES},
        **{"suite_figures": drawn, "boards": boards, "most_named": told.NAMED},
        sentences=words,
        public_boards=figures_reports.public(reports) if reports else [],
        sanity=list(zip(odd, beside["sanity"], strict=True)),
    )
    ranked = [*(figures_reports.as_table(board, shown) for board in boards), *view.differences(shown)]
    return Page(html.lstrip(), markdown.render(title, data, shown, words, raised, ranked, drawn, beside))


def lead(data: Data) -> str:
    """The metric that the page speaks of first: the composite, or the next one where a part of it lacks."""
    known = {v["metric"] for v in data["values"] if v["n"]}
    first = shown_first(data["metrics"])
    return next((name for name in first if name in known), first[0])


def judge_label(model: str | None) -> str:
    """How the judge is named beside its numbers; empty where there is none."""
    from unirg.metrics.offline_judge import MODEL  # it brings a web server's modules with it

    return "offline judge" if model == MODEL else model or ""


class View:
    """What the template asks of the data."""

    settings = SETTINGS

    def __init__(self, data: Data) -> None:
        self.data = data
        self.headline = shown_first(data["metrics"])
        self.lead = lead(data)
        self.judge = judge_label(data["judge"])
        self.colours = plots.colours(data["systems"])
        self.splits = [split for split in SPLITS if any(g["split"] == split for g in data["groups"])]

    def group(self, split: str) -> Data:
        """Studies and patients of a whole split."""
        return next(g for g in self.data["groups"] if g["split"] == split and g["corpus"] is None)

    def by(self, metric: str) -> str:
        """Whose numbers are in the metric, beside ours: the scorers', the judge's, both, or nobody's."""
        known = self.data["metrics"][metric]
        scorers = self.data["scorers"] if known["modelled"] else None
        return ", ".join(filter(None, (scorers, self.judge if known["judged"] else None)))

    def label(self, metric: str) -> str:
        """The metric's name, with whose numbers are in it."""
        label, whose = str(self.data["metrics"][metric]["label"]), self.by(metric)
        return f"{label} ({whose})" if whose else label

    def formula(self) -> str:
        """The composite as it was weighted."""
        times = "\N{MULTIPLICATION SIGN}"
        weights = self.data["composite"].items()
        return " + ".join(f"{weight:.3g} {times} {_term(name)}" for name, weight in weights if weight)

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

    def differences(self, shown: Shown) -> list[Table]:
        """`compared` as a table, for Markdown; none where nothing was compared."""
        rows = [
            (
                f"{row['a']} minus {row['b']}, {shown.split(row['split'])}",
                [
                    *(
                        Cell(one | {"mean": one["difference"]}, m, signed=True)
                        for m, one in row["by"].items()
                    ),
                    row["by"][self.lead]["sentence"],
                ],
            )
            for pair in self.compared()
            for row in pair
        ]
        heads = ["Systems", *map(self.label, self.headline), f"In words ({self.label(self.lead)})"]
        return [Table("Paired differences, findings and impression", heads, rows)] if rows else []

    @staticmethod
    def not_run(entry: Data) -> str:
        """What did not run, by the heading that it would have."""
        return tables.not_run(entry, told.SUITES)

    def count(self, kinds: Sequence[told.Told]) -> int:
        """How many alarms there are."""
        return sum(len(kind.alarms) for kind in kinds)

    def against(self, kinds: Sequence[told.Told], systems: Sequence[str]) -> list[str]:
        """What the alarms say of any of these systems."""
        return [kind.meaning for kind in kinds if set(systems) & set(kind.systems())]

    def public(self) -> bool:
        """Whether any board has public rows, beside ours or alone."""
        return bool(self.data["suites"]["reports"]["public"]["boards"])

    def contents(self, boards: Sequence[Data], cases: Sequence[Case]) -> list[tuple[str, str]]:
        """(anchor, label) of every section of the page."""
        suites = self.data["suites"]
        found = [
            ("leaderboard", "Leaderboard" if boards else ""),
            ("comparisons", "Comparisons" if self.data["comparisons"] else ""),
            *((f"suite-{name}", label) for name, label in told.SUITES.items() if name in suites),
            ("cases", "Cases" if cases else ""),
            ("cards", "Cards"),
            ("unscored", "Not scored"),
            ("provenance", "Provenance"),
        ]
        return [(anchor, label) for anchor, label in found if label]

    def software(self) -> dict[str, str]:
        """Versions over all stages."""
        return tables.software(self.data)


def _term(name: str) -> str:
    """A part of the composite: of errors the reciprocal counts, so that more is better."""
    return "1 / (errors + 1)" if name == "errors" else CATALOG[name].label


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
