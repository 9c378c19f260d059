"""The one form of every benchmark's results: ratios to a baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

from moist.results.report import Machine
from moist.store.runs import commit


@dataclass(frozen=True)
class Row:
    """How many times as long as `baseline` what was `measured` takes.

    `ratio` is the median of `n` interleaved measurements, `low` and `high` are the extremes; `ms`
    and `baseline_ms` are the median times. `details` are other figures, units in their names.
    """

    bench: str
    measured: str
    baseline: str
    ratio: float
    low: float
    high: float
    n: int
    ms: float
    baseline_ms: float
    details: Mapping[str, float] = field(default_factory=dict)

    def record(self, machine: Machine) -> dict[str, Any]:
        """Return the row with the machine and the commit, as JSON or a line of CSV has it."""
        return {**asdict(self), "machine": machine.model_dump(mode="json"), "commit": commit()}


def row(
    bench: str,
    measured: str,
    baseline: str,
    ms: Sequence[float],
    baseline_ms: Sequence[float],
    **details: float,
) -> Row:
    """Make a row of the times of several measurements, each beside one of the baseline."""
    ratios = [a / b for a, b in zip(ms, baseline_ms, strict=True)]
    return Row(
        bench, measured, baseline,
        ratio=median(ratios), low=min(ratios), high=max(ratios), n=len(ratios),
        ms=median(ms), baseline_ms=median(baseline_ms), details=details,
    )  # fmt: skip
