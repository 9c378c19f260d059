"""A frontier plot drawn by matplotlib, as the bytes of a PNG or an SVG."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from typing import TYPE_CHECKING, Any

from moist.reporting.frontier_plot import (
    BLUE,
    ERROR_BARS,
    FEASIBLE,
    GREY,
    INFEASIBLE,
    INK,
    MEMBERS,
    RED,
    FrontierPlot,
    Mark,
    axis_label,
    columns,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INCHES, DPI = (9, 6), 200
"""The size of a PNG; at 900 pixels of width its text is as large as a page's."""
RC_PARAMS: dict[Any, object] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "moist",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": "#e3e3e3",
    **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
}
"""matplotlib's settings; an SVG's text stays text, and its ids are the same each time."""


def render(plot: FrontierPlot, title: str, command: str, kind: str) -> bytes:
    """Return the bytes of a "png" or an "svg": equal for equal plots."""
    with new_figure(INCHES) as figure:
        axes = figure.add_subplot()
        _draw(axes, plot)
        axes.set_title(title, loc="left", pad=24, parse_math=False, wrap=True)
        axes.annotate(
            plot.caption, (0, 1), (0, 8), xycoords="axes fraction", textcoords="offset points"
        )
        figure.legend(loc="outside lower center", ncols=4, frameon=False)
        return content(figure, title, command, kind)


def content(figure: Figure, title: str, command: str, kind: str) -> bytes:
    """Return the bytes of a figure as a "png" or an "svg", without a date."""
    found = BytesIO()
    metadata = {"Title": title, "Description": command}
    undated = {"Date": None} if kind == "svg" else {}
    figure.savefig(found, format=kind, dpi=DPI, metadata={**metadata, **undated})
    return found.getvalue()


@contextmanager
def new_figure(inches: tuple[float, float]) -> Iterator[Figure]:
    """Make a figure with matplotlib's own defaults, not the user's style file, silent on stderr.

    matplotlib logs that it builds its font cache, and warns of a letter that its font lacks: a PNG
    shows a box for that letter, while an SVG's reader has fonts of their own.
    """
    logger = logging.getLogger("matplotlib")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        import matplotlib
        from matplotlib.figure import Figure

        with matplotlib.rc_context(), warnings.catch_warnings():
            matplotlib.rcdefaults()
            matplotlib.rcParams.update(RC_PARAMS)
            warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
            yield Figure(figsize=inches, layout="constrained")
    finally:
        logger.setLevel(level)


def _draw(axes: Axes, plot: FrontierPlot) -> None:
    def dots(marks: Sequence[Mark], name: str, **style: Any) -> None:
        if marks:
            axes.scatter([m.x for m in marks], [m.y for m in marks], label=name, **style)

    dots(plot.feasible, FEASIBLE, s=36, color=BLUE, alpha=0.55, linewidths=0)
    dots(plot.infeasible, INFEASIBLE, s=36, color=GREY, marker="x")
    axes.plot(*columns(plot.steps, 2), color=RED)
    dots(plot.members, MEMBERS, s=60, color=RED, marker="D", zorder=3)
    if plot.error_bars:
        x, mean, sd = columns(plot.error_bars, 3)
        axes.errorbar(x, mean, sd, fmt="_", color=INK, capsize=3, label=ERROR_BARS, zorder=4)
    if ticks := plot.ticks:
        axes.set_xscale("log")
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set(xlabel=axis_label(plot.x), ylabel=axis_label(plot.y), xmargin=0.08)
    _number_members(axes, plot)


def _number_members(axes: Axes, plot: FrontierPlot) -> None:
    """Write the members' numbers beside them, each moved until it covers no other (in points)."""
    vertical, across = plot.label_side
    right, up = 1 if across == "right" else -1, 1 if vertical == "top" else -1
    placed: list[tuple[float, float]] = []
    width = 7.5 * max((len(str(mark.trial.number)) for mark in plot.members), default=0)
    for mark in plot.members:
        at = axes.transData.transform((mark.x, mark.y)) * 72 / axes.figure.dpi
        spot = at[0] + 6 * right, at[1] + 6 * up
        while any(abs(spot[0] - x) < width and abs(spot[1] - y) < 12 for x, y in placed):
            spot = spot[0], spot[1] + 12 * up
        placed.append(spot)
        axes.annotate(
            str(mark.trial.number), (mark.x, mark.y), spot - at, textcoords="offset points",
            ha="left" if right == 1 else "right", va="bottom" if up == 1 else "top", weight="bold",
            arrowprops={"arrowstyle": "-", "color": GREY, "linewidth": 0.7},
        )  # fmt: skip
