"""Dominance, fronts, hypervolume and knees, for points to be minimized in every coordinate.

N points, D objectives, S draws. NumPy only; negate what is to be maximized. All but `membership`
is exact up to rounding. Every function raises ValueError naming the coordinate for NaN and
infinity, since either would compare as neither better nor worse.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Indices = NDArray[np.intp]

TIE = 1e-9
"""Difference of depths below the plane (the ideal point's is 1) that may be due to rounding."""
PAIRS = 2**18
"""Comparisons in memory at once in `membership`, one byte each."""


def dominates(
    a_D: ArrayLike, b_D: ArrayLike, a_margin_D: ArrayLike = 0.0, b_margin_D: ArrayLike = 0.0
) -> bool:
    """Return whether a is nowhere worse than b, and better somewhere.

    Of two coordinates one is better if they differ by more than both margins; else they tie.
    """
    first_D, second_D = _finite(a_D, "a", 1), _finite(b_D, "b", 1)
    _same_objectives(first_D, second_D)
    lower_D = first_D + np.asarray(a_margin_D) < second_D - np.asarray(b_margin_D)
    higher_D = second_D + np.asarray(b_margin_D) < first_D - np.asarray(a_margin_D)
    return bool(lower_D.any() and not higher_D.any())


def front(points_ND: ArrayLike, margin_ND: ArrayLike | None = None) -> list[int]:
    """Return the indices of the points that no other dominates, sorted by their coordinates.

    Of equal points only the first is on the front. With margins (see `dominates`), of which at
    most one coordinate has any, ties count as equal: no member is better than or equal to another
    in every coordinate, and each other point has a member that is. That member need not be the
    one with the least coordinates, as b may tie with both a and c, where a is better than c.
    """
    checked_ND = _finite(points_ND, "points", 2)
    if not len(checked_ND):
        return []
    if margin_ND is None or not (margins_ND := _finite(margin_ND, "margin", 2)).any():
        return [int(index) for index in _minima(checked_ND)]
    low_ND, high_ND = checked_ND - margins_ND, checked_ND + margins_ND
    exact_first = np.argsort(margins_ND.any(0), kind="stable")
    order_N = np.lexsort(high_ND.T[exact_first][::-1])  # whoever dominates comes first
    found = []
    while len(order_N):
        found.append(int(order_N[0]))
        order_N = order_N[(high_ND[order_N] < low_ND[order_N[0]]).any(1)]
    return sorted(found, key=lambda index: tuple(checked_ND[index]))


def hypervolume(points_ND: ArrayLike, reference_D: ArrayLike) -> float:
    """Return the volume that the points dominate up to the reference (Zitzler & Thiele 1998).

    A point that is not better than the reference in every coordinate adds nothing.
    """
    checked_ND, corner_D = _finite(points_ND, "points", 2), _finite(reference_D, "reference", 1)
    if not len(checked_ND):
        return 0.0
    _same_objectives(checked_ND, corner_D, ("points", "reference"))
    inside_ND = checked_ND[(checked_ND < corner_D).all(1)]
    return _volume(inside_ND[_minima(inside_ND)], corner_D)


def knee(points_ND: ArrayLike) -> int:
    """Return the index of the knee: the member farthest below the plane through the extremes.

    As in Das 1999 (On characterizing the "knee" of the Pareto curve based on normal-boundary
    intersection), after scaling each coordinate to [0, 1] over the front. The extremes are the
    best members of each coordinate, the lowest sum of all first. With three objectives one
    member is often best in two; then of all the planes through the extremes (or the least-squares
    fit if there is none) the one with the least normal is used, which halves the weight of either.
    A plane that does not face the ideal point is replaced by the one where the scaled coordinates
    add up to 1; in two dimensions both are the line from end to end.

    A coordinate in which the front does not vary is ignored. A front of one is its own knee. Of
    equally deep members, as both of a front of two are, it is the first in the front's order.
    """
    checked_ND = _finite(points_ND, "points", 2)
    if not len(checked_ND):
        raise ValueError("there are no points, so there is no knee")
    front_N = _minima(checked_ND)
    depth_N = _depth(checked_ND[front_N])
    return int(front_N[np.argmax(depth_N >= depth_N.max() - TIE)])


def coverage(a_ND: ArrayLike, b_ND: ArrayLike) -> float:
    """Return the share of b's points that a point of a equals or dominates.

    This is C(a, b) of Zitzler & Thiele 1999; C(a, b) and C(b, a) need not add up to 1. Raises
    ValueError if b is empty.
    """
    first_ND, second_ND = _finite(a_ND, "a", 2), _finite(b_ND, "b", 2)
    if not len(second_ND):
        raise ValueError("`b` has no points, so no share of them is covered")
    if not len(first_ND):
        return 0.0
    _same_objectives(first_ND, second_ND)
    best_ND = first_ND[_minima(first_ND)]
    return float(np.mean([(best_ND <= point_D).all(1).any() for point_D in second_ND]))


def membership(
    mean_ND: ArrayLike, error_ND: ArrayLike, dof: ArrayLike, draws: int = 10_000, seed: int = 0
) -> Floats:
    """Estimate each point's probability to be on the front, given errors of the coordinates.

    Monte Carlo over true values `mean + error * t`, t drawn from Student's distribution with
    `dof` degrees of freedom (one number, or one a coordinate; at least 1), coordinates being
    independent. An error is a standard error, in its coordinate's unit; 0 means known exactly.
    Equal points are all on the front. The standard error of the result is at most
    0.5 / sqrt(draws); the same seed gives the same result.
    """
    means_ND, errors_ND = _finite(mean_ND, "mean", 2), _finite(error_ND, "error", 2)
    dofs_ND = _degrees(means_ND, errors_ND, dof)
    if draws < 1:
        raise ValueError(f"`draws` is {draws}; expected at least 1")
    generator = np.random.default_rng(seed)
    on_front_N = np.zeros(len(means_ND))
    if not len(means_ND):
        return on_front_N
    step = max(1, PAIRS // len(means_ND) ** 2)
    for done in range(0, draws, step):
        shape_SND = (min(step, draws - done), *means_ND.shape)
        values_SND = means_ND + errors_ND * generator.standard_t(dofs_ND, shape_SND)
        on_front_N += _undominated(values_SND).sum(0)
    return on_front_N / draws


def _finite(values: ArrayLike, name: str, dimensions: int) -> Floats:
    array = np.asarray(values, dtype=np.float64)
    if array.shape != (0,) and (array.ndim != dimensions or 0 in array.shape[1:]):
        expected = "points x objectives" if dimensions == 2 else "objectives"
        raise ValueError(f"`{name}` has the shape {array.shape}; expected {expected}")
    for place in np.argwhere(~np.isfinite(array)):
        index = "".join(f"[{i}]" for i in place)
        raise ValueError(f"`{name}{index}` is {array[tuple(place)]}; expected a finite number")
    return array


def _same_objectives(a: Floats, b: Floats, names: tuple[str, str] = ("a", "b")) -> None:
    if a.shape[-1] != b.shape[-1]:
        raise ValueError(
            f"coordinates a point: `{names[0]}` has {a.shape[-1]} and `{names[1]}` {b.shape[-1]}"
        )


def _minima(points_ND: Floats) -> Indices:
    """Return the front's indices: in lexical order only an earlier point can dominate a point."""
    order_N: Indices = np.lexsort(points_ND.T[::-1])
    if points_ND.shape[1] == 2:
        lowest_N = np.minimum.accumulate(points_ND[order_N, 1])
        lower_N = np.append(True, lowest_N[1:] < lowest_N[:-1])[: len(order_N)]
        return np.asarray(order_N[lower_N])
    found = []
    while len(order_N):
        found.append(order_N[0])
        order_N = order_N[(points_ND[order_N] < points_ND[order_N[0]]).any(1)]
    return np.array(found, dtype=np.intp)


def _volume(front_ND: Floats, reference_D: Floats) -> float:
    """Return the hypervolume by slicing objectives (HSO; While et al. 2006) of a sorted front.

    From one member to the next in the first coordinate, the slice's area is the hypervolume of
    the members so far in the other coordinates. Only positive terms: nothing cancels.
    """
    width_N = np.diff(front_ND[:, 0], append=reference_D[0])
    if len(reference_D) <= 2:
        return float(width_N @ (reference_D[1:] - front_ND[:, 1:]).prod(1))
    volume, slice_ND = 0.0, front_ND[:0, 1:]
    for width, point_D in zip(width_N, front_ND[:, 1:], strict=True):
        slice_ND = np.vstack([slice_ND, point_D])
        slice_ND = slice_ND[_minima(slice_ND)]
        volume += float(width) * _volume(slice_ND, reference_D[1:])
    return volume


def _depth(front_ND: Floats) -> Floats:
    """Return each member's depth below the plane, where the ideal point's is 1."""
    span_D = np.ptp(front_ND, axis=0)
    varies_D = span_D > 0
    scaled_ND = (front_ND - front_ND.min(0))[:, varies_D] / span_D[varies_D]
    extremes_D = [np.lexsort((scaled_ND.sum(1), axis_N))[0] for axis_N in scaled_ND.T]
    normal_D = np.linalg.lstsq(scaled_ND[extremes_D], np.ones(len(extremes_D)))[0]
    if (normal_D < TIE).any():
        normal_D = np.ones(len(extremes_D))
    return np.asarray(1 - scaled_ND @ normal_D)


def _degrees(mean_ND: Floats, error_ND: Floats, dof: ArrayLike) -> Floats:
    """Return degrees of freedom by coordinate, 1 for exact ones. Raises ValueError."""
    if mean_ND.shape != error_ND.shape:
        raise ValueError(f"`mean` has the shape {mean_ND.shape} and `error` {error_ND.shape}")
    if (error_ND < 0).any():
        raise ValueError(f"`error` goes down to {error_ND.min()}; expected at least 0")
    dof_ND = np.where(error_ND > 0, np.asarray(dof, dtype=np.float64), 1.0)
    if not (np.isfinite(dof_ND) & (dof_ND >= 1)).all():
        raise ValueError(f"`dof` is {dof!r}; expected a finite number of at least 1")
    return dof_ND


def _undominated(values_SND: Floats) -> NDArray[np.bool_]:
    """Return which points no other of the same draw dominates.

    A point is dominated by one that is at most equal to it in all coordinates, unless the reverse
    holds too.
    """
    draws, points, objectives = values_SND.shape
    below_SNN = np.ones((draws, points, points), dtype=np.bool_)
    for d in range(objectives):
        below_SNN &= values_SND[:, :, None, d] <= values_SND[:, None, :, d]
    return np.asarray(~(below_SNN & ~below_SNN.transpose(0, 2, 1)).any(1))
