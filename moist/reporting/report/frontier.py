"""The frontier: every trial by cost and accuracy, and the best model under a budget."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from moist.reporting.frontier_plot import (
    ERROR_BARS,
    FEASIBLE,
    INFEASIBLE,
    MEMBERS,
    PRINTED,
    FrontierPlot,
    Mark,
    axis_label,
)
from moist.reporting.report.axes import Scale, axes, scale_of
from moist.reporting.report.markup import (
    Markup,
    command,
    data,
    el,
    figure,
    join,
    line,
    path,
    section,
    table,
    text,
)
from moist.reporting.report.verdict import facts
from moist.reporting.study_tables import HEADS, format_of, format_params, format_quantity
from moist.results import queries
from moist.results.objectives import margin
from moist.results.trials import Trial
from moist.store.keys import SHORT
from moist.store.runs import Run

LEFT, RIGHT, TOP, BOTTOM = 38, 14, 42, 46
ROOM = 28
"""Pixels beside the first and the last mark, for a number."""


def frontier_section(
    plot: FrontierPlot, best: Trial | None, run: Run | None, limited: Callable[[str], str] | None
) -> Markup:
    """Draw the frontier, the slider of the budget, and what is known of the chosen trial.

    `best` is chosen at first, `run` its record. `limited` returns the command that queries the
    study with a limit; None if there is no study to query.
    """
    lines = baselines(plot, run)
    drawing = figure(
        lambda width: _drawn(plot, lines, width),
        f"{axis_label(plot.y)} over {axis_label(plot.x)}; {plot.caption}",
        role="group",
        data_x=len(plot.marks),
    )
    budget = _budget(plot, limited)
    return section(
        "Frontier",
        _legend(plot, lines),
        drawing,
        *([_slider(budget, best, plot)] if budget and best else []),
        _card(best),
        _members(plot),
        data("trials", {"trials": list(map(_entry, plot.marks)), "budget": budget}),
        note=f"{plot.caption[:1].upper()}{plot.caption[1:]}. A multiply-add is one FLOP.",
    )


def baselines(plot: FrontierPlot, run: Run | None) -> dict[str, tuple[str, float]]:
    """Return the label and the height of the lines: the run's teacher and its single student."""
    if run is None or plot.y.name != "accuracy":
        return {}
    beside = run.report.baselines
    rows = {"teacher": beside.teacher, "student": beside.student}
    names = {"teacher": f"teacher {run.config['teacher.arch']}", "student": "its single student"}
    return {
        name: (f"{names[name]}, {row.mflops:.3g} MFLOPs", 100 * row.val_accuracy)
        for name, row in rows.items()
        if row.val_accuracy is not None
    }


def _entry(mark: Mark) -> dict[str, object]:
    trial = mark.trial
    return {"number": trial.number, "facts": facts(trial), "command": trial.command or ""}


def _budget(plot: FrontierPlot, limited: Callable[[str], str] | None) -> dict[str, Any] | None:
    """Return what the slider needs: its range, and the feasible trials from the best to the worst.

    Each with its least cost: as in `best --max`, a latency within its spread of the budget keeps
    it. None if the quantity of the x-axis is not to be minimized, or no trial is feasible.
    """
    feasible = [mark for mark in plot.marks if mark.trial.feasible]
    if plot.x.direction != "min" or not feasible:
        return None
    costs = [mark.x for mark in feasible]
    least = {m.trial.number: m.x - margin(m.trial.quantities, plot.x.name) for m in feasible}
    ranked = queries.ranked([mark.trial for mark in feasible], plot.y)
    return {
        "low": min(costs),
        "high": max(costs),
        "log": bool(plot.ticks),
        "ranked": [[trial.number, least[trial.number]] for trial in ranked],
        "unit": PRINTED[plot.x.name].name,
        "factor": PRINTED[plot.x.name].factor,
        "command": limited(f"{plot.x.name}=BUDGET") if limited else "",
    }


def _legend(plot: FrontierPlot, lines: Mapping[str, object]) -> Markup:
    shown = {
        "member": (MEMBERS, plot.members),
        "trial": (FEASIBLE, plot.feasible),
        "beyond": (INFEASIBLE, plot.infeasible),
        "error": (ERROR_BARS, plot.error_bars),
    }
    keys = [(name, label) for name, (label, marks) in shown.items() if marks]
    keys += [("chosen", "best under the budget")] if plot.x.direction == "min" else []
    items = [
        el("li", el("svg", _symbol(name, 9, 7), viewBox="0 0 18 14", aria_hidden="true"), label)
        for name, label in keys
    ]
    return el("ul", *items, class_="legend")


def _symbol(name: str, x: float, y: float) -> Markup:
    if name == "member":
        return path([(x, y - 6), (x + 6, y), (x, y + 6), (x - 6, y), (x, y - 6)], "member")
    if name == "beyond":
        cross = ((x - 4, y - 4, x + 4, y + 4), (x - 4, y + 4, x + 4, y - 4))
        return join([line(*ends, class_="beyond") for ends in cross])
    if name == "error":
        return line(x, y - 6, x, y + 6, "error")
    return el("circle", cx=x, cy=y, r=6.0 if name == "chosen" else 4.0, class_=name)


