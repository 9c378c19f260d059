"""Dominance, fronts, hypervolume, knee and membership against their definitions."""

import itertools
import math
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna._hypervolume import compute_hypervolume

from moist.results import pareto

Point = tuple[float, ...]

laws = settings(deadline=None, max_examples=150)
steps = st.integers(0, 4)  # few values: many ties
reals = st.floats(0, 1, allow_subnormal=False)
dimensions = st.integers(1, 4)


def lists(
    coordinate: st.SearchStrategy[Any], least: int = 0, most: int = 9
) -> st.SearchStrategy[list[Point]]:
    """Points of one dimension, 1 to 4."""
    return dimensions.flatmap(
        lambda d: st.lists(st.tuples(*[coordinate] * d), min_size=least, max_size=most)
    )


def pairs(coordinate: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Two lists of points of the same dimension."""
    return dimensions.flatmap(
        lambda d: st.tuples(*[st.lists(st.tuples(*[coordinate] * d), min_size=1, max_size=8)] * 2)
    )


def below(a: Point, b: Point) -> bool:
    return all(x <= y for x, y in zip(a, b, strict=True)) and a != b


def sphere(seed: int, n: int, d: int) -> np.ndarray:
    """n points, none of which dominates another."""
    points_ND = np.random.default_rng(seed).random((n, d))
    return 1 - points_ND / np.linalg.norm(points_ND, axis=1, keepdims=True)


# dominance and front


@laws
@given(pairs(steps))
def test_a_point_dominates_what_it_is_nowhere_worse_than_and_not_equal_to(
    both: tuple[list[Point], list[Point]],
) -> None:
    for a, b in itertools.product(*both):
        assert pareto.dominates(a, b) == below(a, b)


@laws
@given(lists(st.one_of(steps, reals)))
def test_the_front_is_each_value_once_that_no_point_dominates(points: list[Point]) -> None:
    expected = {p for p in points if not any(below(q, p) for q in points)}
    found = pareto.front(points)
    assert [points[i] for i in found] == sorted(expected)
    assert all(points.index(points[i]) == i for i in found)


@laws
@given(pairs(steps), st.data())
def test_of_two_coordinates_one_is_better_by_more_than_both_margins_alone(
    both: tuple[list[Point], list[Point]], data: st.DataObject
) -> None:
    for a, b in itertools.product(*both):
        near, far = (data.draw(st.tuples(*[steps] * len(a))) for _ in range(2))
        gaps = [(y - f) - (x + n) for x, y, n, f in zip(a, b, near, far, strict=True)]
        worse = [(x - n) - (y + f) > 0 for x, y, n, f in zip(a, b, near, far, strict=True)]
        assert pareto.dominates(a, b, near, far) == (max(gaps) > 0 and not any(worse))


@laws
@given(lists(steps, least=1), st.data())
def test_with_margins_no_member_covers_another_and_every_other_point_is_covered_by_one(
    points: list[Point], data: st.DataObject
) -> None:
    measured = data.draw(st.integers(0, len(points[0]) - 1))
    halves = data.draw(st.lists(steps, min_size=len(points), max_size=len(points)))
    margins = [[h / 2 * (d == measured) for d in range(len(points[0]))] for h in halves]

    def covers(a: int, b: int) -> bool:
        pairs = zip(points[a], points[b], margins[a], margins[b], strict=True)
        return all(x - near <= y + far for x, y, near, far in pairs)

    found = pareto.front(points, margins)
    for i in range(len(points)):
        assert any(covers(j, i) for j in found if j != i) == (i not in found)
    assert [points[i] for i in found] == sorted(points[i] for i in found)
    if not any(halves):
        assert found == pareto.front(points)


def test_the_fastest_of_a_chain_of_ties_stays_on_the_front() -> None:
    chain = [(-0.9, 1.0), (-0.8, 0.92), (-0.7, 0.84)]  # the first two tie, and the last two
    assert pareto.front(chain) == [0, 1, 2]
    assert pareto.front(chain, [(0, 0.05)] * 3) == [0, 2]
    assert pareto.front(chain, [(0, 0.5)] * 3) == [0]


def test_a_front_of_thousands_is_whole() -> None:
    points_ND = sphere(0, 3000, 4)
    assert sorted(pareto.front(points_ND)) == list(range(3000))
    assert pareto.front([*points_ND, [-1.0] * 4]) == [3000]


def test_minus_zero_is_zero() -> None:
    assert pareto.front([(0.0, 1.0), (-0.0, 1.0)]) == [0]
    assert pareto.front([(-0.0, 2.0), (0.0, 1.0)]) == [1]


# hypervolume


@laws
@given(lists(steps), st.lists(st.integers(0, 5), min_size=4, max_size=4))
def test_hypervolume_counts_the_cells_that_some_point_dominates(
    points: list[Point], corner: list[int]
) -> None:
    corner = corner[: len(points[0])] if points else corner
    cells = itertools.product(*map(range, corner))
    inside = [p for p in points if all(x < r for x, r in zip(p, corner, strict=True))]
    expected = sum(any(p == cell or below(p, cell) for p in inside) for cell in cells)
    assert pareto.hypervolume(points, corner) == expected


@laws
@given(lists(reals, least=1, most=6))
def test_hypervolume_is_that_of_the_union_of_boxes(points: list[Point]) -> None:
    expected = sum(
        (-1) ** (size + 1) * float(np.prod(1.5 - np.max(some, axis=0)))
        for size in range(1, len(points) + 1)
        for some in itertools.combinations(points, size)
    )
    found = pareto.hypervolume(points, [1.5] * len(points[0]))
    assert found == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("d", [2, 3, 4])
@pytest.mark.parametrize("seed", range(5))
def test_hypervolume_agrees_with_optunas(d: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    cloud_ND = generator.normal(size=(60, d)) * 10.0 ** generator.integers(-3, 4, size=d)
    for points_ND in (cloud_ND, sphere(seed, 40, d)):
        corner_D = np.quantile(points_ND, 0.9, axis=0)
        inside_ND = points_ND[(points_ND < corner_D).all(1)]
        expected = compute_hypervolume(inside_ND, corner_D)
        assert pareto.hypervolume(points_ND, corner_D) == pytest.approx(expected, rel=1e-9)


def test_hypervolume_of_hundreds_in_three_dimensions_agrees_with_optunas() -> None:
    points_ND, corner_D = sphere(0, 300, 3), np.full(3, 1.25)
    expected = compute_hypervolume(points_ND, corner_D)
    assert pareto.hypervolume(points_ND, corner_D) == pytest.approx(expected, rel=1e-12)


@laws
@given(lists(reals, least=2), st.randoms(use_true_random=False))
def test_another_point_never_lowers_hypervolume_and_order_does_not_matter(
    points: list[Point], chance: Any
) -> None:
    corner = [0.8] * len(points[0])
    whole = pareto.hypervolume(points, corner)
    assert pareto.hypervolume(points[:-1], corner) <= whole + 1e-12
    assert pareto.hypervolume(chance.sample(points, len(points)), corner) == whole


def test_a_point_on_the_references_border_adds_nothing() -> None:
    assert pareto.hypervolume([(1, 1)], (3, 5)) == 8
    assert pareto.hypervolume([(1, 1), (0, 5), (3, 0), (-9, 6)], (3, 5)) == 8
    assert pareto.hypervolume([(3, 5)], (3, 5)) == 0
    assert pareto.hypervolume([], (3, 5)) == 0


# knee


@laws
@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 9)), min_size=1, max_size=12))
def test_no_member_is_deeper_below_the_line_between_the_extremes_than_the_knee(
    points: list[Point],
) -> None:
    members = [points[i] for i in pareto.front(points)]
    (x0, y0), (x1, y1) = members[0], members[-1]
    depths = [(x1 - x0) * (y0 - y) - (y0 - y1) * (x - x0) for x, y in members]
    assert points[pareto.knee(points)] == members[depths.index(max(depths))]


@laws
@given(
    lists(st.integers(0, 9), least=1),
    st.randoms(use_true_random=False),
    st.lists(st.integers(0, 20), min_size=4, max_size=4),
)
def test_the_knee_depends_on_neither_order_nor_units(
    points: list[Point], chance: Any, powers: list[int]
) -> None:
    knee = points[pareto.knee(points)]
    mixed = chance.sample(points, len(points))
    scale_D = 2.0 ** np.array(powers[: len(knee)])
    assert mixed[pareto.knee(mixed)] == knee
    assert points[pareto.knee(np.array(points) * scale_D + 7)] == knee
    assert points.index(knee) == pareto.knee(points)


@laws
@given(st.lists(st.tuples(steps, st.integers(0, 30)), min_size=1, max_size=12))
def test_naming_one_cost_twice_or_adding_a_constant_moves_no_knee(points: list[Point]) -> None:
    assert pareto.knee([(x, y, 3 * y + 1) for x, y in points]) == pareto.knee(points)
    assert pareto.knee([(x, 4.0, y) for x, y in points]) == pareto.knee(points)


def test_three_objectives_take_the_plane_through_their_extremes() -> None:
    extremes = [(0, 1, 0.2), (1, 0, 0.2), (1, 1, 0)]  # on x/2 + y/2 + 5z/2 = 1
    far, near = (0.3, 0.3, 0.15), (0.15, 0.15, 0.25)  # 0.325 and 0.225 below it
    assert pareto.knee([*extremes, (0.1, 0.1, 1), near, far]) == 5


def test_of_members_equally_good_in_an_objective_the_best_balanced_is_its_extreme() -> None:
    members = [(0, 3, 6), (1, 2, 4), (1, 6, 0), (2, 1, 6), (5, 1, 5), (6, 0, 0)]
    weights = np.array([1, 0.4, 0.8])  # the least with (0, 3, 6) and (6, 0, 0) on the plane
    assert [sum(np.array(members[i]) / 6 * weights) for i in (0, 5)] == pytest.approx([1, 1])
    assert pareto.knee(members) == 2 == np.argmin(np.array(members) @ weights)


def test_a_plane_that_does_not_face_the_ideal_point_is_replaced_by_the_sum() -> None:
    members = [(2, 0, 10), (4, 3, 3), (8, 2, 8), (9, 1, 3), (10, 10, 0), (0, 4, 3)]
    extremes = [members[i] for i in (5, 0, 4)]
    weights = np.linalg.solve(np.array(extremes) / 10, np.ones(3))
    assert weights.min() < 0
    assert np.argmin(np.array(members) @ weights) == 3
    assert pareto.knee(members) == 5 == np.argmin(np.sum(members, axis=1))


def test_a_front_of_one_or_two_has_a_knee() -> None:
    assert pareto.knee([(3, 1)]) == 0
    assert pareto.knee([(3, 1), (2, 0), (2, 0)]) == 1
    assert pareto.knee([(3, 1), (1, 3)]) == 1
    assert pareto.knee([(1, 9, 3), (2, 5, 5)]) == 0
    assert pareto.knee([(7,), (4,), (5,)]) == 1


def test_the_knee_of_a_straight_or_concave_front_is_its_first_member() -> None:
    assert pareto.knee([(0.7 * i, 0.7 * (5 - i)) for i in range(6)]) == 0  # whatever rounding says
    assert pareto.knee([(10, 0), (9, 9), (0, 10)]) == 2


def test_a_slightly_deeper_member_is_the_knee() -> None:
    assert pareto.knee([(0, 1000), (499, 500), (500, 498), (1000, 0)]) == 2


# coverage


@laws
@given(pairs(steps))
def test_coverage_is_the_share_that_is_equalled_or_dominated(
    both: tuple[list[Point], list[Point]],
) -> None:
    a, b = both
    share = sum(any(p == q or below(p, q) for p in a) for q in b) / len(b)
    assert pareto.coverage(a, b) == pytest.approx(share)
    assert pareto.coverage(b, b) == 1


def test_nothing_covers_nothing() -> None:
    assert pareto.coverage([], [(1, 2)]) == 0
    with pytest.raises(ValueError, match="`b` has no points"):
        pareto.coverage([(1, 2)], [])


# membership


def student(x: float, dof: int) -> float:
    """P(T < x) in closed form, for 1 and 2 degrees of freedom."""
    return {1: 0.5 + math.atan(x) / math.pi, 2: 0.5 + x / (2 * math.sqrt(2 + x * x))}[dof]


@laws
@given(lists(steps, least=1), st.integers(0, 9), st.sampled_from([1, 2.5, 40]))
def test_without_errors_membership_is_one_for_undominated_points(
    points: list[Point], seed: int, dof: float
) -> None:
    found = pareto.membership(points, np.zeros_like(points, float), dof, draws=3, seed=seed)
    assert found.tolist() == [not any(below(q, p) for q in points) for p in points]


@pytest.mark.parametrize("dof", [1, 2])
@pytest.mark.parametrize("gap", [-2.0, 0.0, 0.5, 3.0])
def test_membership_is_students_distribution(dof: int, gap: float) -> None:
    """A point at 0 and one at `gap` with error 0.5: the first is a member where it is the less."""
    known, noisy = pareto.membership([[0.0], [gap]], [[0.0], [0.5]], dof, draws=20_000)
    assert known == pytest.approx(student(gap / 0.5, dof), abs=0.015)
    assert known + noisy == pytest.approx(1)


def test_coordinates_err_independently_and_with_their_own_degrees_of_freedom() -> None:
    found = pareto.membership(
        [[0, 0], [0.5, -1]], [[0, 0], [1, 2]], [[0, 0], [1, 2]], draws=20_000
    )
    beaten = student(-0.5, 1) * student(0.5, 2)
    beats = student(0.5, 1) * student(-0.5, 2)
    assert found == pytest.approx([1 - beaten, 1 - beats], abs=0.015)


def test_membership_is_the_same_for_the_same_seed() -> None:
    points_ND = sphere(0, 12, 2)
    first, again, other = (
        pareto.membership(points_ND, np.full((12, 2), 0.2), 4, draws=200, seed=seed)
        for seed in (1, 1, 2)
    )
    assert first.tolist() == again.tolist() != other.tolist()


def test_many_draws_need_little_memory() -> None:
    points_ND = sphere(0, 60, 2)
    tracemalloc.start()
    pareto.membership(points_ND, np.full((60, 2), 0.1), 2, draws=20_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8e6  # all draws at once: 72 MB a comparison


def test_membership_of_no_points_is_empty() -> None:
    assert pareto.membership([], [], 2).tolist() == []


# invalid arguments

CALLS: dict[str, Callable[[Any], Any]] = {
    "a": lambda bad: pareto.dominates(bad[0], [1, 2]),
    "b": lambda bad: pareto.dominates([1, 2], bad[0]),
    "points": pareto.front,
    "points ": lambda bad: pareto.hypervolume(bad, [9, 9]),
    "points  ": pareto.knee,
    "reference": lambda bad: pareto.hypervolume([[1, 2]], bad[0]),
    "a ": lambda bad: pareto.coverage(bad, [[1, 2]]),
    "b ": lambda bad: pareto.coverage([[1, 2]], bad),
    "mean": lambda bad: pareto.membership(bad, [[0, 0]], 2),
    "error": lambda bad: pareto.membership([[0, 0]], bad, 2),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nan_and_infinity_are_rejected_by_name(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"^`{name.strip()}(\[0\])?\[1\]` is -?(nan|inf); exp"):
        CALLS[name]([[0.0, value]])


@pytest.mark.parametrize("name", CALLS)
def test_other_shapes_are_rejected(name: str) -> None:
    shaped: list[Any] = [[[0.0]]]  # one dimension too many; its first row as well
    with pytest.raises(ValueError, match=rf"^`{name.strip()}` has the shape \(1, 1"):
        CALLS[name](shaped)


def test_points_without_coordinates_are_rejected() -> None:
    with pytest.raises(ValueError, match="`points` has the shape"):
        pareto.front([[], []])


@pytest.mark.parametrize(
    "call",
    [
        lambda: pareto.dominates([1], [1, 2]),
        lambda: pareto.coverage([[1]], [[1, 2]]),
        lambda: pareto.hypervolume([[1]], [1, 2]),
    ],
)
def test_unequal_numbers_of_objectives_are_rejected(call: Callable[[], Any]) -> None:
    with pytest.raises(ValueError, match=r"^coordinates a point: `\w+` has 1 and `\w+` 2$"):
        call()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([[1, 2]], [[1]], 2), "`mean` has the shape (1, 2) and `error` (1, 1)"),
        (([[1]], [[-0.5]], 2), "`error` goes down to -0.5; expected at least 0"),
        (([[1]], [[1]], 0.5), "`dof` is 0.5; expected a finite number of at least 1"),
        (([[1]], [[1]], math.inf), "`dof` is inf; expected a finite number of at least 1"),
        (([[1]], [[1]], math.nan), "`dof` is nan; expected a finite number of at least 1"),
        (([[1]], [[1]], 2, 0), "`draws` is 0; expected at least 1"),
    ],
)
def test_membership_rejects_meaningless_arguments(
    arguments: tuple[Any, ...], message: str
) -> None:
    with pytest.raises(ValueError) as error:
        pareto.membership(*arguments)
    assert str(error.value) == message


def test_no_points_have_no_knee() -> None:
    with pytest.raises(ValueError, match="there are no points"):
        pareto.knee([])
