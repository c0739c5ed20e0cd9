"""Figures 1d and 2a: every metric by corpus and setting; the leaderboard with the public boards beside."""

from __future__ import annotations

from typing import Any

from unirg.evaluation.report import plots
from unirg.evaluation.report.shown import (
    DASH,
    INVERSE,
    SETTINGS,
    Cell,
    Data,
    Drawn,
    Shown,
    Table,
    formatted,
    measured,
)

_COLUMNS = (INVERSE, "bertscore", "sembscore", "radgraph", "ratescore", "bleu2")
"""What ReXrank's boards show, in the order of the paper's figure."""


def figures(suite: Data, shown: Shown) -> list[Drawn]:
    """One figure a corpus: both settings in it."""
    drawn = []
    places: dict[tuple[str, str | None], dict[str, Data]] = {}
    for group in suite["groups"]:
        if "too_small" not in group:
            places.setdefault((group["split"], group["corpus"]), {})[group["setting"]] = group
    for at, settings in enumerate(places.values()):
        group = settings.get("report") or settings["findings"]
        known = measured(group)
        metrics = [m for m in _COLUMNS if m in known] + [
            m for m in known if m not in _COLUMNS and not m.startswith("errors_") and m != "radcliq_v1"
        ]

        def find(system: str, setting: str, metric: str, of: dict[str, Data] = settings) -> Data | None:
            found: Data | None = of[setting]["values"].get(system, {}).get(metric) if setting in of else None
            return found

        panels = [(panel.key, panel.title, panel.subtitle) for panel in map(shown.panel, metrics)]
        label = shown.place(group)
        systems = [s for s in shown.systems if s["name"] in shown.scored(group["values"])]
        kept = [(name, SETTINGS[name]) for name in SETTINGS if name in settings]
        titles = ", ".join(shown.label(metric) for metric in metrics)
        alt = f"{titles} by system, {label}, with 95% intervals; the table below has the numbers."
        tables = [
            Table(
                f"{label}, {SETTINGS[setting].lower()}: {of['studies']} studies, {of['patients']} patients",
                ["System", *map(shown.heading, metrics)],
                [
                    (name, [Cell(of["values"][name].get(m), m) for m in metrics])
                    for name in shown.names(of["values"])
                ],
            )
            for setting, of in settings.items()
        ]
        drawn.append(
            Drawn(
                f"reports-{at}",
                "1d, 2a",
                f"Metrics: {label}",
                "Means with 95% intervals; filled: findings and impression, open: findings alone.",
                plots.dots(f"reports-{at}", alt, systems, panels, kept, find),
                tables,
            )
        )
    return drawn


def boards(suite: Data, shown: Shown) -> list[dict[str, Any]]:
    """The leaderboard of each group: our systems by rank, the public rows of the same test set marked.

    Public rows keep the rank of their own board, for they are over other studies wherever the cohort is.
    """
    found = []
    for group in suite["groups"]:
        if "too_small" in group:
            continue
        public = suite["public"]["boards"].get(group["board"]) if group["board"] else None
        known = measured(group)
        columns = [m for m in _COLUMNS if m in known] or shown.first(known, 6)
        errors = ["errors"] if "errors" in known else []
        found.append(
            {
                "title": f"{shown.place(group)}: {SETTINGS[group['setting']].lower()}",
                "studies": group["studies"],
                "columns": [*columns, *errors],
                "rows": [{**row, "values": group["values"][row["system"]]} for row in group["order"]],
                "public": public["rows"] if public else [],
            }
        )
    return found


def public(suite: Data) -> list[dict[str, Any]]:
    """Public boards that stand beside no corpus of ours."""
    beside = {group["board"] for group in suite["groups"] if "too_small" not in group}
    return [board for key, board in suite["public"]["boards"].items() if key not in beside]


def as_table(board: Data, shown: Shown) -> Table:
    """A board as `boards` made it, for Markdown: our rows by rank, then the public ones."""
    rows: list[tuple[str, list[Cell | str]]] = []
    for row in board["rows"]:
        cells = [Cell(row["values"].get(m), m) for m in board["columns"]]
        rows.append((row["system"], [str(row["rank"] or DASH), *cells]))
    for row in board["public"]:
        numbers = [formatted(row["metrics"].get(m), m) for m in board["columns"]]
        rows.append((f"{row['model']} (public board)", [str(row["rank"]), *numbers]))
    caption = f"{board['title']}, {board['studies']} studies"
    return Table(caption, ["System", "Rank", *map(shown.heading, board["columns"])], rows)
