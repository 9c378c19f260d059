"""The contents of a frontier plot: trials in printed units, and the frontier's line.

Nothing is drawn here, so that a page, a PNG and an SVG show the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from moist.errors import ConfigError
from moist.results.objectives import Objective
from moist.results.trials import Trial

Point = tuple[float, float]
Errors = Mapping[int, tuple[float, float]]
"""Mean and standard deviation of y, in stored units, by trial number."""

COST = Objective("mflops", "min")
"""The x-axis of a study that has only one objective."""

LOG_RATIO = 5
"""Values whose extremes differ by more than this factor get a logarithmic axis."""

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Distinct for colour-blind people, too (Okabe and Ito, Color Universal Design, 2008)."""
BLUE, RED, GREY, INK = *COLOURS[:2], "#6b6b6b", "#1a1a1a"
FEASIBLE, INFEASIBLE, MEMBERS, ERROR_BARS = (
    "trial", "beyond a limit", "frontier", "mean ± one standard deviation",
)  # fmt: skip
"""The legend."""


class Quantity(NamedTuple):
    """A printed quantity: its name with the unit, a remark, and printed units per stored unit."""

    name: str
    remark: str
    factor: float


PRINTED = {
    "accuracy": Quantity("accuracy on validation, %", "", 100),
    "mflops": Quantity("MFLOPs per image", "a multiply-add is one", 1),
    "mmacs": Quantity("MMACs per image", "convolutions and linear layers", 1),
    "params": Quantity("weights, millions", "", 1e-6),
    "bytes": Quantity("size of the weights, MB", "", 1e-6),
    "latency_ms": Quantity("latency, ms", "batch 1", 1),
}


class Mark(NamedTuple):
    """A trial and its place in the plot, in printed units."""

    trial: Trial
    x: float
    y: float


class ErrorBar(NamedTuple):
    """The mean and standard deviation of a reseeded member's `y`, in printed units."""

    x: float
    mean: float
    sd: float


class FrontierPlot(NamedTuple):
    """The contents of a frontier plot.

    `feasible` and `infeasible` are the trials beside the frontier's `members`: those within every
    limit, and those beyond one. `steps` are the corners of the frontier's line.
    """

    x: Objective
    y: Objective
    caption: str
    feasible: list[Mark]
    infeasible: list[Mark]
    members: list[Mark]
    steps: list[Point]
    error_bars: list[ErrorBar]

    @property
    def marks(self) -> list[Mark]:
        """Return all trials, by number."""
        marks = [*self.feasible, *self.infeasible, *self.members]
        return sorted(marks, key=lambda mark: mark.trial.number)

    @property
    def ticks(self) -> list[float]:
        """Return the ticks 1 2 5 10... of a logarithmic x-axis; empty if the axis is linear."""
        xs = [mark.x for mark in self.marks]
        if not needs_log_axis(xs):
            return []
        decades = range(math.floor(math.log10(min(xs))), math.ceil(math.log10(max(xs))))
        ticks = [part * 10.0**decade for decade in decades for part in (1, 2, 5)]
        return [tick for tick in ticks if min(xs) <= tick <= max(xs)]

    @property
    def label_side(self) -> tuple[str, str]:
        """Return the side of a member where no trial within every limit can be."""
        across = "left" if self.x.direction == "min" else "right"
        return "top" if self.y.direction == "max" else "bottom", across


def frontier_plot(
    trials: Sequence[Trial],
    frontier: Sequence[Trial],
    x: Objective,
    y: Objective,
    errors: Errors | None = None,
) -> FrontierPlot:
    """Select what to draw. Raises ConfigError when there is nothing."""
    numbers = {trial.number for trial in frontier}
    others = _marks((trial for trial in trials if trial.number not in numbers), x, y)
    members = sorted(_marks(frontier, x, y), key=lambda mark: (x.loss(mark.x), y.loss(mark.y)))
    drawn = others + members
    if not drawn:
        raise ConfigError(
            f"nothing to draw: none of {len(trials)} trials is complete and has both"
            f" `{x.name}` and `{y.name}`"
        )
    corner = max((m.x for m in drawn), key=x.loss), max((m.y for m in drawn), key=y.loss)
    return FrontierPlot(
        x, y, _caption(trials, drawn, members),
        feasible=[mark for mark in others if mark.trial.feasible],
        infeasible=[mark for mark in others if not mark.trial.feasible],
        members=members,
        steps=staircase([(mark.x, mark.y) for mark in members], x, y, corner),
        error_bars=_error_bars(members, y, errors or {}),
    )  # fmt: skip


def _marks(trials: Iterable[Trial], x: Objective, y: Objective) -> list[Mark]:
    return [
        Mark(trial, *(printed_value(axis.name, trial.quantities[axis.name]) for axis in (x, y)))
        for trial in trials
        if trial.state == "complete" and {x.name, y.name} <= trial.quantities.keys()
    ]


def _error_bars(members: Sequence[Mark], y: Objective, errors: Errors) -> list[ErrorBar]:
    return [
        ErrorBar(mark.x, *(printed_value(y.name, value) for value in errors[mark.trial.number]))
        for mark in members
        if mark.trial.number in errors
    ]


def _caption(trials: Sequence[Trial], drawn: Sequence[Mark], members: Sequence[Mark]) -> str:
    """Count the trials in the plot, and those that it leaves out."""
    complete = sum(trial.state == "complete" for trial in trials)
    counts = {
        "trials": len(trials),
        "complete": complete,
        "beyond a limit": sum(not mark.trial.feasible for mark in drawn),
        "on the frontier": len(members),
        "not drawn (not measured)": complete - len(drawn),
    }
    return "; ".join(f"{name}: {count}" for name, count in counts.items() if count)


def staircase(points: Iterable[Point], x: Objective, y: Objective, corner: Point) -> list[Point]:
    """Return the corners of the line that bounds what was reached: the best `y` up to each `x`.

    It goes from the best `x` to the worst, and at both ends on to the `corner`, the worst of
    both. A point that is no better in `y` than one with a better `x` is not on it.
    """
    steps: list[Point] = []
    for point in sorted(points, key=lambda point: (x.loss(point[0]), y.loss(point[1]))):
        reached = steps[-1][1] if steps else corner[1]
        if not steps or y.loss(point[1]) < y.loss(reached):
            steps += [(point[0], reached), point]
    return [*steps, (corner[0], steps[-1][1])] if steps else []


def printed_value(name: str, value: float) -> float:
    """Convert a quantity from stored to printed units."""
    return PRINTED[name].factor * value


def axis_label(objective: Objective) -> str:
    """Return an axis's label: the quantity, its unit, and which way is better."""
    quantity = PRINTED[objective.name]
    better = f"{'more' if objective.direction == 'max' else 'less'} is better"
    return f"{quantity.name} ({'; '.join(filter(None, (quantity.remark, better)))})"


def needs_log_axis(values: Sequence[float]) -> bool:
    """Return whether a logarithmic axis shows these values better."""
    return min(values) > 0 and max(values) > LOG_RATIO * min(values)


def columns(rows: Sequence[Sequence[float]], width: int) -> list[list[float]]:
    """Transpose rows of `width` numbers; without rows the columns are empty."""
    return [[row[column] for row in rows] for column in range(width)]
