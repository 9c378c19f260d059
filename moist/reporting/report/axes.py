"""The axes of a drawing: from values to pixels, with ticks and labels."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from moist.reporting.frontier_plot import needs_log_axis
from moist.reporting.report.markup import Markup, line, text


@dataclass(frozen=True)
class Scale:
    """Maps values from `low` to `high` to pixels from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        at, low, high = map(self._at, (value, self.low, self.high))
        return self.start + (self.end - self.start) * (at - low) / (high - low)

    def _at(self, value: float) -> float:
        return math.log10(value) if self.log else value

    def ticks(self, about: int) -> list[float]:
        """Return round values within the axis: of a logarithmic one some of each decade."""
        if self.log:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)))
            parts = (1, 2, 5) if self.high > 30 * self.low else (1, 1.5, 2, 3, 4, 5, 7)
            found = [part * 10.0**decade for decade in decades for part in parts]
        else:
            step = _round_step((self.high - self.low) / about)
            first = math.ceil(self.low / step - 1e-9)
            found = [i * step for i in range(first, math.floor(self.high / step + 1e-9) + 1)]
        return [tick for tick in found if self.low <= tick * (1 + 1e-9) and tick <= self.high]


def _round_step(step: float) -> float:
    """Return the next 1, 2 or 5 of a decade."""
    decade = 10.0 ** math.floor(math.log10(step))
    return next(part * decade for part in (1, 2, 5, 10) if part * decade >= step * (1 - 1e-9))


def scale_of(
    values: Iterable[float],
    start: float,
    end: float,
    *,
    log: bool | None = None,
    margin: float = 0.04,
) -> Scale:
    """Return an axis with room around its values; logarithmic if they span far, unless given."""
    found = list(values)
    low, high = min(found), max(found)
    if needs_log_axis(found) if log is None else log:
        room = (high / low) ** margin
        return Scale(low / room, high * room, start, end, log=True)
    room = margin * (high - low) if high > low else abs(high) * 0.1 or 1.0
    return Scale(low - room, high + room, start, end)


def axes(x: Scale, y: Scale, across: str, upward: str, few: bool = False) -> list[Markup]:
    """Return the grid, the ticks and the labels of a drawing's two axes; `few` ticks or more."""
    parts = []
    for tick in y.ticks(4 if few else 5):
        parts.append(line(x.start, y(tick), x.end, y(tick)))
        parts.append(text(x.start - 6, y(tick) + 4, f"{tick:g}", "tick end"))
    right = -1e9
    for tick in x.ticks(6 if x.end > 500 else 3):
        if x(tick) - right > 34:
            parts.append(line(x(tick), y.start, x(tick), y.start + 4))
            parts.append(text(x(tick), y.start + 17, f"{tick:g}", "tick middle"))
            right = x(tick)
    parts.append(line(x.start, y.start, x.end, y.start, "axis"))
    parts.append(text(0, 12, upward, "label"))
    parts.append(text(x.end, y.start + 37, across, "label end"))
    return parts
