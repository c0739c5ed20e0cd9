"""Plots that the suites' figures share, as inline SVG: intervals across categories, forests, distributions.

Series differ by colour and by marker, so that neither a colour-blind reader nor print loses anything.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from unirg.evaluation.report import plots
from unirg.evaluation.report.plots import INK, MUTED

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Number = Mapping[str, Any]
"""mean, low, high; of a distribution q1, median, q3 too."""


class Series(NamedTuple):
    """What is drawn in one colour with one marker."""

    key: str
    label: str
    colour: str
    marker: str


class Panel(NamedTuple):
    """One plot of a figure."""

    key: str
    title: str
    subtitle: str
    """Whose numbers are in it; in small type."""


Find = Callable[[str, str, str], Number | None]
"""(panel, category, series) -> its numbers."""
Category = tuple[str, str]
"""Key and label."""


def across(
    name: str,
    alt: str,
    panels: Sequence[Panel],
    categories: Sequence[Category],
    series: Sequence[Series],
    find: Find,
) -> str:
    """Means with intervals, upright, side by side in each category: one panel a metric."""
    columns = min(len(panels), 3)
    rows = -(-len(panels) // columns)
    step = 0.7 / max(len(series), 1)
    with plots.style():
        figure = plots.blank(2.5 * rows + 0.4)
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        for axis, panel in zip(axes, panels, strict=False):
            plots.add_title(axis, panel.title, panel.subtitle, room=any(each.subtitle for each in panels))
            for at, own in enumerate(series):
                shift = (at - (len(series) - 1) / 2) * step
                _upright(axis, shift, [find(panel.key, category, own.key) for category, _ in categories], own)
            axis.set_xlim(-0.5, len(categories) - 0.5)
            labels = ["\n".join(textwrap.wrap(plots.visible(label), 11)) for _, label in categories]
            axis.set_xticks(range(len(categories)), labels, fontsize=7.5)
            axis.tick_params(axis="x", labelcolor=INK)
            axis.grid(axis="y")
        for axis in axes[len(panels) :]:
            axis.set_visible(False)
        plots.add_legend(figure, [(own.marker, own.label, own.colour, own.colour) for own in series])
        return plots.as_svg(figure, name, alt)


def _upright(axis: Axes, shift: float, found: Sequence[Number | None], own: Series) -> None:
    """Means with their intervals standing, one a category."""
    means, lines = plots.rows_of(found)
    if lines:
        ends = [found[at] or {} for at in lines]
        bars = ([at + shift for at in lines], [each["low"] for each in ends], [each["high"] for each in ends])
        axis.vlines(*bars, colors=own.colour, linewidths=1.6, zorder=2)
    if means:
        dots = [at + shift for at in means], [(found[at] or {})["mean"] for at in means]
        axis.scatter(*dots, s=25, marker=own.marker, color=own.colour, zorder=3)


def forest(
    name: str,
    alt: str,
    panels: Sequence[Panel],
    rows: Sequence[Category],
    series: Sequence[Series],
    find: Find,
    zero: bool = False,
) -> str:
    """Means with intervals, one row a category and in it a line a series; `zero` draws the line at 0."""
    step = 0.76 / max(len(series), 1)
    height = max(0.3, 0.17 * len(series)) * len(rows) + 1.1
    with plots.style():
        figure = plots.blank(height)
        axes = figure.subplots(1, len(panels), sharey=True, squeeze=False).ravel()
        for axis, panel in zip(axes, panels, strict=True):
            plots.add_title(axis, panel.title, panel.subtitle, room=any(each.subtitle for each in panels))
            for at, own in enumerate(series):
                shift = (at - (len(series) - 1) / 2) * step
                found = [find(panel.key, category, own.key) for category, _ in rows]
                plots.level(axis, shift, found, [own.colour] * len(rows), own.marker, size=4.5)
            if zero:
                axis.axvline(0, color=MUTED, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
            _rows(axis, [label for _, label in rows])
        plots.add_legend(figure, [(own.marker, own.label, own.colour, own.colour) for own in series])
        return plots.as_svg(figure, name, alt)


def boxes(
    name: str,
    alt: str,
    panels: Sequence[Panel],
    rows: Sequence[Category],
    series: Sequence[Series],
    find: Find,
    overall: Callable[[str, str], float | None],
) -> str:
    """Distributions: the middle half as a bar, the median as a tick, the mean with its interval as a marker.

    Args:
        overall: (panel, series) -> mean over everyone, the dashed line.
    """
    step = 0.8 / max(len(series), 1)
    height = max(0.34, 0.24 * len(series)) * len(rows) + 1.1
    with plots.style():
        figure = plots.blank(height)
        axes = figure.subplots(1, len(panels), sharey=True, squeeze=False).ravel()
        for axis, panel in zip(axes, panels, strict=True):
            plots.add_title(axis, panel.title, panel.subtitle, room=any(each.subtitle for each in panels))
            for at, own in enumerate(series):
                shift = (at - (len(series) - 1) / 2) * step
                whole = overall(panel.key, own.key)
                if whole is not None:
                    axis.axvline(whole, color=own.colour, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
                _boxes(axis, shift, [find(panel.key, category, own.key) for category, _ in rows], own, step)
            _rows(axis, [label for _, label in rows])
        plots.add_legend(figure, [(own.marker, own.label, own.colour, own.colour) for own in series])
        return plots.as_svg(figure, name, alt)


def _boxes(axis: Axes, shift: float, found: Sequence[Number | None], own: Series, step: float) -> None:
    kept, _ = plots.rows_of(found)
    known = [found[row] or {} for row in kept]
    places = [row + shift for row in kept]
    if kept:
        widths = [each["q3"] - each["q1"] for each in known]
        left = [each["q1"] for each in known]
        axis.barh(places, widths, step * 0.72, left, color=own.colour, alpha=0.22, linewidth=0, zorder=1)
        tick = step * 0.36
        ends = [place - tick for place in places], [place + tick for place in places]
        axis.vlines([each["median"] for each in known], *ends, colors=own.colour, linewidths=1.2, zorder=2)
    plots.level(axis, shift, found, [own.colour] * len(found), own.marker, size=4.5)


def _rows(axis: Axes, labels: Sequence[str]) -> None:
    axis.set_yticks(range(len(labels)), [plots.short(label) for label in labels])
    axis.set_ylim(len(labels) - 0.4, -0.6)
    axis.tick_params(axis="y", labelcolor=INK)
    axis.grid(axis="x")
