"""The page as Markdown: all that its HTML tells but figures, cases and the settings of each stage."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from unirg.evaluation.report import plots, tables
from unirg.evaluation.report.shown import SPLITS, Cell, Data, Drawn, Shown, Table, formatted, signed
from unirg.evaluation.report.told import SUITES, Told

_MARKS = re.compile(r"([\\`*_{}\[\]()#+!|~$<>&:@-])")


def render(
    title: str,
    data: Data,
    shown: Shown,
    sentences: Sequence[str],
    told: Sequence[Told],
    boards: Sequence[Table],
    drawn: Mapping[str, Sequence[Drawn]],
    beside: Mapping[str, Sequence[Table]],
) -> str:
    """The whole text; whatever came from outside is escaped, so that it shows as it is written.

    Args:
        beside: suite -> tables that stand beside its figures.
    """
    lines = [f"# {text(title)}", "", "**Research use, not for diagnosis.**"]
    lines += ["", f"Reports beside the radiologist's, {text(shown.about())}.", "", "## Summary"]
    lines += [line for sentence in sentences for line in ("", text(sentence))]
    lines += ["", *(f"- {text(note)}." for note in data["notes"])] if data["notes"] else []
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
        for table in beside.get(suite, ()):
            lines += rendered(table)
        if small := shown.small(data["suites"][suite]):
            lines += ["", text(f"Too small to be shown as numbers: {'; '.join(small)}.")]
    lines += ["", "## Data and model cards", "", *_cards(data["cards"])]
    lines += ["", "## Not scored, and why", *_missing(data, shown)]
    lines += ["", "## Provenance", *rendered(tables.provenance(data)), ""]
    lines += [f"- {text(name)} {text(version)}" for name, version in tables.software(data).items()]
    return "\n".join(lines) + "\n"


def _missing(data: Data, shown: Shown) -> Iterator[str]:
    """Suites that did not run, metrics without a number, studies without a score."""
    yield ""
    for entry in data["suites"]["not_run"]:
        name = tables.not_run(entry, SUITES)
        yield f"- {text(name)} was not run: {text(entry['why'])}. {text(entry['how'])}"
    if data["uneven"]["studies"]:
        yield f"- {data['uneven']['studies']} studies have a candidate from some systems and not from others."
    for table in (*tables.absent(data), *tables.unscored(data, shown)):
        yield from rendered(table)
    if not data["unscored"]:
        yield from ("", "Every system has a candidate for every study.")


def _cards(cards: Data) -> Iterator[str]:
    """The cards, an item each: corpora, splits, models by the stages that made them."""
    of = cards["data"]
    for corpus in of["corpora"] if of else ():
        real = "synthetic" if corpus["synthetic"] else "real patients"
        yield f"- {text(corpus['name'])} ({text(corpus['corpus'])}), {real}; terms: {text(corpus['licence'])}"
    for split in of["splits"] if of else ():
        where = SPLITS.get(split["split"], split["split"])
        yield f"- {text(where)}: {split['studies']} studies of {split['patients']} patients"
    for model in cards["models"]:
        made = ", ".join(f"{stage['stage'] or 'dropped'} {stage['digest'][:16]}" for stage in model["stages"])
        yield f"- {text(', also as '.join(model['systems']))}: {text(made)}"
    for name in cards["unknown"]:
        yield f"- {text(name)}: no checkpoint is known of it"


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
    spelled = signed if cell.signed else formatted
    shown = spelled(number["mean"], cell.metric)
    if number["low"] is not None:
        shown += f" ({spelled(number['low'], cell.metric)} to {spelled(number['high'], cell.metric)})"
    missing = number.get("missing")
    return shown + (f", {missing} missing" if missing else "")
