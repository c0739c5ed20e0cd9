"""A cohort card's contents as one self-contained HTML page, and as Markdown.

The page loads nothing and runs nothing; its policy forbids both. It needs no template engine, as staging
runs where none is installed. Values of a corpus (a race, an institution) are hostile text: escaped, cut,
and control and direction marks spelled out.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

LONGEST = 60
"""Characters of a value that are shown."""
_MARKS = re.compile(r"([\\`*_{}\[\]()#!|~$@]|:(?=//)|(?<=www)\.)", re.IGNORECASE)
"""What Markdown may take for markup; many renderers also make links of bare addresses."""


@dataclass(frozen=True)
class Table:
    title: str
    head: Sequence[str]
    """Names of the columns; the first one holds names, the others numbers."""
    rows: Sequence[Sequence[str]]
    bars: Sequence[float | None] = ()
    """Share of the largest number, 0 to 1, for each row; none where it is not to be seen."""
    note: str = ""


@dataclass(frozen=True)
class Film:
    """A sample image."""

    caption: str
    jpeg: str
    """Base64."""


@dataclass(frozen=True)
class Card:
    title: str
    facts: Sequence[tuple[str, str]]
    tables: Sequence[Table]
    films: Sequence[Film] = ()
    notes: Sequence[str] = field(default_factory=tuple)


def shown(text: str) -> str:
    """A value on one line, with marks that would reorder or hide what is read spelled out."""
    line = visible(text)
    return line if len(line) <= LONGEST else line[: LONGEST - 1] + "\N{HORIZONTAL ELLIPSIS}"


def visible(text: str) -> str:
    """As `shown`, whole."""
    return "".join(char if char.isprintable() else f"[U+{ord(char):04X}]" for char in text)


def html(card: Card) -> str:
    facts = "".join(f"<div><dt>{_text(name)}</dt><dd>{_text(value)}</dd></div>" for name, value in card.facts)
    films = "".join(
        f'<figure><img src="data:image/jpeg;base64,{film.jpeg}" alt="Sample radiograph: '
        f'{_text(film.caption)}"><figcaption>{_text(film.caption)}</figcaption></figure>'
        for film in card.films
    )
    notes = "".join(f"<li>{escape(note)}</li>" for note in card.notes)
    parts = [_html_table(table) for table in card.tables]
    if films:
        parts.append(f'<section class="all"><h2>Samples</h2><div class="films">{films}</div></section>')
    title = _text(card.title)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; style-src '
        "'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'\">\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="referrer" content="no-referrer">\n'
        f'<title>{title}</title>\n<link rel="icon" href="data:,">\n<style>{_STYLE}</style>\n</head>\n<body>\n'
        '<p class="notice" role="note"><strong>Research use, not for diagnosis.</strong></p>\n'
        f"<header><h1>{title}</h1>\n<dl>{facts}</dl>\n<ul>{notes}</ul></header>\n"
        f"<main>\n{chr(10).join(parts)}\n</main>\n"
        "<footer>Made by UniRG. It holds counts alone, no text of a report.</footer>\n</body>\n</html>\n"
    )


def markdown(card: Card) -> str:
    lines = [f"# {plain(card.title)}", "", "Research use, not for diagnosis.", "", *listed(card)]
    for table in card.tables:
        lines += rows(table)
    return "\n".join(lines) + "\n"


def listed(card: Card) -> list[str]:
    """The facts and notes of a card in Markdown, a line each."""
    facts = [f"- {plain(name)}: {plain(value)}" for name, value in card.facts]
    return [*facts, "", *(f"- {plain(note, whole=True)}" for note in card.notes)]


def rows(table: Table, heading: str = "##") -> list[str]:
    """A table in Markdown, under its title."""
    lines = ["", f"{heading} {plain(table.title)}", "", _row(table.head)]
    lines.append(f"| {' | '.join(['---'] + ['---:'] * (len(table.head) - 1))} |")
    lines += [_row(row) for row in table.rows]
    return [*lines, "", plain(table.note, whole=True)] if table.note else lines


def _html_table(table: Table) -> str:
    head = "".join(
        f'<th scope="col"{"" if place == 0 else " class=num"}>{_text(name)}</th>'
        for place, name in enumerate(table.head)
    )
    rows = []
    for place, row in enumerate(table.rows):
        bar = table.bars[place] if table.bars else None
        drawn = "" if bar is None else f'<i style="width: {100 * bar:.1f}%"></i>'
        cells = "".join(f'<td class="num">{_text(cell)}</td>' for cell in row[1:])
        rows.append(f'<tr><th scope="row">{_text(row[0])}{drawn}</th>{cells}</tr>')
    note = f'<p class="note">{escape(table.note)}</p>' if table.note else ""
    title = _text(table.title)
    return (
        f'<section><h2>{title}</h2><div class="scroll" tabindex="0" role="region" aria-label="{title}">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>{note}</section>"
    )


def _text(value: str) -> str:
    return escape(shown(value))


def plain(value: str, whole: bool = False) -> str:
    """A value as Markdown that shows it as it is; cut unless it is wanted whole."""
    marked = _MARKS.sub(r"\\\1", visible(value) if whole else shown(value))
    return escape(marked, quote=False)  # Markdown lets HTML through


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(map(plain, cells))} |"


_STYLE = """
:root { color-scheme: light; --ink: #1a1f26; --muted: #55606b; --line: #dde2e8; --accent: #0b5394; }
* { box-sizing: border-box; }
body { margin: 0; color: var(--ink); background: #fff;
  font: 16px/1.5 ui-sans-serif, system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
.notice { margin: 0; padding: .55rem 1rem; text-align: center; font-size: .92rem;
  background: #fff6dc; border-bottom: 2px solid #d9a400; }
header, main, footer { max-width: 76rem; margin: 0 auto; padding: 0 1.5rem; }
h1 { font-size: 1.8rem; line-height: 1.2; margin: 2rem 0 1rem; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 1.6rem 0 .3rem; }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.6rem, 1fr)); margin: 0;
  border: 1px solid var(--line); border-radius: 8px; overflow: hidden; }
dl div { padding: .7rem 1rem; box-shadow: 1px 1px 0 var(--line); }
dt { color: var(--muted); font-size: .8rem; }
dd { margin: .1rem 0 0; font-weight: 600; overflow-wrap: anywhere; }
ul, .note, figcaption, footer { color: var(--muted); font-size: .88rem; }
ul { padding-left: 1.1rem; }
main { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(33rem, 100%), 1fr)); gap: 0 2.5rem; }
section { min-width: 0; }
.all { grid-column: 1 / -1; }
.scroll { overflow-x: auto; }
.scroll:focus-visible { outline: 3px solid var(--accent); outline-offset: 2px; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; }
th, td { padding: .38rem .6rem; text-align: left; border-bottom: 1px solid var(--line); }
thead th { color: var(--muted); font-weight: 500; font-size: .83rem; border-bottom: 1.5px solid var(--ink); }
tbody th { font-weight: 500; }
th i { display: block; height: 4px; margin-top: 3px; border-radius: 2px; background: var(--accent); }
.num { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.films { display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); gap: .8rem; }
figure { margin: 0; }
img { display: block; width: 100%; height: auto; border-radius: 4px; background: #000; }
footer { padding: 2rem 1.5rem 3rem; }
@media print { section, figure { break-inside: avoid; } .scroll { overflow: visible; } }
"""
