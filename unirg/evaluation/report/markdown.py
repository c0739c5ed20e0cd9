"""The page as Markdown: summary, alarms and every table; the figures are in the HTML."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from unirg.evaluation.report import plots
from unirg.evaluation.report.shown import Cell, Data, Drawn, Table, formatted
from unirg.evaluation.report.told import SUITES, Told

_MARKS = re.compile(r"([\\`*_{}\[\]()#+!|~$<>&:@-])")


def render(
    title: str,
    data: Data,
    sentences: Sequence[str],
    told: Sequence[Told],
    drawn: Mapping[str, Sequence[Drawn]],
    boards: Sequence[Table],
) -> str:
    """The whole text; whatever came from outside is escaped, so that it shows as it is written."""
    lines = [f"# {text(title)}", "", "**Research use, not for diagnosis.**", "", "## Summary"]
    lines += [line for sentence in sentences for line in ("", text(sentence))]
    lines += ["", "## Alarms", ""]
    for kind in told:
        lines.append(f"- **{text(kind.meaning)}** ({text(SUITES[kind.suite])})")
        lines += [f"  - {text(alarm['sentence'])}" for alarm in kind.alarms]
    if not told:
        lines.append("No suite raised an alarm.")
    if boards:
        lines += ["", "## Leaderboard"]
        for board in boards:
            lines += rendered(board)
    for suite, figures in drawn.items():
        lines += ["", f"## {text(SUITES[suite])}"]
        for figure in figures:
            paper = f" (Figure {figure.paper} of the paper)" if figure.paper else ""
            lines += ["", f"### {text(figure.title)}{paper}", "", text(figure.caption)]
            for table in figure.tables:
                lines += rendered(table)
    missing = data["suites"].get("not_run", [])
    if missing:
        lines += ["", "## Not run", ""]
        for entry in missing:
            name = SUITES.get(entry["suite"], entry["suite"])
            lines.append(f"- {text(name)}: {text(entry['why'])}. {text(entry['how'])}")
    return "\n".join(lines) + "\n"


def text(words: str) -> str:
    """Words as they are, on one line: no markup, no markers of direction."""
    return _MARKS.sub(r"\\\1", " ".join(plots.visible(words).split()))


def rendered(table: Table) -> list[str]:
    """Its lines."""
    rows = [[text(label), *map(_cell, cells)] for label, cells in table.rows]
    head = [text(name) for name in table.heads]
    shown = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return ["", f"*{text(table.caption)}*", "", *("| " + " | ".join(row) + " |" for row in shown)]


def _cell(cell: Cell | str) -> str:
    if isinstance(cell, str):
        return text(cell)
    number = cell.number
    if number is None or number["mean"] is None:
        return formatted(None, cell.metric)
    shown = formatted(number["mean"], cell.metric)
    if number["low"] is not None:
        shown += f" ({formatted(number['low'], cell.metric)} to {formatted(number['high'], cell.metric)})"
    missing = number.get("missing")
    return shown + (f", {missing} missing" if missing else "")
