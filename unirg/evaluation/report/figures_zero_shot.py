"""Figure 4a: held-out places beside those that were learned from, and the drop between them."""

from __future__ import annotations

from unirg.evaluation.groups import ALPHA
from unirg.evaluation.report import draw, plots
from unirg.evaluation.report.shown import RADCLIQ, Cell, Data, Drawn, Shown, Table, measured, p_value

SIDES = (("test", "Places learned from (test set)"), ("zero_shot", "Unseen places"))


def figures(suite: Data, shown: Shown) -> list[Drawn]:
    """Means of both sides, and the drop of each unseen place."""
    groups = [g for g in suite["groups"] if g["setting"] == "report" and "too_small" not in g]
    sides = {g["split"]: g for g in groups if g["corpus"] is None}
    away = [g for g in groups if g["split"] == "zero_shot" and "drops" in g]
    if len({g["corpus"] for g in away if g["corpus"]}) == 1:  # all unseen places are this corpus
        away = [g for g in away if g["corpus"] is None or g["institution"]]
    if set(sides) != {"test", "zero_shot"} or not away:
        return []
    known = measured(sides["zero_shot"])
    metrics = shown.first(known, 5)
    metrics = [RADCLIQ, *metrics] if RADCLIQ in known else metrics
    told = [m for g in away for of in g["drops"].values() for m, d in of.items() if _large(suite, d)]
    tabled = list(dict.fromkeys([*metrics, *told]))
    names = shown.names(sides["zero_shot"]["values"])
    systems = [s for s in shown.systems if s["name"] in shown.scored(sides["zero_shot"]["values"])]

    def mean(system: str, split: str, metric: str) -> Data | None:
        found: Data | None = sides[split]["values"].get(system, {}).get(metric)
        return found

    panels = [shown.panel(metric) for metric in metrics]
    caption = "Means with 95% intervals; filled: places learned from, open: unseen places."
    title = "Zero-shot: unseen places beside those learned from"
    svg = plots.dots(
        *("zero-shot-means", f"{title}. {caption}", systems, [(p.key, p.title, p.subtitle) for p in panels]),
        *(SIDES, mean),
    )
    tables = [
        Table(
            f"{shown.place(group)}: {group['studies']} studies, {group['patients']} patients",
            ["System", *map(shown.heading, tabled)],
            [(n, [Cell(group["values"][n].get(m), m) for m in tabled]) for n in names],
        )
        for group in groups
    ]
    drawn = [Drawn("zero-shot-means", "4a", title, caption, svg, tables)]

    few, kept = shown.few(sides["zero_shot"]["values"]), metrics[:4]
    rows = [
        (str(at), shown.place(group) if group["corpus"] else "All unseen places")
        for at, group in enumerate(away)
    ]

    def drop(metric: str, row: str, system: str) -> Data | None:
        found = away[int(row)]["drops"].get(system, {}).get(metric)
        return found and {**found, "mean": found["drop"]}

    title = "Zero-shot: the drop on each unseen place"
    caption = (
        "How much worse each unseen place is than the places learned from, in the metric's own units, with "
        "95% intervals; right of the dashed line is worse."
    )
    panels = [p._replace(subtitle=shown.by(p.key)) for p in map(shown.panel, kept)]
    svg = draw.forest(
        "zero-shot-drops", f"{title}. {caption}", panels, rows, shown.series(few), drop, zero=True
    )
    tables = [
        Table(
            f"{label}: drop with 95% interval; p-values corrected over the places",
            ["System", *(head for m in tabled for head in (shown.heading(m), "adjusted p"))],
            [
                (
                    n,
                    [
                        cell
                        for m in tabled
                        for cell in (
                            Cell(drop(m, row, n), m, signed=True),
                            p_value(away[int(row)]["drops"][n][m]["adjusted"]),
                        )
                    ],
                )
                for n in names
            ],
        )
        for row, label in rows
    ]
    return [*drawn, Drawn("zero-shot-drops", "4a", title, caption, svg, tables)]


def _large(suite: Data, drop: Data) -> bool:
    """Whether a drop is one that raises an alarm: the tables must have its numbers."""
    told = drop["adjusted"] is not None and drop["adjusted"] < ALPHA
    return told and (drop["in_sd"] or 0) >= suite["large_drop"]
