"""Rules for trials that are not worth training, against their definitions."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moist.config.systems import CURVES
from moist.results.objectives import (
    DEFAULT,
    SPREAD,
    Limit,
    Objective,
    parse_limits,
    parse_objectives,
)
from moist.results.trials import State, Trial
from moist.study.screening import ENOUGH, Gains, Screening, dominator, excesses
from moist.study.settings import BEST, Settings

laws = settings(deadline=None, max_examples=150)
NAMES = ("accuracy", "mflops", "params")
few = st.integers(0, 3).map(float)
points = st.fixed_dictionaries(dict.fromkeys(NAMES, few))
objectives = st.lists(
    st.builds(Objective, st.sampled_from(NAMES), st.sampled_from(["max", "min"])),
    min_size=1,
    unique_by=lambda one: one.name,
)


def trial(number: int, values: dict[str, float], state: State, excess: float) -> Trial:
    return Trial(
        number=number, state=state, params={}, values=values, constraints={"some": excess, "a": 0}
    )


finished = st.lists(
    st.tuples(
        points,
        st.sampled_from(["complete", "complete", "complete", "pruned", "failed"]),
        st.sampled_from([-1.0, 0.0, 0.0, 0.5]),
    ),
    max_size=6,
).map(lambda rows: [trial(n, *row) for n, row in enumerate(rows)])


# limits


def test_limits_apply_to_the_quantities_that_are_known():
    limits = parse_limits(["params=100", "mflops=10", "latency_ms=1"], ["mflops=2"])
    assert excesses({"mflops": 12.0, "params": 90.0, "accuracy": 1.0}, limits) == {
        "mflops <= 10": 2.0, "mflops >= 2": -10.0, "params <= 100": -10.0,
    }  # fmt: skip
    assert excesses({}, limits) == excesses({"mflops": 1.0}, ()) == {}


def test_latencies_within_their_spreads_are_ties_in_screening():
    both = parse_objectives(["accuracy", "latency_ms"])
    values = {"accuracy": 0.9, "latency_ms": 1.0}
    rival = trial(0, values, "complete", 0)
    rival = rival.model_copy(update={"quantities": {**values, SPREAD: 0.1}})
    bound = {"accuracy": 0.8, "latency_ms": 0.95}
    assert dominator(bound, both, [rival]) == rival
    assert dominator({**bound, "accuracy": 0.9}, both, [rival]) is None
    assert dominator({**bound, "latency_ms": 0.85, SPREAD: 0.05}, both, [rival]) is None
    assert dominator({**bound, "latency_ms": 0.85, SPREAD: 0.06}, both, [rival]) == rival
    limits = (Limit("latency_ms", "max", 0.9),)
    screening = Screening(both, Settings(trials=1, limits=limits))
    assert screening.reject({"latency_ms": 1.0, SPREAD: 0.2}) is None
    assert screening.reject({"latency_ms": 1.0, SPREAD: 0.05}) == "it can't keep latency_ms <= 0.9"


def test_a_limit_that_is_just_kept_is_kept():
    limits = (Limit("mflops", "max", 10), Limit("params", "min", 5))
    assert set(excesses({"mflops": 10.0, "params": 5.0}, limits).values()) == {0.0}
    screening = Screening(DEFAULT, Settings(trials=1, limits=limits))
    assert screening.reject({"mflops": 10.0, "params": 5.0}) is None
    assert screening.reject({"mflops": 10.5, "params": 5.0}) == "it can't keep mflops <= 10"


@given(st.permutations(parse_limits(["mflops=3", "params=5", "mmacs=2"], ["mflops=1"])))
def test_excesses_come_in_one_order(limits):
    found = {"mflops": 2.0, "params": 9.0, "mmacs": 1.0}
    assert list(excesses(found, limits)) == sorted(map(str, limits))


# dominance


def beats(one: dict[str, float], other: dict[str, float], axes: list[Objective]) -> bool:
    """The definition: nowhere worse, and somewhere better."""
    gaps = [
        (one[axis.name] - other[axis.name]) * (1 if axis.direction == "max" else -1)
        for axis in axes
    ]
    return min(gaps) >= 0 and max(gaps) > 0


@laws
@given(points, objectives, finished)
def test_a_bound_is_dominated_by_the_first_trial_that_beats_it_and_keeps_its_limits(
    bound, axes, trials
):
    expected = [
        one.number
        for one in trials
        if one.state == "complete"
        and max(one.constraints.values()) <= 0
        and beats(one.values, bound, axes)
    ]
    rival = dominator(bound, axes, trials)
    assert (rival.number if rival else None) == next(iter(expected), None)


@given(points, objectives)
def test_a_trial_equal_to_the_bound_does_not_dominate_it(bound, axes):
    assert dominator(bound, axes, [trial(0, bound, "complete", 0.0)]) is None


@laws
@given(points, objectives, finished, st.sampled_from(NAMES), few)
def test_a_more_optimistic_bound_is_never_dominated_by_more_trials(
    bound, axes, trials, name, more
):
    worse = any(axis.name == name and axis.direction == "min" for axis in axes)
    bolder = bound | {name: bound[name] - more if worse else bound[name] + more}
    assert not dominator(bolder, axes, trials) or dominator(bound, axes, trials)


# gains


def learned(gains: list[float], curve: int = 3, stage: str = "distill_student") -> Gains:
    """What is known after trials that gained so much from each epoch of that stage."""
    found = Gains()
    for gain in gains:
        found.learn({stage: [0.5] * curve}, 0.5 + gain)
    return found


@laws
@given(st.lists(st.integers(-40, 40), min_size=ENOUGH, max_size=130), st.floats(0, 1))
def test_the_bound_adds_the_gain_that_nineteen_of_twenty_trials_did_not_exceed(
    hundredths, accuracy
):
    bound = learned([one / 100 for one in hundredths]).upper_bound(
        "distill_student", 2, 3, accuracy
    )
    assert bound is not None
    enough = [
        gain
        for gain in hundredths
        if 20 * sum(one <= gain for one in hundredths) >= 19 * len(hundredths)
    ]
    assert bound == pytest.approx(accuracy + min(enough) / 100)


def test_of_twenty_gains_the_last_but_one_counts_and_of_nineteen_the_last():
    gains = [one / 100 for one in range(20)]
    assert learned(gains).upper_bound("distill_student", 1, 3, 0.0) == pytest.approx(0.18)
    assert learned(gains[:19]).upper_bound("distill_student", 1, 3, 0.0) == pytest.approx(0.18)
    assert learned(gains[:18]).upper_bound("distill_student", 1, 3, 0.0) == pytest.approx(0.17)


def test_below_eight_trials_there_is_no_bound():
    assert learned([0.1] * 7).upper_bound("distill_student", 1, 3, 0.5) is None
    assert learned([0.1] * 8).upper_bound("distill_student", 1, 3, 0.5) == pytest.approx(0.6)


@pytest.mark.parametrize(
    ("stage", "done", "total"),
    [("train_jointly", 1, 3), ("distill_student", 4, 4), ("distill_student", 1, 4)],
)
def test_gains_are_those_from_the_same_epoch_of_as_many_of_the_same_stage(stage, done, total):
    assert learned([0.1] * 9).upper_bound(stage, done, total, 0.5) is None


def test_each_epoch_has_gains_of_its_own():
    found = Gains()
    curves: dict[str, Any] = {CURVES[0]: [0.1, 0.4], CURVES[1]: (0.6,)}
    for _ in range(ENOUGH):
        found.learn(curves, 0.7)
    assert [found.upper_bound(CURVES[0], done, 2, 0.0) for done in (1, 2)] == pytest.approx(
        [0.6, 0.3]
    )
    assert found.upper_bound(CURVES[1], 1, 1, 0.65) == pytest.approx(0.75)


def test_only_accuracy_has_a_best_value_by_default():
    assert BEST == {"accuracy": 1.0}
    assert parse_objectives(BEST) == parse_objectives(["accuracy:max"])
