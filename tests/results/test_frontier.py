"""Queries by named objectives agree with their definitions; impossible ones are explained."""

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moist.errors import ConfigError
from moist.results import pareto, queries
from moist.results.objectives import SPREAD, Limit, Objective, parse_limits, parse_objectives
from moist.results.trials import State, Trial

laws = settings(deadline=None, max_examples=150)
ACCURACY_MFLOPS = parse_objectives(["accuracy", "mflops"])
accuracy, mflops, params = parse_objectives(["accuracy", "mflops", "params"])


def trial(
    number: int,
    accuracy: float,
    mflops: float,
    *,
    state: State = "complete",
    excess: float = 0.0,
    **more: float,
) -> Trial:
    quantities = {"accuracy": accuracy, "mflops": mflops, **more}
    return Trial(
        number=number,
        state=state,
        params={},
        values={"accuracy": accuracy},
        quantities=quantities if state == "complete" else {},
        constraints={"params": excess},
    )


def numbers(trials: list[Trial]) -> list[int]:
    return [one.number for one in trials]


SIX = [
    trial(0, 0.70, 4),
    trial(1, 0.90, 20),
    trial(2, 0.88, 8),
    trial(3, 0.80, 9),
    trial(4, 0.99, 1, state="failed"),
    trial(5, 0.95, 2, excess=7.0),
]


@st.composite
def studies(draw: st.DrawFn, least: int = 0) -> list[Trial]:
    """Up to ten trials of few values, some of them not feasible, in any order."""
    rows = draw(
        st.lists(
            st.tuples(
                st.integers(0, 4),
                st.integers(0, 4),
                st.integers(0, 3),
                st.sampled_from(["complete", "complete", "complete", "failed", "running"]),
                st.sampled_from([-1.0, 0.0, 0.0, 0.5]),
            ),
            max_size=10,
        )
    )
    some: list[Any] = [(2, 2, 2, "complete", 0.0)] * least
    trials = [
        trial(n, a / 4, m, params=p, state=state, excess=excess)
        for n, (a, m, p, state, excess) in enumerate(rows + some)
    ]
    return draw(st.permutations(trials))


OBJECTIVES = st.sampled_from(
    [
        ACCURACY_MFLOPS,
        parse_objectives(["params", "accuracy", "mflops"]),
        parse_objectives(["accuracy", "params:max"]),
        parse_objectives(["mflops"]),
    ]
)


def losses(one: Trial, objectives: tuple[Objective, ...]) -> tuple[float, ...]:
    return tuple(
        -one.quantities[o.name] if o.direction == "max" else one.quantities[o.name]
        for o in objectives
    )


def beats(a: Trial, b: Trial, objectives: tuple[Objective, ...]) -> bool:
    p, q = losses(a, objectives), losses(b, objectives)
    return p != q and all(x <= y for x, y in zip(p, q, strict=True))


# the frontier


@laws
@given(studies(), OBJECTIVES)
def test_the_frontier_has_each_undominated_value_once(
    trials: list[Trial], objectives: tuple[Objective, ...]
) -> None:
    pool = sorted((t for t in trials if t.feasible), key=lambda t: t.number)
    unbeaten = [t for t in pool if not any(beats(other, t, objectives) for other in pool)]
    first: dict[tuple[float, ...], int] = {}
    for one in unbeaten:
        first.setdefault(losses(one, objectives), one.number)
    found = queries.members(trials, objectives)
    assert sorted(numbers(found)) == sorted(first.values())
    cost = next((o for o in objectives if o.direction == "min"), objectives[0])
    costs = [losses(one, (cost,)) for one in found]
    assert costs == sorted(costs)


def test_the_frontier_is_sorted_by_cost_whatever_the_order_of_the_objectives() -> None:
    assert numbers(queries.members(SIX, ACCURACY_MFLOPS)) == [0, 2, 1]
    assert numbers(queries.members(SIX[::-1], ACCURACY_MFLOPS[::-1])) == [0, 2, 1]
    both_max = parse_objectives(["accuracy", "mflops:max"])
    assert numbers(queries.members(SIX, both_max)) == [1]


