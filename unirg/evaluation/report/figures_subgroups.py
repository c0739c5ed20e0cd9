"""Figure 4d: distributions of scores by sex, age, race, view and institution, and gaps to the best group."""

from __future__ import annotations

from unirg.evaluation.report import draw
from unirg.evaluation.report.shown import Cell, Data, Drawn, Shown, Table, p_value, place, whole

ATTRIBUTES = {"sex": "Sex", "age": "Age", "race": "Race", "view": "View", "institution": "Institution"}


def figures(suite: Data, shown: Shown) -> list[Drawn]:
    """One figure a group, and one of regressions where a challenger was named."""
    drawn = []
    for name, group in whole(suite):
        few = _two(group, shown)
        metrics = [
            m for m in suite["metrics"] if any(group["overall"][n][m]["mean"] is not None for n in few)
        ]
        metrics = [m for m in ("composite", "radcliq_v1", "bertscore", "radgraph", "errors") if m in metrics][
            :3
        ]
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

        title = f"Subgroups: {place(group)}"
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
        for metric in metrics:
            numbers: list[tuple[str, list[Cell | str]]] = []
            for key, label in rows:
                cells: list[Cell | str] = []
                for n in few:
                    each = find(metric, key, n)
                    gap = each and each["gap"]
                    cells.append(Cell(each, metric))
                    cells.append(Cell({**gap, "mean": gap["gap"]}, metric, signed=True) if gap else "best")
                    cells.append(p_value(gap["adjusted"]) if gap else "")
                numbers.append((label, cells))
            heads = ["Group", *(h for n in few for h in (n, "gap to the best", "adjusted p"))]
            tables.append(Table(f"{title}: {shown.heading(metric)}", heads, numbers))
        drawn.append(Drawn(name, "4d", title, caption, svg, tables))
        drawn += _regressions(name, group, shown)
    return drawn


def _two(group: Data, shown: Shown) -> list[str]:
    """The best policy and the next, as the paper has it."""
    known = shown.names(group["overall"])
    kinds = {system["name"]: system["kind"] for system in shown.systems}
    order = [n for n in shown.best() if n in known and kinds[n] == "policy"]
    kept = [*order, *(n for n in known if n not in order)][:2]
    return [n for n in known if n in kept]


def _regressions(name: str, group: Data, shown: Shown) -> list[Drawn]:
    drawn = []
    for at, (pair, metrics) in enumerate(group["regressions"].items()):
        kept = [m for m, by in metrics.items() if by][:3]
        first: Data = metrics[kept[0]] if kept else {}
        rows = [(f"{a}:{level}", f"{ATTRIBUTES[a]}: {level}") for a, by in first.items() for level in by]
        if not rows:
            continue

        def find(metric: str, row: str, system: str, of: Data = metrics) -> Data | None:
            attribute, _, level = row.partition(":")
            found: Data | None = of[metric].get(attribute, {}).get(level)
            return found

        title = f"Change by subgroup: {place(group)}"
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
                    for m in kept
                    for cell in (
                        Cell(find(m, row, ""), m, signed=True),
                        p_value((find(m, row, "") or {}).get("adjusted")),
                    )
                ],
            )
            for row, label in rows
        ]
        heads = ["Group", *(h for m in kept for h in (shown.heading(m), "adjusted p"))]
        drawn.append(Drawn(key, "4d", title, caption, svg, [Table(f"{title}: {pair}", heads, numbers)]))
    return drawn
