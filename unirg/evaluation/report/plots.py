"""The report's figures as inline SVG: text stays text, the bytes depend on the numbers alone.

Systems differ by colour (Okabe and Ito's palette, safe for colour-blind readers) and by row; held-out and
zero-shot differ by a filled and an open marker, so that print without colour loses nothing.
"""

from __future__ import annotations

import io
import itertools
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#B8860B", "#56B4E9")
MARKERS = "osD^vP"
BASELINE = "#5B6570"
INK, MUTED, LINE = "#1A1F26", "#5B6570", "#DDE2E8"
_WIDTH = 10.4
"""Inches; 72 points each, so that 10 points are about a line of the page."""
_LONGEST = 30

Number = Mapping[str, Any]
"""A record of an evaluation's values: mean, low, high."""


def colours(systems: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """A colour for each system: baselines grey, policies in turn, `sft, sampled` as `sft`."""
    policies = {
        name: name.partition(", ")[0] for name in (s["name"] for s in systems if s["kind"] == "policy")
    }
    families = list(dict.fromkeys(policies.values()))
    found = {system["name"]: BASELINE for system in systems}
    return found | {name: PALETTE[families.index(own) % len(PALETTE)] for name, own in policies.items()}


def dots(
    name: str,
    alt: str,
    systems: Sequence[Mapping[str, str]],
    panels: Sequence[tuple[str, str, str]],
    splits: Sequence[tuple[str, str]],
    find: Callable[[str, str, str], Number | None],
) -> str:
    """Means with intervals: one panel a metric, one row a system, one marker a split.

    Args:
        panels: (metric, title, subtitle).
        splits: (split, label): the first is filled, the second open.
        find: (system, split, metric) -> its numbers.
    """
    shown = colours(systems)
    columns = 4 if len(panels) == 4 else 3
    rows = -(-len(panels) // columns)
    height = rows * (0.27 * len(systems) + 0.85) + 0.35
    with style():
        figure = blank(height)
        axes = figure.subplots(rows, columns, sharey=True, squeeze=False).ravel()
        beyond = False
        for axis, (metric, title, subtitle) in zip(axes, panels, strict=False):
            add_title(axis, title, subtitle, room=any(panel[2] for panel in panels))
            tints = [shown[system["name"]] for system in systems]
            rows_ = [[find(system["name"], split, metric) for system in systems] for split, _ in splits]
            lifts = [(rank - (len(splits) - 1) / 2) * 0.34 for rank in range(len(splits))]
            for rank, (lift, found) in enumerate(zip(lifts, rows_, strict=True)):
                level(axis, lift, found, tints, "o", size=5.5, hollow=rank > 0)
            axis.set_yticks(range(len(systems)), [short(system["name"]) for system in systems])
            axis.set_ylim(len(systems) - 0.4, -0.6)
            axis.tick_params(axis="y", labelcolor=INK)
            if axis.dataLim.xmin >= 0:  # from zero, with room for a marker there
                most = axis.get_xlim()[1]
                axis.set_xlim(-0.03 * most, most)
            for lift, found in zip(lifts, rows_, strict=True):
                beyond |= clip(axis, lift, found, tints, limits(each for row in rows_ for each in row))
            axis.grid(axis="x")
        for axis in axes[len(panels) :]:
            axis.set_visible(False)
        legend = [("o", label, INK, INK if rank == 0 else "white") for rank, (_, label) in enumerate(splits)]
        add_legend(figure, legend + ([(">", "beyond the axis", MUTED, MUTED)] if beyond else []))
        return as_svg(figure, name, alt)


def limits(found: Iterable[Number | None]) -> tuple[float, float] | None:
    """Where an axis must end, though intervals go on: the means with room for four usual half-widths.

    Near the pole of a reciprocal (1/RadCliQ-v1) one interval can be a hundred times as wide as all others,
    which would press these into a line. None where the intervals are at most twice as wide as that.
    """
    drawn = [each for each in found if each and each["mean"] is not None]
    known = [each for each in drawn if each["low"] is not None]
    if not known:
        return None
    widths = sorted((each["high"] - each["low"]) / 2 for each in known)
    means = [each["mean"] for each in drawn]  # all of them: no marker may fall off the axis
    room = max(max(means) - min(means), 4 * widths[(len(widths) - 1) // 2])
    left, right = min(means) - room, max(means) + room
    whole = max(each["high"] for each in known) - min(each["low"] for each in known)
    return (left, right) if whole > 2 * (right - left) > 0 else None


def clip(
    axis: Axes,
    lift: float,
    found: Sequence[Number | None],
    tints: Sequence[str],
    within: tuple[float, float] | None,
) -> bool:
    """Keep the axis within its limits, with an arrow where an interval goes on; whether any does."""
    if within is None:
        return False
    left, right = axis.get_xlim()
    left, right = max(left, within[0]), min(right, within[1])
    axis.set_xlim(left, right)
    _, lines = rows_of(found)
    clipped = False
    for row in lines:
        each = found[row] or {}
        for end, marker, outside in ((left, "<", each["low"] < left), (right, ">", each["high"] > right)):
            if outside:
                axis.scatter(
                    [end], [row + lift], s=22, marker=marker, color=tints[row], zorder=3, clip_on=False
                )
                clipped = True
    return clipped


def add_title(axis: Axes, title: str, subtitle: str, room: bool) -> None:
    """A title, and below it in small type whose numbers these are."""
    axis.set_title(short(title), loc="left", pad=18 if room else 8)
    axis.annotate(
        short(subtitle), (0, 1), (0, 6), "axes fraction", textcoords="offset points", fontsize=8, color=MUTED
    )


def level(
    axis: Axes,
    lift: float,
    found: Sequence[Number | None],
    tints: Sequence[str],
    marker: str,
    size: float,
    hollow: bool = False,
) -> None:
    """Means with their intervals lying level, one a row; few artists, for drawing time goes by their number.

    Args:
        lift: how far below its row each lies.
        found: the rows' numbers, from the first row.
        tints: colour of each row.
        size: of the marker, in points.
    """
    means, lines = rows_of(found)
    if lines:
        ends = [found[row] or {} for row in lines]
        bars = (
            [row + lift for row in lines],
            [each["low"] for each in ends],
            [each["high"] for each in ends],
        )
        axis.hlines(*bars, colors=[tints[row] for row in lines], linewidths=1.5, zorder=2)
    if means:
        dots = [(found[row] or {})["mean"] for row in means], [row + lift for row in means]
        edge = [tints[row] for row in means]
        axis.scatter(
            *dots,
            s=size**2,
            marker=marker,
            facecolors="white" if hollow else edge,
            edgecolors=edge,
            zorder=3,
            clip_on=False,
        )


def rows_of(found: Sequence[Number | None]) -> tuple[list[int], list[int]]:
    """Where there is a mean, and where an interval."""
    means = [row for row, number in enumerate(found) if number and number["mean"] is not None]
    return means, [row for row in means if (found[row] or {})["low"] is not None]


def add_legend(figure: Figure, entries: Sequence[tuple[str, str, str, str]]) -> None:
    """Above the panels: (marker, label, colour, colour inside the marker)."""
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], marker=marker, color=colour, markerfacecolor=face, label=short(label))
        for marker, label, colour, face in entries
    ]
    figure.legend(handles=handles, loc="outside upper right", ncols=min(len(handles), 5), frameon=False)


Line = tuple[str, Sequence[float], Sequence[float], str]
"""(system, steps, values, colour)"""
Panel = tuple[str, str, Sequence[Line]]
"""(title, subtitle, lines)"""


def curves(name: str, alt: str, panels: Sequence[Panel]) -> str:
    """Training curves, thin as logged and thick as a running mean."""

    def draw(axis: Axes, lines: Sequence[Line]) -> None:
        for _, steps, values, colour in lines:
            axis.plot(steps, values, color=colour, linewidth=0.8, alpha=0.4)
            axis.plot(steps, running_mean(values), color=colour, linewidth=1.8)

    systems = {line[0]: line[3] for _, _, lines in panels for line in lines}
    legend = [("s", system, colour, colour) for system, colour in systems.items()]
    return _against_steps(name, alt, panels, draw, legend)


def scored(name: str, alt: str, panels: Sequence[Panel]) -> str:
    """Few values of several systems, each a marker of the system's own; a panel for each score."""
    systems = {line[0]: line[3] for _, _, lines in panels for line in lines}
    markers = dict(zip(systems, itertools.cycle(MARKERS), strict=False))

    def draw(axis: Axes, lines: Sequence[Line]) -> None:
        for system, steps, values, colour in lines:
            axis.plot(steps, values, markers[system] + "-", color=colour, linewidth=1.4, markersize=4)

    legend = [(markers[system], system, colour, colour) for system, colour in systems.items()]
    return _against_steps(name, alt, panels, draw, legend)


def _against_steps(
    name: str,
    alt: str,
    panels: Sequence[Panel],
    draw: Callable[[Axes, Sequence[Line]], None],
    legend: Sequence[tuple[str, str, str, str]],
) -> str:
    columns = 4
    rows = -(-len(panels) // columns)
    with style():
        figure = blank(rows * 1.85 + 0.4)
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        for axis, (title, subtitle, lines) in zip(axes, panels, strict=False):
            add_title(axis, title, subtitle, room=any(panel[1] for panel in panels))
            draw(axis, lines)
            axis.grid(axis="y")
            axis.set_xlabel("step")
            axis.locator_params(nbins=5)
        for axis in axes[len(panels) :]:
            axis.set_visible(False)
        add_legend(figure, legend)
        return as_svg(figure, name, alt)


def running_mean(values: Sequence[float]) -> np.ndarray:
    """Mean over a window of a tenth of the steps, centred, shorter at the ends."""
    half = len(values) // 20
    total = np.concatenate([[0.0], np.cumsum(values)])
    at = np.arange(len(values))
    left, right = np.maximum(at - half, 0), np.minimum(at + half + 1, len(values))
    return (total[right] - total[left]) / (right - left)


def visible(text: str) -> str:
    """A text with control and direction marks spelled out: none of them may reorder or hide what is read."""
    return "".join(
        f"[U+{ord(char):04X}]" if unicodedata.category(char) in ("Cc", "Cf") and char not in "\n\t" else char
        for char in text
    )


def short(text: str) -> str:
    name = visible(text)
    return name if len(name) <= _LONGEST else name[: _LONGEST - 1] + "\N{HORIZONTAL ELLIPSIS}"


def style() -> Any:
    import matplotlib

    return matplotlib.rc_context(
        {
            "svg.fonttype": "none",
            "text.parse_math": False,  # a system may be called "$\\frac"
            "font.family": "sans-serif",
            "font.sans-serif": ["DejaVu Sans"],  # ships with matplotlib: the same layout everywhere
            "font.size": 9,
            "axes.titlesize": 9.5,
            "axes.titleweight": "bold",
            "axes.titlepad": 8,
            "axes.titlecolor": INK,
            "axes.edgecolor": LINE,
            "axes.labelcolor": MUTED,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.spines.left": False,
            "grid.color": LINE,
            "grid.linewidth": 0.7,
            "axes.axisbelow": True,
            "xtick.color": LINE,
            "ytick.color": LINE,
            "xtick.labelcolor": MUTED,
            "ytick.labelcolor": MUTED,
            "ytick.major.size": 0,
            "lines.solid_capstyle": "round",
        }
    )


def blank(height: float) -> Figure:
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    return Figure(figsize=(_WIDTH, height), layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.06))


def as_svg(figure: Figure, name: str, alt: str) -> str:
    """The figure as an `<svg>` element that can stand in a page beside others."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    out = io.StringIO()
    # Laid out here once: `savefig` would draw the figure a second time for the layout alone.
    FigureCanvasSVG(figure)
    engine = figure.get_layout_engine()
    assert engine is not None
    engine.execute(figure)
    figure.set_layout_engine(None)
    # Ids are hashes salted with the figure's name: two figures of a page share none.
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    svg = out.getvalue()
    svg = svg[svg.index("<svg ") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<\w+) id="[^"]*_\d+"', r"\1", svg)
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", svg, count=1, flags=re.DOTALL)
    svg = re.sub(r"font-family: 'DejaVu Sans'[^;\"]*;? ?", "", svg)  # the page's font
    head = f'<svg role="img" aria-label="{escape(visible(alt))}" '
    # Its size is the page's to set; the view box keeps the shape.
    return head + re.sub(r'(width|height)="[\d.]+pt" ', "", svg.removeprefix("<svg "), count=2)