def test_without_a_cost_the_best_by_the_first_objective_leads() -> None:
    trials = [trial(0, 0.5, 1, params=9), trial(1, 0.9, 1, params=3), trial(2, 0.7, 1, params=5)]
    both_max = parse_objectives(["accuracy", "params:max"])
    assert numbers(queries.members(trials, both_max)) == [1, 2, 0]


def test_without_feasible_trials_the_frontier_is_empty() -> None:
    assert queries.members(SIX[4:], ACCURACY_MFLOPS) == []
    assert queries.hypervolume([], ACCURACY_MFLOPS, {"accuracy": 0, "mflops": 9}) == 0


def test_a_missing_quantity_is_reported_with_its_trial() -> None:
    trials = [trial(3, 0.5, 1, latency_ms=2.0), trial(7, 0.5, 1)]
    with pytest.raises(ConfigError) as error:
        queries.members(trials, parse_objectives(["accuracy", "latency_ms"]))
    assert str(error.value) == (
        "trial 7 has no `latency_ms`\nhint: use one of: `accuracy`, `mflops`"
    )
    assert numbers(queries.members(trials, ACCURACY_MFLOPS)) == [3]


def test_the_best_trial_query_needs_each_quantity_of_every_feasible_trial() -> None:
    with pytest.raises(ConfigError, match="trial 0 has no `params`"):
        queries.best(SIX, parse_limits(["mflops=2.5", "params=1"]), accuracy)
    with pytest.raises(ConfigError, match="trial 0 has no `params`"):
        queries.best(SIX, parse_limits(["mflops=2.5"]), params)


def test_a_trial_without_quantities_is_reported() -> None:
    with pytest.raises(ConfigError, match="hint: use one of: none"):
        queries.best([Trial(number=0, state="complete", params={})], (), accuracy)


def test_an_infeasible_trial_may_lack_a_quantity() -> None:
    latency = parse_objectives(["latency_ms"])
    trials = [trial(0, 0.5, 1, latency_ms=2.0), trial(1, 0.5, 1, excess=1.0)]
    assert numbers(queries.members(trials, latency)) == [0]


def test_an_unknown_quantity_is_rejected() -> None:
    with pytest.raises(ConfigError, match="unknown quantity `speed`"):
        queries.members(SIX, [Objective("speed", "max")])
    with pytest.raises(ConfigError, match="unknown quantity `speed`"):
        queries.best(SIX, [Limit("speed", "max", 1)], accuracy)


# the best within limits


@laws
@given(studies(least=1), st.integers(0, 5), st.integers(0, 4), st.sampled_from([accuracy, params]))
def test_the_best_keeps_the_limits_and_nothing_that_keeps_them_is_better(
    trials: list[Trial], most: int, least: int, by: Objective
) -> None:
    limits = parse_limits([f"mflops={most}"], [f"accuracy={least / 4}"])
    kept = [
        t
        for t in trials
        if t.feasible and t.quantities["mflops"] <= most and t.quantities["accuracy"] >= least / 4
    ]
    if not kept:
        with pytest.raises(ConfigError, match="no trial keeps `mflops <= "):
            queries.best(trials, limits, by)
        return
    found = queries.best(trials, limits, by)
    assert found in kept
    assert not any(
        by.loss(t.quantities[by.name]) < by.loss(found.quantities[by.name]) for t in kept
    )


def test_the_most_accurate_within_limits_is_found() -> None:
    assert queries.best(SIX, (), accuracy).number == 1
    assert queries.best(SIX, parse_limits(["mflops=20"]), accuracy).number == 1
    assert queries.best(SIX, parse_limits(["mflops=19.9"]), accuracy).number == 2
    assert queries.best(SIX, parse_limits([], ["accuracy=0.8"]), mflops).number == 2
    assert queries.best(SIX, (), Objective("mflops", "max")).number == 1


def test_ties_go_to_the_better_in_other_quantities_then_to_the_lower_number() -> None:
    dear, cheap = trial(0, 0.9, 9), trial(1, 0.9, 5)
    small, same = trial(2, 0.9, 5, params=10), trial(3, 0.9, 5, params=10)
    assert queries.best([dear, cheap], (), accuracy) == cheap
    assert queries.best([same, cheap, small], (), accuracy) == small
    assert queries.best([trial(4, 0.1, 5), cheap], (), mflops) == cheap


