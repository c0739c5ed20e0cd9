"""ReXrank's public boards, read as they are published, to stand beside our own numbers.

A board is a CSV of one corpus and one setting: `findings_result_<corpus>.csv` compares findings,
`result_<corpus>.csv` findings and impression. A row is one model with means over that board's test set,
without intervals and without studies: it is shown, with `label`, and no test compares it with anything.

What the files leave to the reader (of 2025-09, as rajpurkarlab/ReXrank published them):
- `Rank` counts the rows; the site sorts by 1/RadCliQ-v1, and so does `ranked`.
- 1/RadCliQ-v1 is one over the MEAN of the studies' RadCliQ-v1. RadCliQ-v1 is linear in the other columns, so
  its mean follows from theirs, and one over it is what all 100 rows of the findings boards show, to the last
  digit. The mean of reciprocals would lie above it by the square of the studies' relative spread: at most
  0.2% is left for that, a spread of 4%, where single reports range from -1.44 to 2.5 and beyond.
  Of the 28 rows of findings and impression 12 fit neither form (10 lie below one over the mean, where no mean
  of positive reciprocals can be), all of models of 2023 and 2024; why is not published: `Row.agrees`.
- A row may end early (the last column of UniRG-CXR's is absent), and a reciprocal of 0 stands for none.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from unirg import storage
from unirg.errors import UserError
from unirg.evaluation.candidates import Setting
from unirg.metrics.catalog import CATALOG
from unirg.metrics.radcliq import board_value, radcliq_v1

INVERSE = "inverse_radcliq_v1"
METRICS: Mapping[str, str] = {
    "BLEU": "bleu2",
    "BertScore": "bertscore",
    "SembScore": "sembscore",
    "RadGraph": "radgraph",
    "1/RadCliQ-v1": INVERSE,
    "RaTEScore": "ratescore",
    "GREEN": "green",
    "1/FineRadScore": "inverse_fineradscore",
}
"""A board's column -> our name. `INVERSE` is formed from the catalog's `radcliq_v1`; the catalog has no
`green` and no `inverse_fineradscore`."""
_ABOUT = ("Rank", "Date", "Model Name", "Institution", "Model URL")
_BOUNDS = {"green": (0.0, 1.0)} | {name: (score.low, score.high) for name, score in CATALOG.items()}
_MISSING = ("", "-", "nan", "n/a")
_DIGITS = 0.0005
"""Half of the last digit that a board shows."""


@dataclass(frozen=True)
class Board:
    """A test set of ReXrank."""

    corpus: str
    """As our adapter of ReXrank's test files names it."""
    title: str
    studies: int
    """Of the test set (PAPER.md)."""


BOARDS: Mapping[str, Board] = {
    "chexpertplus": Board("rexrank_chexpert_plus", "CheXpert Plus", 200),
    "gradienthealth": Board("rexrank_rexgradient", "ReXGradient (private test set)", 10_000),
    "iuxray": Board("rexrank_iu_xray", "IU X-ray", 590),
    "mimiccxr": Board("rexrank_mimic_cxr", "MIMIC-CXR", 2347),
}
"""The corpus in a file's name, without - and _ -> its board."""


@dataclass(frozen=True)
class Row:
    """A model on a board."""

    corpus: str
    setting: Setting
    model: str
    institution: str
    year: str
    """As the board has it; empty where it says none."""
    metrics: Mapping[str, float | None]
    """Our names, `METRICS`, -> mean over the board's test set; None where the board has none."""
    board: str
    """When the board was published, such as 2025-09; empty where its folder does not say so."""

    @property
    def agrees(self) -> bool | None:
        """Whether 1/RadCliQ-v1 follows from the row's other metrics; None where one is missing.

        Every figure is rounded, so any value is right that figures within half a digit could have given.
        """
        parts = [self.metrics.get(name) for name in ("radgraph", "bertscore", "sembscore", "bleu2")]
        shown = self.metrics.get(INVERSE)
        if shown is None or any(part is None for part in parts):
            return None
        worst, best = (
            float(radcliq_v1(*(part + side for part in parts if part is not None)))
            for side in (-_DIGITS, _DIGITS)
        )
        if best <= 0 <= worst:  # the reciprocal may be anything
            return True
        low, high = board_value(worst), board_value(best)
        return low is not None and high is not None and low - _DIGITS <= shown <= high + _DIGITS


def read(uri: str) -> list[Row]:
    """The rows of a board, or of all boards in a folder, in the order of the files.

    Raises:
        UserError: there is none, its name is none of a board, or a cell is wrong: by file, line and column.
    """
    if PurePosixPath(uri).suffix.lower() == ".csv":
        return list(_rows(uri))
    with storage.explained(uri):
        fs, path = storage.open_fs(uri)
        found = (
            sorted(PurePosixPath(each).name for each in fs.ls(path, detail=False)) if fs.isdir(path) else []
        )
    names = [name for name in found if name.lower().endswith(".csv")]
    if not names:
        raise UserError(f"{uri}: no board: name a CSV of ReXrank's, or a folder of them")
    return [row for name in names for row in _rows(storage.join(uri, name))]


def label(rows: Sequence[Row]) -> str:
    """What stands over public rows wherever they are shown beside ours."""
    when = sorted({row.board for row in rows if row.board})
    return ", ".join(["public board", *when]) + "; other studies than ours where the cohort is another"


