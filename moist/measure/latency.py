"""Time calls."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import numpy as np

from moist.results.report import Timing


def time_interleaved(
    calls: Mapping[str, Callable[[], object]],
    synchronize: Callable[[], None],
    *,
    repeats: int,
    seconds: float,
    warm_up: int = 20,
) -> dict[str, Timing]:
    """Time each call in turn, round by round, so that a drifting machine slows all equally.

    `repeats` rounds after `warm_up` untimed ones; past `seconds` it stops early, with at least
    10 rounds and 2 of warm-up. A call's time runs until the device has finished.
    """
    clock = time.perf_counter
    begin = clock()
    for done in range(warm_up):
        for call in calls.values():
            call()
        synchronize()
        if done >= 1 and clock() - begin > seconds / 4:
            break
    taken: dict[str, list[float]] = {name: [] for name in calls}
    begin = clock()
    for done in range(repeats):
        if done >= 10 and clock() - begin > seconds:
            break
        for name, call in calls.items():
            start = clock()
            call()
            synchronize()
            taken[name].append((clock() - start) * 1e3)
    return {name: summarize(times) for name, times in taken.items()}


def summarize(times: list[float]) -> Timing:
    """Return the median and the 95th percentile of n calls."""
    return Timing(
        median=float(np.median(times)), p95=float(np.percentile(times, 95)), n=len(times)
    )