def timed(number: int, accuracy: float, latency: float, spread: float | None) -> Trial:
    known = {} if spread is None else {SPREAD: spread}
    return trial(number, accuracy, 1, latency_ms=latency, **known)


EQUAL = [timed(0, 0.8, 0.48, 0.2), timed(1, 0.9, 0.60, 0.2), timed(2, 0.7, 0.77, 0.1)]
"""Latencies of which the second ties with both others."""
latency = Objective("latency_ms", "min")


def test_latencies_within_their_spreads_are_ties_for_the_best_trial() -> None:
    exact = [timed(n, a, ms, None) for n, (a, ms) in enumerate([(0.8, 0.48), (0.9, 0.60)])]
    assert queries.best(exact, (), latency).number == 0
    assert queries.best(EQUAL, (), latency).number == 1
    assert numbers(queries.ranked(EQUAL, latency)) == [1, 0, 2]
    assert queries.best(exact, parse_limits(["latency_ms=0.5"]), accuracy).number == 0
    assert queries.best(EQUAL, parse_limits(["latency_ms=0.5"]), accuracy).number == 1
    assert queries.best(EQUAL, parse_limits(["latency_ms=0.47"]), accuracy).number == 0
    with pytest.raises(ConfigError) as error:
        queries.best(EQUAL[2:], parse_limits(["latency_ms=0.6"]), accuracy)
    assert "`latency_ms` 0.77 (off by 0.093)" in str(error.value)


def test_latencies_within_their_spreads_are_ties_on_the_frontier() -> None:
    objectives = parse_objectives(["accuracy", "latency_ms"])
    assert numbers(queries.members(EQUAL, objectives)) == [1]
    apart = [*EQUAL, timed(3, 0.2, 0.3, 0.1)]
    assert numbers(queries.members(apart, objectives)) == [3, 1]
    assert queries.knee(apart, objectives).number in {1, 3}
    unknown = [
        timed(n, t.quantities["accuracy"], t.quantities["latency_ms"], None)
        for n, t in enumerate(EQUAL)
    ]
    assert numbers(queries.members(unknown, objectives)) == [0, 1]
    found = queries.compare(EQUAL, [timed(0, 0.95, 0.55, 0.2)], objectives)
    assert found.a.joint == () and found.b.joint == (0,)
    assert (found.a.coverage, found.b.coverage) == (0, 1)


@laws
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 9), st.sampled_from([0, 0.1, 0.5]))))
def test_ranking_by_latency_lists_each_trial_once_and_never_one_before_a_faster(
    rows: list[tuple[int, int, float]],
) -> None:
    trials = [timed(n, a / 4, ms, spread) for n, (a, ms, spread) in enumerate(rows)]
    found = queries.ranked(trials, latency)
    assert sorted(numbers(found)) == numbers(trials)
    at = {
        one.number: (ms * (1 - s), ms * (1 + s))
        for one, (_, ms, s) in zip(trials, rows, strict=True)
    }
    for index, one in enumerate(found):
        assert not any(at[later.number][1] < at[one.number][0] for later in found[index + 1 :])


def test_the_nearest_miss_is_reported() -> None:
    limits = parse_limits(["mflops=5"], ["accuracy=0.85"])
    with pytest.raises(ConfigError) as error:
        queries.best(SIX, limits, accuracy)
    assert str(error.value) == (
        "no trial keeps `mflops <= 5` and `accuracy >= 0.85`; of 5 complete trials"
        " (1 beyond the study's own limits) the nearest is trial 0,"
        " with `accuracy` 0.7 (off by 0.15)"
        "\nhint: it passes with `--min accuracy=0.7`; or run more trials"
    )


def test_a_limit_that_is_just_kept_is_not_reported_as_missed() -> None:
    with pytest.raises(ConfigError) as error:
        queries.best(SIX[:4], parse_limits(["mflops=8"], ["accuracy=0.9"]), accuracy)
    assert "is trial 2, with `accuracy` 0.88 (off by 0.02)\n" in str(error.value)


