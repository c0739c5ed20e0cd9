"""Figure 4d: distributions of scores by sex, age, race, view and institution, and gaps to the best group."""

from __future__ import annotations

from collections.abc import Sequence

from unirg.evaluation.groups import ALPHA
from unirg.evaluation.report import draw
from unirg.evaluation.report.shown import Cell, Data, Drawn, Shown, Table, p_value, whole

ATTRIBUTES = {"sex": "Sex", "age": "Age", "race": "Race", "view": "View", "institution": "Institution"}


def figures(suite: Data, shown: Shown) -> list[Drawn]:
    """One figure a group, and one of regressions where a challenger was named."""
    drawn = []
    for name, group in whole(suite):
        few = _two(group, shown)
        metrics = [
            m for m in suite["metrics"] if any(group["overall"][n][m]["mean"] is not None for n in few)
        ]
        told = _told(suite, group, shown)
        tabled = list(dict.fromkeys([*_first(metrics), *(metric for _, metric in told)]))
        listed = shown.names(dict.fromkeys([*few, *(system for system, _ in told)]))
        metrics = _first(metrics)
        levels = {
            f"{attribute}:{level}": found
            for attribute, of in group["attributes"].items()
            for level, found in of["levels"].items()
        }
        rows = [
            (key, f"{ATTRIBUTES[key.split(':')[0]]}: {key.partition(':')[2]} ({found['studies']})")
            for key, found in levels.items()
            if "values" in found
        ]
        left = [key.replace(":", " ") for key, found in levels.items() if "too_small" in found]
        if not rows or not metrics:
            continue

        def find(metric: str, row: str, system: str, of: dict[str, Data] = levels) -> Data | None:
            found: Data | None = of[row]["values"].get(system, {}).get(metric)
            return found

        def overall(metric: str, system: str, of: Data = group) -> float | None:
            mean: float | None = of["overall"][system][metric]["mean"]
            return mean

        title = f"Subgroups: {shown.place(group)}"
        caption = (
            "Each group's scores: bar, the middle half; tick, the median; marker, the mean with its 95% "
            "interval; dashed, the mean over everyone. Studies in brackets."
        )
        caption += f" Too small to be shown as numbers: {', '.join(left)}." if left else ""
        svg = draw.boxes(
            *(name, f"{title}. {caption}", [shown.panel(m) for m in metrics], rows),
            *(shown.series(few), find, overall),
        )
        tables = []
        for metric in tabled:
            numbers: list[tuple[str, list[Cell | str]]] = []
            for key, label in rows:
                cells: list[Cell | str] = []
                for n in listed:
                    each = find(metric, key, n)
                    gap = each and each["gap"]
                    cells.append(Cell(each, metric))
                    cells.append(Cell({**gap, "mean": gap["gap"]}, metric, signed=True) if gap else "best")
                    cells.append(p_value(gap["adjusted"]) if gap else "")
                numbers.append((label, cells))
            heads = ["Group", *(h for n in listed for h in (n, "gap to the best", "adjusted p"))]
            tables.append(Table(f"{title}: {shown.heading(metric)}", heads, numbers))
        drawn.append(Drawn(name, "4d", title, caption, svg, tables))
        drawn += _regressions(name, suite, group, shown)
    return drawn


def _first(metrics: Sequence[str]) -> list[str]:
    """The three that are drawn."""
    wanted = ("composite", "radcliq_v1", "bertscore", "radgraph", "errors", "bleu2", "rouge_l")
    return [m for m in wanted if m in metrics][:3]


def _large(suite: Data, each: Data) -> bool:
    """Whether a gap or difference is one that raises an alarm: the tables must have its numbers."""
    told = each["adjusted"] is not None and each["adjusted"] < ALPHA
    return told and each["in_sd"] is not None and each["in_sd"] <= -suite["min_effect"]


def _told(suite: Data, group: Data, shown: Shown) -> list[tuple[str, str]]:
    """(policy, metric) of every gap that raises an alarm."""
    policies = [system["name"] for system in shown.systems if system["kind"] == "policy"]
    return [
        (name, metric)
        for of in group["attributes"].values()
        for level in of["levels"].values()
        for name in policies
        for metric, each in level.get("values", {}).get(name, {}).items()
        if each["gap"] and _large(suite, each["gap"])
    ]


def _two(group: Data, shown: Shown) -> list[str]:
    """The best policy and the next, as the paper has it."""
    known = shown.names(group["overall"])
    kinds = {system["name"]: system["kind"] for system in shown.systems}
    order = [n for n in shown.best() if n in known and kinds[n] == "policy"]
    kept = [*order, *(n for n in known if n not in order)][:2]
    return [n for n in known if n in kept]


def _regressions(name: str, suite: Data, group: Data, shown: Shown) -> list[Drawn]:
    drawn = []
    for at, (pair, metrics) in enumerate(group["regressions"].items()):
        known = {m: [each for levels in by.values() for each in levels.values()] for m, by in metrics.items()}
        kept = _first([m for m, found in known.items() if any(each["mean"] is not None for each in found)])
        worse = [m for m, found in known.items() if any(_large(suite, each) for each in found)]
        tabled = list(dict.fromkeys([*kept, *worse]))
        first: Data = metrics[kept[0]] if kept else {}
        rows = [(f"{a}:{level}", f"{ATTRIBUTES[a]}: {level}") for a, by in first.items() for level in by]
        if not rows:
            continue

        def find(metric: str, row: str, system: str, of: Data = metrics) -> Data | None:
            attribute, _, level = row.partition(":")
            found: Data | None = of[metric].get(attribute, {}).get(level)
            return found

        title = f"Change by subgroup: {shown.place(group)}"
        caption = f"{pair}: paired differences with 95% intervals; the dashed line is no difference."
        series = [draw.Series("", pair, "#0072B2", "o")]
        panels = [shown.panel(m) for m in kept]
        key = f"{name}-regression-{at}"
        svg = draw.forest(key, f"{title}. {caption}", panels, rows, series, find, zero=True)
        numbers = [
            (
                label,
                [
                    cell
                    for m in tabled
                    for cell in (
                        Cell(find(m, row, ""), m, signed=True),
                        p_value((find(m, row, "") or {}).get("adjusted")),
                    )
                ],
            )
            for row, label in rows
        ]
        heads = ["Group", *(h for m in tabled for h in (shown.heading(m), "adjusted p"))]
        drawn.append(Drawn(key, "4d", title, caption, svg, [Table(f"{title}: {pair}", heads, numbers)]))
    return drawn
