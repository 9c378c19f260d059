"""A study's figures in plotly, for its page and for W&B. plotly is imported when one is made.

plotly interprets a few tags in its texts, so every user-given name is escaped here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from moist.reporting.frontier_plot import (
    BLUE,
    ERROR_BARS,
    FEASIBLE,
    GREY,
    INFEASIBLE,
    INK,
    MEMBERS,
    PRINTED,
    RED,
    FrontierPlot,
    Mark,
    axis_label,
    columns,
    needs_log_axis,
    printed_value,
)
from moist.results.trials import Trial

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

MAX_TICKS = 8
"""An axis with at most this many values has a tick at each."""


def scatter(plot: FrontierPlot) -> Figure:
    """Draw every trial, and the frontier's members with their numbers and line."""
    from plotly.graph_objects import Figure

    traces = [
        _dots(plot.feasible, FEASIBLE, size=8, color=BLUE, opacity=0.55),
        _dots(plot.infeasible, INFEASIBLE, size=7, color=GREY, symbol="x-thin-open"),
        _line(plot),
        _members(plot),
        _error_bars(plot),
    ]
    ticks = plot.ticks
    scale = {"type": "log", "tickvals": ticks, "ticktext": [f"{tick:g}" for tick in ticks]}
    return Figure(
        [trace for trace in traces if trace["x"]],
        {
            "xaxis": {"title": {"text": axis_label(plot.x)}, **(scale if ticks else {})},
            "yaxis": {"title": {"text": axis_label(plot.y)}},
            "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom"},
            "margin": {"t": 30, "r": 20},
            "showlegend": True,
        },
    )


def _dots(marks: Sequence[Mark], name: str, **marker: object) -> dict[str, Any]:
    return {
        "name": name,
        "mode": "markers",
        "x": [mark.x for mark in marks],
        "y": [mark.y for mark in marks],
        "ids": [str(mark.trial.number) for mark in marks],
        "hovertext": [_hover(mark.trial) for mark in marks],
        "hoverinfo": "text",
        "marker": marker,
    }


def _members(plot: FrontierPlot) -> dict[str, Any]:
    return {
        **_dots(plot.members, MEMBERS, size=11, color=RED, symbol="diamond"),
        "mode": "markers+text",
        "text": [str(mark.trial.number) for mark in plot.members],
        "textposition": " ".join(plot.label_side),
    }


def _line(plot: FrontierPlot) -> dict[str, Any]:
    x, y = columns(plot.steps, 2)
    style = {"mode": "lines", "line": {"color": RED, "width": 2}, "hoverinfo": "skip"}
    return {"x": x, "y": y, "showlegend": False, **style}


def _error_bars(plot: FrontierPlot) -> dict[str, Any]:
    x, mean, sd = columns(plot.error_bars, 3)
    bars = {"type": "data", "array": sd, "color": INK, "thickness": 1.2}
    marker = {"symbol": "line-ew-open", "size": 9, "color": INK}
    return {
        "name": ERROR_BARS,
        "mode": "markers",
        "x": x,
        "y": mean,
        "error_y": bars,
        "marker": marker,
    }


def _hover(trial: Trial) -> str:
    """List everything known about a trial, one item a line."""
    lines = [f"trial {trial.number}"]
    lines += [f"{name}={value}" for name, value in trial.params.items()]
    lines += [
        f"{quantity.name}: {printed_value(name, trial.quantities[name]):.4g}"
        for name, quantity in PRINTED.items()
        if name in trial.quantities
    ]
    if "accuracy" in trial.reported:
        lines.append(f"accuracy on test, %: {100 * trial.reported['accuracy']:.4g}")
    return "<br>".join(map(escape, lines))


def parallel_coordinates(plot: FrontierPlot) -> Figure | None:
    """Draw one line per trial through its parameters to `y`, darker where better.

    Parameters that are the same in all trials are left out; None when that leaves nothing.
    """
    from plotly.graph_objects import Figure, Parcoords

    marks, y = plot.marks, plot.y
    names = dict.fromkeys(name for mark in marks for name in mark.trial.params)
    axes = {name: [mark.trial.params.get(name, "-") for mark in marks] for name in names}
    varied = [(name, cells) for name, cells in axes.items() if len(set(map(str, cells))) > 1]
    if not varied:
        return None
    values = [mark.y for mark in marks]
    lines = Parcoords(
        dimensions=[_dimension(*axis) for axis in [*varied, (y.name, values)]],
        line={
            "color": values,
            "colorscale": "Viridis",
            "reversescale": y.direction == "max",
            "showscale": True,
            "colorbar": {"title": {"text": axis_label(y), "side": "right"}, "thickness": 14},
        },
        labelangle=-20,
    )
    return Figure(lines, {"margin": {"l": 70, "r": 60, "t": 110, "b": 30}})


def _dimension(name: str, cells: Sequence[Any]) -> dict[str, Any]:
    """Return an axis of parallel coordinates: numeric if all cells are, else categorical."""
    if all(type(cell) in (int, float) for cell in cells):
        values, ticks, texts = _numbers(cells)
    else:
        texts = sorted(set(map(str, cells)))
        values, ticks = [texts.index(str(cell)) for cell in cells], list(range(len(texts)))
    ticktext = [escape(text) for text in texts]
    return {"label": escape(name), "values": values, "tickvals": ticks, "ticktext": ticktext}


def _numbers(cells: Sequence[float]) -> tuple[list[float], list[float], list[str]]:
    """Return positions, ticks and their texts.

    plotly has no logarithmic axis here, so positions are logarithms.
    """
    log = needs_log_axis(cells)
    values = [math.log10(cell) if log else float(cell) for cell in cells]
    low, high = min(values), max(values)
    ticks = sorted(set(values))
    if len(ticks) > MAX_TICKS:
        ticks = [low + (high - low) * part / 5 for part in range(6)]
    return values, ticks, [f"{math.pow(10, tick) if log else tick:.4g}" for tick in ticks]


def importance_bars(importances: Mapping[str, Mapping[str, float]]) -> Figure:
    """Draw how much each parameter matters: `importances[objective][parameter]`, a share."""
    from plotly.graph_objects import Bar, Figure

    most: dict[str, float] = {}
    for shares in importances.values():
        most |= {param: max(share, most.get(param, share)) for param, share in shares.items()}
    order = sorted(most, key=most.__getitem__)
    traces = [
        Bar(
            name=escape(objective), orientation="h", y=[escape(param) for param in order],
            x=[100 * shares.get(param, 0) for param in order],
        )
        for objective, shares in importances.items()
    ]  # fmt: skip
    layout = {
        "xaxis": {"title": {"text": "share of the importance, %"}},
        "yaxis": {"automargin": True},
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "traceorder": "normal"},
        "margin": {"t": 30, "r": 20},
        "showlegend": True,
    }
    return Figure(traces, layout)