def test_of_equally_near_misses_the_lowest_number_is_reported() -> None:
    for trials in ([trial(3, 0.5, 9), trial(1, 0.6, 9)], [trial(1, 0.6, 9), trial(3, 0.5, 9)]):
        with pytest.raises(ConfigError, match="nearest is trial 1,"):
            queries.best(trials, parse_limits(["mflops=5"]), accuracy)


def test_every_missed_limit_of_the_nearest_trial_is_reported() -> None:
    with pytest.raises(ConfigError) as error:
        queries.best(SIX[:4], parse_limits(["mflops=7"], ["accuracy=0.95"]), accuracy)
    assert str(error.value) == (
        "no trial keeps `mflops <= 7` and `accuracy >= 0.95`; of 4 complete trials the nearest"
        " is trial 2, with `mflops` 8 (off by 1) and `accuracy` 0.88 (off by 0.07)"
        "\nhint: it passes with `--max mflops=8 --min accuracy=0.88`; or run more trials"
    )


@laws
@given(
    st.lists(st.tuples(st.floats(0, 1), st.floats(1e-3, 1e9)), min_size=1, max_size=6),
    st.floats(1e-9, 1e-3, exclude_max=True),
)
def test_the_limits_in_the_hint_allow_the_trial_it_names(
    rows: list[tuple[float, float]], most: float
) -> None:
    trials = [trial(n, a, m) for n, (a, m) in enumerate(rows)]
    limits = parse_limits([f"mflops={most}"], ["accuracy=0.5"])
    with pytest.raises(ConfigError) as error:
        queries.best(trials, limits, accuracy)
    message = str(error.value)
    wider = {side: re.findall(rf"--{side} (\w+=[^ `]+)", message) for side in ("max", "min")}
    kept = parse_limits(wider["max"], wider["min"] or ["accuracy=0.5"])
    (number,) = re.findall(r"nearest is trial (\d+)", message)
    nearest = trials[int(number)]
    assert queries.best([nearest], kept, accuracy) == nearest


@pytest.mark.parametrize(
    ("trials", "found"),
    [
        ([], "0 complete trials"),
        (SIX[4:5], "0 complete, 1 failed trials"),
        (SIX[4:], "1 complete, 1 failed trials"),
    ],
)
def test_without_feasible_trials_there_is_no_best_and_the_states_are_reported(
    trials: list[Trial], found: str
) -> None:
    message = f"the study has no complete trial that keeps its limits; found {found}"
    for query in (
        lambda: queries.best(trials, (), accuracy),
        lambda: queries.knee(trials, ACCURACY_MFLOPS),
    ):
        with pytest.raises(ConfigError) as error:
            query()
        assert str(error.value) == f"{message}\nhint: run more trials"


# knee and hypervolume


def test_the_knee_is_the_member_with_the_largest_gain_for_its_cost() -> None:
    assert queries.knee(SIX, ACCURACY_MFLOPS).number == 2
    assert queries.knee(SIX[:2], ACCURACY_MFLOPS).number == 1
    assert queries.knee(SIX[:2], ACCURACY_MFLOPS[::-1]).number == 0


@laws
@given(studies(least=1), OBJECTIVES, st.randoms(use_true_random=False))
def test_the_knee_is_on_the_frontier_whatever_the_order(
    trials: list[Trial], objectives: tuple[Objective, ...], chance: Any
) -> None:
    found = queries.knee(trials, objectives)
    assert found in queries.members(trials, objectives)
    assert queries.knee(chance.sample(trials, len(trials)), objectives) == found


def test_hypervolume_is_in_the_objectives_own_units() -> None:
    reference = {"mflops": 24.0, "accuracy": 0.5}
    expected = 0.2 * (8 - 4) + 0.38 * (20 - 8) + 0.4 * (24 - 20)
    assert queries.hypervolume(SIX, ACCURACY_MFLOPS, reference) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ({"accuracy": 0.5}, "the reference has no `mflops`"),
        (
            {"accuracy": 0.5, "mflops": 9, "params": 1},
            "the reference names the unknown objective `params`",
        ),
        ({"accuracy": float("nan"), "mflops": 9}, "the reference has `accuracy=nan`"),
    ],
)
def test_a_reference_names_each_objective_and_no_other(
    reference: dict[str, float], message: str
) -> None:
    hint = "\nhint: give one number for each of: accuracy, mflops"
    with pytest.raises(ConfigError) as error:
        queries.hypervolume(SIX, ACCURACY_MFLOPS, reference)
    assert str(error.value) == message + hint
    with pytest.raises(ConfigError) as error:
        queries.compare(SIX, SIX, ACCURACY_MFLOPS, reference)
    assert str(error.value) == message + hint