def _drawn(
    plot: FrontierPlot, lines: Mapping[str, tuple[str, float]], width: int
) -> tuple[float, Markup]:
    height = 420.0 if width > 500 else 330.0
    heights = [mark.y for mark in plot.marks] + [at for _, at in lines.values()]
    heights += [bar.mean + side * bar.sd for bar in plot.error_bars for side in (-1, 1)]
    room = ROOM / (width - LEFT - RIGHT)
    costs = [mark.x for mark in plot.marks]
    x = scale_of(costs, LEFT, width - RIGHT, log=bool(plot.ticks), margin=room)
    y = scale_of(heights, height - BOTTOM, TOP, log=False)
    across = axis_label(plot.x) if width > 500 else PRINTED[plot.x.name].name
    parts = axes(x, y, across, axis_label(plot.y))
    if plot.steps:
        corners = [(x(at), y(value)) for at, value in plot.steps]
        parts.append(path(corners, "frontier"))
    parts.append(
        el("line", class_="budget", y1=TOP, y2=y.start, x1=-9, x2=-9, data_start=x(_low(plot)),
           data_end=x(_high(plot)))
    )  # fmt: skip
    parts += _baselines(lines, y, x)
    for bar in plot.error_bars:
        parts.append(line(x(bar.x), y(bar.mean - bar.sd), x(bar.x), y(bar.mean + bar.sd), "error"))
    members = {mark.trial.number for mark in plot.members}
    for mark in sorted(plot.marks, key=lambda mark: mark.trial.number in members):
        parts.append(_mark(mark, mark.trial.number in members, x(mark.x), y(mark.y)))
    return height, join([*parts, *_numbers(plot, x, y)])


def _low(plot: FrontierPlot) -> float:
    return min((mark.x for mark in plot.marks if mark.trial.feasible), default=plot.marks[0].x)


def _high(plot: FrontierPlot) -> float:
    return max((mark.x for mark in plot.marks if mark.trial.feasible), default=plot.marks[0].x)


def _baselines(lines: Mapping[str, tuple[str, float]], y: Scale, x: Scale) -> Iterable[Markup]:
    """Draw lines across; the label of the upper one is above it, at the left, the other below."""
    order = sorted(lines, key=lambda name: lines[name][1], reverse=True)
    for index, name in enumerate(order):
        label, value = lines[name]
        yield line(x.start, y(value), x.end, y(value), f"baseline {name}")
        below = index > 0
        at = (x.end, y(value) + 15) if below else (x.start + 4, y(value) - 5)
        yield text(*at, f"{label}: {value:.1f} %", f"on {'end' if below else ''} {name}")


def _mark(mark: Mark, member: bool, x: float, y: float) -> Markup:
    kind = "member" if member else "trial" if mark.trial.feasible else "beyond"
    values = ", ".join(f"{name} {value}" for name, value in facts(mark.trial))
    return el(
        "g",
        el("circle", cx=x, cy=y, r=10.0, class_="target"),
        _symbol(kind, x, y),
        class_="mark",
        role="button",
        tabindex=-1,
        data_trial=mark.trial.number,
        aria_label=f"trial {mark.trial.number}: {values}",
    )


def _numbers(plot: FrontierPlot, x: Scale, y: Scale) -> Iterable[Markup]:
    """Label members with their numbers, except where two labels would overlap."""
    vertical, across = plot.label_side
    placed: list[tuple[float, float]] = []
    for mark in plot.members:
        at = (
            x(mark.x) + (-8 if across == "left" else 8),
            y(mark.y) + (-7 if vertical == "top" else 16),
        )
        if all(abs(at[0] - x0) > 22 or abs(at[1] - y0) > 13 for x0, y0 in placed):
            placed.append(at)
            yield text(*at, str(mark.trial.number), f"on {'end' if across == 'left' else ''}")


def _slider(budget: Mapping[str, Any], best: Trial, plot: FrontierPlot) -> Markup:
    """Return the slider, from the least cost (0) to the most (1), at the cost of the best."""
    across = Scale(budget["low"], budget["high"], 0, 1, budget["log"])
    cost = next(mark.x for mark in plot.marks if mark.trial.number == best.number)
    value = across(cost) if across.high > across.low else 1
    label = el("label", "Budget: at most ", el("output", id="budget"), for_="slider")
    slider = el("input", type="range", id="slider", min=0, max=1, value=f"{value:.9f}", step="any")
    return el("div", label, slider, class_="slider")


def _card(trial: Trial | None) -> Markup:
    """Return what is known of the chosen trial; the script replaces it by that of another."""
    if trial is None:
        return Markup("")
    terms = [el("div", el("dt", name), el("dd", value)) for name, value in facts(trial)]
    return el(
        "div",
        el("h3", f"Trial {trial.number}"),
        el("dl", *terms),
        command(trial.command or ""),
        el("p", class_="query"),
        id="card",
        aria_live="polite",
    )


def _members(plot: FrontierPlot) -> Markup:
    """List the members, one a row: results, parameters, and the key of the run's record."""
    if not plot.members:
        return el("p", "no trial is within every limit")
    names = ["accuracy", "mflops", "latency_ms"]
    names += [one.name for one in (plot.y, plot.x) if one.name not in names]
    heads = ["trial", *(HEADS[name] for name in names), "test %"]
    return table(heads, [_row(mark.trial, names) for mark in plot.members])


def _row(trial: Trial, names: Sequence[str]) -> list[str]:
    found = [format_of(name, trial.quantities) for name in names]
    test = trial.reported.get("accuracy")
    shown = "-" if test is None else format_quantity("accuracy", test)
    run = f"   run {trial.key[:SHORT]}" if trial.key else ""
    return [str(trial.number), *found, shown, f"{format_params(trial.params)}{run}"]