def ranked(rows: Sequence[Row]) -> list[tuple[int, Row]]:
    """The rows of one board with their ranks by 1/RadCliQ-v1, as the site has them; equal figures share one.

    A row without the figure is last, with the rank after all others.
    """
    values = [row.metrics.get(INVERSE) for row in rows]
    known = [-math.inf if value is None else value for value in values]
    placed = [
        (1 + sum(other > value for other in known), row) for value, row in zip(known, rows, strict=True)
    ]
    return sorted(placed, key=lambda each: (each[0], each[1].model))


def of_corpus(rows: Sequence[Row], corpus: str | None, setting: Setting) -> list[Row]:
    """The board that belongs beside a corpus of ours, `mimic_cxr` or `rexrank_mimic_cxr`."""
    return [row for row in rows if row.setting == setting and corpus and corpus == _corpus(row, corpus)]


def _corpus(row: Row, like: str) -> str:
    return row.corpus if like.startswith("rexrank_") else row.corpus.removeprefix("rexrank_")


def _rows(uri: str) -> Iterator[Row]:
    board, setting, when = _board(uri)
    try:
        text = storage.read_bytes(uri).decode("utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"no file at {uri}: correct the path") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{uri} is not UTF-8 (byte {error.start}): save it as UTF-8") from None
    lines = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] = []
    seen: dict[str, int] = {}
    try:
        for cells in lines:
            place = f"{uri}: line {lines.line_num}"
            if not any(cell.strip() for cell in cells):
                continue
            if not header:
                header = _header(place, [cell.strip() for cell in cells])
                continue
            row = _row(place, header, cells)
            model = " ".join(row["Model Name"].split())
            if model in seen:
                raise UserError(
                    f"{place}, column Model Name: line {seen[model]} has the same: keep one of them"
                )
            seen[model] = lines.line_num
            metrics = {
                name: _number(f"{place}, column {column}", name, row.get(column, ""))
                for column, name in METRICS.items()
            }
            institution, year = (" ".join(row.get(name, "").split()) for name in ("Institution", "Date"))
            yield Row(board.corpus, setting, model, institution, year, metrics, when)
    except csv.Error:
        raise UserError(f"{uri}: line {lines.line_num} is no CSV: mend its quotes") from None
    if not seen:
        raise UserError(f"{uri} has no rows: name a board with models")


def _board(uri: str) -> tuple[Board, Setting, str]:
    """Which board a file is, and when its folder says that it was published."""
    path = PurePosixPath(uri.replace("\\", "/"))
    name = re.fullmatch(r"(findings_)?result_(.+)", path.stem)
    board = BOARDS.get(re.sub("[-_]", "", name[2]).lower()) if name else None
    if name is None or board is None:
        raise UserError(
            f"{uri}: not named as ReXrank names its boards; rename it to one of "
            f"[findings_]result_{{{','.join(BOARDS)}}}.csv"
        )
    when = re.search(r"[0-9]{4}-[0-9]{2}", path.parent.name)
    return board, "findings" if name[1] else "report", when[0] if when else ""


def _header(place: str, header: list[str]) -> list[str]:
    for column in header:
        if column not in (*METRICS, *_ABOUT):
            raise UserError(
                f"{place}, column {column[:40]!r}: no board has it; these are known: "
                f"{', '.join([*_ABOUT, *METRICS])}"
            )
        if header.count(column) > 1:
            raise UserError(f"{place}, column {column}: two columns have this name: rename one of them")
    if "Model Name" not in header or not set(METRICS) & set(header):
        raise UserError(
            f"{place}: a board has a column Model Name and columns of metrics: {', '.join(METRICS)}"
        )
    return header


def _row(place: str, header: Sequence[str], cells: Sequence[str]) -> dict[str, str]:
    """A line's cells by column. Metrics at its end may be absent; nothing before them, and nothing after."""
    if len(cells) > len(header):
        raise UserError(
            f"{place}, column {len(header) + 1}: the line has {len(cells)} columns, the header "
            f"{len(header)}: quote names that hold commas"
        )
    for column in header[len(cells) :]:
        if column not in METRICS:
            raise UserError(f"{place}, column {column}: the line ends before it: complete it")
    row = dict(zip(header, cells, strict=False))
    if not row["Model Name"].strip():
        raise UserError(f"{place}, column Model Name: it is empty: name the model")
    return row


def _number(place: str, name: str, cell: str) -> float | None:
    """A cell's number; None where the board has none.

    Raises:
        UserError: it is no number, or none that the metric can have.
    """
    cell = cell.strip()
    if cell.lower() in _MISSING:
        return None
    if not re.fullmatch(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]{1,3})?", cell):
        raise UserError(f"{place}: {cell[:40]!r} is no number: write it with a point and without a unit")
    value = float(cell)
    if name.startswith("inverse_") and value == 0:
        return None  # one over something is never 0: the board's sign for none
    low, high = _BOUNDS.get(name, (-math.inf, math.inf))
    if not (math.isfinite(value) and low <= value <= high):
        raise UserError(f"{place}: {cell[:40]} is outside [{low:g}, {high:g}]: correct it")
    return value