def test_the_default_reference_is_the_worst_of_the_complete_trials() -> None:
    assert queries.default_reference(SIX, ACCURACY_MFLOPS) == {"accuracy": 0.70, "mflops": 20}
    worse = trial(6, 0.6, 50, excess=1.0)
    assert queries.default_reference([*SIX, worse], ACCURACY_MFLOPS) == {
        "accuracy": 0.6,
        "mflops": 50,
    }


def test_without_complete_trials_there_is_no_default_reference() -> None:
    with pytest.raises(ConfigError) as error:
        queries.default_reference(SIX[4:5], ACCURACY_MFLOPS)
    assert str(error.value) == (
        "there is no default reference without a complete trial; found 0 complete, 1 failed trials"
        "\nhint: give a reference, or run more trials"
    )


# comparing two studies


def test_two_studies_are_compared_under_one_reference() -> None:
    a = [trial(0, 0.7, 4), trial(1, 0.9, 20), trial(2, 0.5, 30)]
    b = [trial(0, 0.7, 4), trial(1, 0.8, 6), trial(2, 0.85, 25)]
    found = queries.compare(a, b, ACCURACY_MFLOPS)
    assert found.reference == {"accuracy": 0.5, "mflops": 30}
    assert found.a.hypervolume == pytest.approx(0.2 * 16 + 0.4 * 10)
    assert found.b.hypervolume == pytest.approx(0.2 * 2 + 0.3 * 19 + 0.35 * 5)
    assert (found.a.members, found.a.joint, found.a.coverage) == ((0, 1), (0, 1), 2 / 3)
    assert (found.b.members, found.b.joint, found.b.coverage) == ((0, 1, 2), (0, 1), 1 / 2)


def test_a_given_reference_is_used() -> None:
    reference = {"accuracy": 0.6, "mflops": 10.0}
    found = queries.compare(SIX, SIX[:1], ACCURACY_MFLOPS, reference)
    assert found.reference == reference
    assert found.a.hypervolume == queries.hypervolume(SIX, ACCURACY_MFLOPS, reference)
    assert found.b.hypervolume == pytest.approx(0.1 * 6)


@laws
@given(studies(least=1), studies(least=1), OBJECTIVES)
def test_a_comparison_is_symmetric_and_agrees_with_the_definitions(
    a: list[Trial], b: list[Trial], objectives: tuple[Objective, ...]
) -> None:
    found, mirrored = queries.compare(a, b, objectives), queries.compare(b, a, objectives)
    assert (found.a, found.b, found.reference) == (mirrored.b, mirrored.a, mirrored.reference)
    mine, theirs = queries.members(a, objectives), queries.members(b, objectives)
    assert found.a.members == tuple(numbers(mine))
    assert found.a.joint == tuple(
        one.number for one in mine if not any(beats(other, one, objectives) for other in theirs)
    )
    assert found.a.coverage == pareto.coverage(
        [losses(one, objectives) for one in mine], [losses(one, objectives) for one in theirs]
    )
    worst = queries.default_reference(a + b, objectives)
    assert found.reference == worst
    assert found.a.hypervolume == queries.hypervolume(a, objectives, worst)


def test_a_study_without_feasible_trials_can_not_be_compared() -> None:
    for a, b, whose in ((SIX[4:], SIX, "first"), (SIX, SIX[4:], "second")):
        with pytest.raises(ConfigError) as error:
            queries.compare(a, b, ACCURACY_MFLOPS)
        assert str(error.value) == (
            f"the {whose} study has no complete trial that keeps its limits;"
            " found 1 complete, 1 failed trials\nhint: run more trials"
        )


def test_a_comparison_survives_a_round_trip_through_json() -> None:
    found = queries.compare(SIX, SIX[:2], ACCURACY_MFLOPS)
    assert queries.Comparison.model_validate_json(found.model_dump_json()) == found
