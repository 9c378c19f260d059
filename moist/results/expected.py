"""Times that are expected: a middle and a range, and from how many records."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Expected:
    """Seconds that something will take, from so many records; the range holds four of five."""

    seconds: float
    low: float
    high: float
    records: int


class Expectable(Protocol):
    """A stage's call: its key, those of the outputs that it needs, and the time expected of it."""

    @property
    def key(self) -> str: ...
    @property
    def needs(self) -> tuple[str, ...]: ...
    @property
    def expected(self) -> Expected | None: ...


def total(calls: Sequence[Expectable], workers: int = 1) -> Expected | None:
    """Add up the times of calls, each after those that it needs; None if none is expected.

    Several workers share the time, but no chain of calls ends before the sum of its times. The
    ends of the ranges are added, too: what makes one stage slow, the machine's other work, makes
    all slow.
    """
    each = {call.key: (call.expected, call.needs) for call in calls if call.expected}
    if not each:
        return None

    def taken(pick: Callable[[Expected], float]) -> float:
        ends: dict[str, float] = {}
        for key, (one, needs) in each.items():
            ends[key] = pick(one) + max((ends.get(need, 0.0) for need in needs), default=0.0)
        return max(sum(pick(one) for one, _ in each.values()) / workers, *ends.values())

    return Expected(
        taken(lambda one: one.seconds), taken(lambda one: one.low), taken(lambda one: one.high),
        min(one.records for one, _ in each.values()),
    )  # fmt: skip
