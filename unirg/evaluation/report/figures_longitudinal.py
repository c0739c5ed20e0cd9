"""Figures 3a to 3c: with and without priors, by encounter, by temporal category; copy-prior in every cell."""

from __future__ import annotations

from collections.abc import Sequence

from unirg.evaluation.candidates import COPY_PRIOR
from unirg.evaluation.report import draw
from unirg.evaluation.report.shown import INVERSE, RADCLIQ, Cell, Data, Drawn, Shown, Table, measured

FIGURES = {"encounter": ("3b", "By encounter"), "category": ("3c", "By temporal category")}
CELLS = {"all": "All studies", "prior": "All studies with a prior", "5+": "5th and later"}


def figures(suite: Data, shown: Shown) -> list[Drawn]:
    """Three figures a group; 3a where a pair of systems with and without priors was named."""
    drawn = []
    for at, group in enumerate(g for g in suite["groups"] if g["setting"] == "report"):
        where = shown.place(group)
        cells = [cell for cell in group["cells"] if "too_small" not in cell]
        if suite["pairs"] and cells:
            drawn.append(_pairs(f"longitudinal-{at}-pairs", where, suite, cells, shown))
        for by, (paper, title) in FIGURES.items():
            every = [cell for cell in group["cells"] if cell["by"] == by]
            kept = [cell for cell in every if "too_small" not in cell]
            if kept:
                name = f"longitudinal-{at}-{by}"
                drawn.append(_cells(name, paper, f"{title}: {where}", every, kept, shown))
    return drawn


def called(cell: Data) -> str:
    """A cell in words."""
    name = str(cell["cell"])
    if cell["by"] == "encounter" and name.isdigit():
        ordinals = {"1": "1st", "2": "2nd", "3": "3rd"}
        return ordinals.get(name, f"{name}th")
    return CELLS.get(name, name.replace("_", " ").capitalize())


def _metrics(cells: Sequence[Data], names: Sequence[str], shown: Shown) -> list[str]:
    """Three metrics to draw: RadCliQ-v1 itself where its reciprocal is near its pole for any of `names`."""
    records = [cell["values"].get(name, {}).get(INVERSE) for cell in cells for name in names]
    beyond = any(r and r["n"] and (r["low"] is None or r["low"] <= 0) for r in records)
    metrics = shown.first(measured(cells[0]), 3)
    return [RADCLIQ if metric == INVERSE and beyond else metric for metric in metrics]


def _cells(
    name: str, paper: str, title: str, every: Sequence[Data], kept: Sequence[Data], shown: Shown
) -> Drawn:
    by = {cell["cell"]: cell for cell in kept}
    few = shown.few(kept[0]["values"], always=[COPY_PRIOR])
    metrics = _metrics(kept, few, shown)
    names = shown.names(kept[0]["values"])

    def find(metric: str, cell: str, system: str) -> Data | None:
        found: Data | None = by[cell]["values"].get(system, {}).get(metric) if cell in by else None
        return found

    categories = [(cell["cell"], f"{called(cell)} n={cell['studies']}") for cell in every]
    left = [called(cell) for cell in every if "too_small" in cell]
    caption = "Means over the studies of each group with 95% intervals, beside copying the prior report."
    caption += f" Too small to show: {', '.join(left)}." if left else ""
    svg = draw.across(
        name, f"{title}. {caption}", [shown.panel(m) for m in metrics], categories, shown.series(few), find
    )
    tables = []
    for metric in metrics:
        rows: list[tuple[str, list[Cell | str]]] = []
        for cell in every:
            sizes: list[Cell | str] = [str(cell["studies"]), str(cell["patients"]), str(cell["priors"])]
            numbers = [
                Cell(find(metric, cell["cell"], n), metric) if cell["cell"] in by else "too small"
                for n in names
            ]
            rows.append((called(cell), sizes + numbers))
        heads = ["Group", "Studies", "Patients", "With a prior", *names]
        tables.append(Table(f"{title}: {shown.heading(metric)}", heads, rows))
        rows = [
            (
                called(cell),
                [
                    Cell(cell["against_copy_prior"].get(n, {}).get(metric), metric, signed=True)
                    for n in names
                    if n in kept[0]["against_copy_prior"]
                ],
            )
            for cell in kept
        ]
        others = [n for n in names if n in kept[0]["against_copy_prior"]]
        if others and metric in next(iter(kept[0]["against_copy_prior"].values())):
            heads = ["Group", *others]
            tables.append(Table(f"{title}: {shown.heading(metric)}, minus {COPY_PRIOR}", heads, rows))
    return Drawn(name, paper, title, caption, svg, tables)


def _pairs(name: str, where: str, suite: Data, cells: Sequence[Data], shown: Shown) -> Drawn:
    """What priors bring: means of each pair over all studies and those with a prior, and the difference."""
    kept = [cell for cell in cells if cell["by"] in ("all", "prior")] or list(cells[:1])
    members = list(dict.fromkeys(n for pair in suite["pairs"] for n in (pair["with"], pair["without"])))
    names = [n for n in shown.names(kept[0]["values"]) if n in (*members, COPY_PRIOR)]
    metrics = _metrics(kept, names, shown)
    by = {cell["by"]: cell for cell in kept}

    def find(metric: str, cell: str, system: str) -> Data | None:
        found: Data | None = by[cell]["values"].get(system, {}).get(metric)
        return found

    title = f"With and without priors: {where}"
    caption = (
        "Means with 95% intervals of systems shown the prior study and of those not shown it: "
        + "; ".join(f"{pair['with']} (with) against {pair['without']} (without)" for pair in suite["pairs"])
        + "."
    )
    svg = draw.across(
        name,
        f"{title}. {caption}",
        [shown.panel(m) for m in metrics],
        [(cell["by"], f"{called(cell)}") for cell in kept],
        shown.series(names),
        find,
    )
    rows: list[tuple[str, list[Cell | str]]] = []
    told = [m for m in kept[0]["priors_bring"][0]["metrics"] if not m.startswith("errors_")]
    for cell in kept:
        for pair in cell["priors_bring"]:
            numbers: list[Cell | str] = [Cell(pair["metrics"].get(m), m, signed=True) for m in told]
            rows.append((f"{pair['with']} minus {pair['without']}, {called(cell).lower()}", numbers))
    table = Table(f"{title}: paired differences", ["Pair", *map(shown.heading, told)], rows)
    return Drawn(name, "3a", title, caption, svg, [table])
