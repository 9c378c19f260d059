"""What the picture of a study shows: its trials in the units of print, and the frontier's line.

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

WIDE = 30
"""Values whose extremes differ by more than this factor are shown on a logarithmic axis."""

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Told apart by colour-blind people too (Okabe and Ito, Color Universal Design, 2008)."""
BLUE, RED, GREY, INK = *COLOURS[:2], "#6b6b6b", "#1a1a1a"
KEPT, BEYOND, MEMBERS, SPREAD = (
    "trial", "beyond a limit", "frontier", "mean ± one standard deviation",
)  # fmt: skip
"""The legend."""


class Shown(NamedTuple):
    """How a quantity is printed: what it is with its unit, a remark, units a stored one."""

    what: str
    remark: str
    factor: float


SHOWN = {
    "accuracy": Shown("accuracy on validation, %", "", 100),
    "mflops": Shown("MFLOPs an image", "a multiply-add is one", 1),
    "mmacs": Shown("MMACs an image", "convolutions and linear layers", 1),
    "params": Shown("weights, millions", "", 1e-6),
    "bytes": Shown("size of the weights, MB", "", 1e-6),
    "latency_ms": Shown("latency, ms", "batch 1", 1),
}


class Mark(NamedTuple):
    """A trial where it is drawn, in the units of print."""

    trial: Trial
    x: float
    y: float


class Spread(NamedTuple):
    """What repeats of a member gave: mean and standard deviation of `y`, in the units of print."""

    x: float
    mean: float
    sd: float


class Picture(NamedTuple):
    """All that is drawn. `kept` and `beyond` are the trials beside the frontier's `members`: those
    that keep every limit, and those that don't. `steps` are the corners of the frontier's line."""

    x: Objective
    y: Objective
    said: str
    kept: list[Mark]
    beyond: list[Mark]
    members: list[Mark]
    steps: list[Point]
    spreads: list[Spread]

    @property
    def marks(self) -> list[Mark]:
        """All trials, by number."""
        return sorted([*self.kept, *self.beyond, *self.members], key=lambda m: m.trial.number)

    @property
    def ticks(self) -> list[float]:
        """Those of a logarithmic x-axis, 1 2 5 10...; none if the axis is linear."""
        xs = [mark.x for mark in self.marks]
        if not wide(xs):
            return []
        decades = range(math.floor(math.log10(min(xs))), math.ceil(math.log10(max(xs))))
        ticks = [part * 10.0**decade for decade in decades for part in (1, 2, 5)]
        return [tick for tick in ticks if min(xs) <= tick <= max(xs)]

    @property
    def free(self) -> tuple[str, str]:
        """The side of a member where no trial that keeps every limit can be."""
        across = "left" if self.x.direction == "min" else "right"
        return "top" if self.y.direction == "max" else "bottom", across


def picture_of(
    trials: Sequence[Trial], frontier: Sequence[Trial], x: Objective, y: Objective, errors: Errors
) -> Picture:
    """What to draw. Raises ConfigError when there is nothing."""
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
    return Picture(
        x, y, _said(trials, drawn, members),
        kept=[mark for mark in others if mark.trial.feasible],
        beyond=[mark for mark in others if not mark.trial.feasible],
        members=members,
        steps=staircase([(mark.x, mark.y) for mark in members], x, y, corner),
        spreads=_spreads(members, y, errors),
    )  # fmt: skip


def _marks(trials: Iterable[Trial], x: Objective, y: Objective) -> list[Mark]:
    return [
        Mark(trial, *(printed(axis.name, trial.quantities[axis.name]) for axis in (x, y)))
        for trial in trials
        if trial.state == "complete" and {x.name, y.name} <= trial.quantities.keys()
    ]


def _spreads(members: Sequence[Mark], y: Objective, errors: Errors) -> list[Spread]:
    return [
        Spread(mark.x, *(printed(y.name, value) for value in errors[mark.trial.number]))
        for mark in members
        if mark.trial.number in errors
    ]


def _said(trials: Sequence[Trial], drawn: Sequence[Mark], members: Sequence[Mark]) -> str:
    """The numbers behind the picture, and what it leaves out."""
    complete = sum(trial.state == "complete" for trial in trials)
    counts = {
        "trials": len(trials),
        "complete": complete,
        "beyond a limit": sum(not mark.trial.feasible for mark in drawn),
        "on the frontier": len(members),
        "not drawn, as not measured": complete - len(drawn),
    }
    return "; ".join(f"{what}: {count}" for what, count in counts.items() if count)


def staircase(points: Iterable[Point], x: Objective, y: Objective, corner: Point) -> list[Point]:
    """The corners of the line that bounds what was reached: the best `y` at each `x` or better.

    It goes from the best `x` to the worst, and at both ends on to the `corner`, the worst of
    both. A point that is no better in `y` than one with a better `x` is not on it.
    """
    steps: list[Point] = []
    for point in sorted(points, key=lambda point: (x.loss(point[0]), y.loss(point[1]))):
        reached = steps[-1][1] if steps else corner[1]
        if not steps or y.loss(point[1]) < y.loss(reached):
            steps += [(point[0], reached), point]
    return [*steps, (corner[0], steps[-1][1])] if steps else []


def printed(name: str, value: float) -> float:
    """A quantity in the units of print."""
    return SHOWN[name].factor * value


def label(objective: Objective) -> str:
    """An axis's label: what is on it, its unit, and which way is better."""
    shown = SHOWN[objective.name]
    better = f"{'more' if objective.direction == 'max' else 'less'} is better"
    return f"{shown.what} ({'; '.join(filter(None, (shown.remark, better)))})"


def wide(values: Sequence[float]) -> bool:
    """Whether a logarithmic axis shows them better."""
    return min(values) > 0 and max(values) > WIDE * min(values)


def columns(rows: Sequence[Sequence[float]], width: int) -> list[list[float]]:
    """Rows of `width` numbers, turned; as many columns even when there are no rows."""
    return [[row[column] for row in rows] for column in range(width)]
