"""Time calls."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from moist.results.report import STEADY, Timing

BLOCKS = 10
"""Blocks of consecutive calls whose medians a spread compares; the least number of rounds."""


def time_interleaved(
    calls: Mapping[str, Callable[[], object]],
    synchronize: Callable[[], None],
    *,
    repeats: int,
    seconds: float,
    warm_up: int = 20,
) -> dict[str, Timing]:
    """Time each call in turn, round by round, so that a drifting machine slows all equally.

    After at most `warm_up` untimed rounds, `is_enough` decides when it ends. A call's time runs
    until the device has finished.
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
    while not is_enough([*taken.values()], clock() - begin, repeats=repeats, seconds=seconds):
        for name, call in calls.items():
            start = clock()
            call()
            synchronize()
            taken[name].append((clock() - start) * 1e3)
    return {name: summarize(times) for name, times in taken.items()}


def time_apart(
    calls: Mapping[str, Callable[[], object]],
    synchronize: Callable[[], None],
    *,
    repeats: int,
    seconds: float,
) -> dict[str, Timing]:
    """Time each call alone, one after the other, for `seconds` in all.

    For calls of different thread pools: threads that have finished wait in a loop for their next
    call, and for a while slow the call of another.
    """
    found: dict[str, Timing] = {}
    for name, call in calls.items():
        each = seconds / len(calls)
        found |= time_interleaved({name: call}, synchronize, repeats=repeats, seconds=each)
    return found


def is_enough(
    taken: Sequence[Sequence[float]], passed: float, *, repeats: int, seconds: float
) -> bool:
    """Return whether to stop timing, after `passed` seconds; `taken` has the times of each call.

    Once `seconds` are over, with 10 rounds at least. Before that when every spread is at most
    STEADY, but never in the first quarter of the seconds: a short time shows no drift. The
    spreads are computed every `repeats` rounds alone, since that takes time, too.
    """
    rounds = len(taken[0])
    if rounds < BLOCKS or passed > seconds:
        return rounds >= BLOCKS
    due = rounds % repeats == 0 and passed > seconds / 4
    return due and all(spread(times) <= STEADY for times in taken)


def spread(times: Sequence[float]) -> float:
    """Return how far the medians of nine of ten blocks are from that of all, as a share of it.

    The blocks are tenths of the calls in their order: a machine that drifts, or is busy for a
    while, has medians that differ. One may be spoiled. Of fewer than 10 calls each is a block.
    """
    middle = np.median(times)
    blocks = np.array_split(times, min(BLOCKS, len(times)))
    far = sorted(abs(np.median(block) - middle) for block in blocks)
    return float(far[math.ceil(0.9 * len(far)) - 1] / middle)


def summarize(times: Sequence[float]) -> Timing:
    """Return the median, the 95th percentile and the spread of n calls."""
    return Timing(
        median=float(np.median(times)),
        p95=float(np.percentile(times, 95)),
        n=len(times),
        spread=spread(times),
    )
