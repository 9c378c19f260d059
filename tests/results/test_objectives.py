"""Objectives and limits are parsed, and each quantity has its better direction."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moist.errors import ConfigError
from moist.results.objectives import (
    DEFAULT,
    QUANTITIES,
    SPREAD,
    Limit,
    Objective,
    losses,
    parse_limits,
    parse_objectives,
    parse_values,
    quantities,
    reported,
)
from moist.results.report import (
    Baselines,
    Cost,
    Deferral,
    Evaluation,
    Latencies,
    Machine,
    Measures,
    OperatingPoint,
    Report,
    Timing,
    timings_of,
)

names = st.sampled_from(sorted(QUANTITIES))
directions = st.sampled_from(["max", "min"])
objectives = st.builds(Objective, names, directions)
limits = st.builds(Limit, names, directions, st.floats(allow_nan=False, allow_infinity=False))
numbers = st.floats(-1e9, 1e9)


def measures(accuracy: float, val_accuracy: float | None = None) -> Measures:
    return Measures(
        accuracy=accuracy, val_accuracy=val_accuracy, loss=0.1, ece=0.2,
        per_class_accuracy={"cat": 0.5}, mflops=2.5, mmacs=2.25, params=7, bytes=28,
        latency_ms={"batch_1": 0.1, "batch_256": 9}, latency_p95_ms={"batch_1": 0.3},
        latency_n={"batch_1": 9},
    )  # fmt: skip


def report(val_accuracy: float | None) -> Report:
    return Report(
        **measures(0.25, val_accuracy).model_dump(), upper_bound=False, routing_accuracy=0.5,
        per_cluster_accuracy=(0.1, 0.2), per_cluster_routing_accuracy=(0.3, 0.4), k=2,
        clusters=(("cat",), ("dog",)), sent={"cat": (1, 2)}, silhouette={"2": 0.4}, n_test=3,
        n_val=0, key="ab", seconds=1.5, stage_seconds={"train_teacher": 1.25},
        baselines=Baselines(teacher=measures(0.75), student=measures(0.375), oracle=measures(1)),
        machine=Machine(device="cpu", threads=1, torch="2", system="x"),
    )  # fmt: skip


# objectives


@pytest.mark.parametrize("name", QUANTITIES)
def test_a_quantity_without_a_direction_is_optimized_in_the_better_one(name):
    assert parse_objectives([name]) == (Objective(name, QUANTITIES[name].better),)


def test_more_accuracy_is_better_and_less_of_everything_that_costs():
    assert {name for name in QUANTITIES if QUANTITIES[name].better == "max"} == {"accuracy"}


@given(objectives)
def test_an_objective_is_read_as_it_is_shown(objective):
    assert parse_objectives([str(objective)]) == (objective,)


def test_objectives_keep_their_order_and_have_a_default():
    texts = ["mflops", "accuracy:max", "latency_ms:min"]
    assert [str(one) for one in parse_objectives(texts)] == ["mflops:min", *texts[1:]]
    assert parse_objectives([]) == DEFAULT
    assert [str(one) for one in DEFAULT] == ["accuracy:max", "mflops:min"]


@pytest.mark.parametrize(
    ("texts", "message", "hint"),
    [
        (["acuracy"], "unknown quantity `acuracy`", "accuracy"),
        (["accuracy", "flops:min"], "unknown quantity `flops`", "mflops"),
        ([""], "unknown quantity ``", "params"),
        (["accuracy:maximize"], "`accuracy:maximize`: expected", "for example: accuracy:max"),
        (["bytes:less"], "found `less`", "for example: bytes:min"),
        (["mflops", "accuracy", "mflops:max"], "`mflops` is given twice", ""),
    ],
)
def test_an_invalid_objective_is_reported_with_the_valid_ones(texts, message, hint):
    with pytest.raises(ConfigError, match=message) as refused:
        parse_objectives(texts)
    assert hint in refused.value.hint


@given(objectives, numbers, numbers)
def test_the_better_value_has_the_smaller_loss(objective, one, other):
    better = one > other if objective.direction == "max" else one < other
    assert (objective.loss(one) < objective.loss(other)) == better


@given(st.lists(objectives, unique_by=lambda one: one.name), st.lists(numbers, min_size=6))
def test_losses_are_a_value_an_objective_in_their_order(some, drawn):
    values = dict(zip(QUANTITIES, drawn, strict=False))
    found = losses(values, some)
    assert [abs(loss) for loss in found] == [abs(values[one.name]) for one in some]
    assert found == [one.loss(values[one.name]) for one in some]


# limits


def test_limits_are_read_from_both_options():
    found = parse_limits(["mflops=10", "params=1e6"], ["accuracy=0.5"])
    assert found == (
        Limit("mflops", "max", 10),
        Limit("params", "max", 1e6),
        Limit("accuracy", "min", 0.5),
    )
    assert [str(one) for one in found] == ["mflops <= 10", "params <= 1000000", "accuracy >= 0.5"]


@pytest.mark.parametrize("text", ["mflops", "mflops=", "mflops=ten", "mflops=nan", "mflops=inf"])
def test_a_limit_needs_a_number(text):
    with pytest.raises(ConfigError, match=f"`--max {text}`") as refused:
        parse_limits([text])
    assert refused.value.hint == "for example: --max mflops=10"
    with pytest.raises(ConfigError, match=f"`--min {text}`"):
        parse_limits([], [text])


def test_a_limit_on_an_unknown_quantity_is_rejected():
    with pytest.raises(ConfigError, match="`flops`") as refused:
        parse_limits(["flops=3"])
    assert refused.value.hint == "did you mean `mflops`?"
    with pytest.raises(ConfigError, match="`speed`") as refused:
        parse_limits(["speed=3"])
    assert refused.value.hint == f"there are: {', '.join(QUANTITIES)}"


@given(limits, numbers)
def test_the_excess_over_a_limit_is_the_distance_beyond_it(limit, value):
    kept = value <= limit.value if limit.side == "max" else value >= limit.value
    excess = limit.excess({limit.name: value})
    assert (excess <= 0) == kept
    assert abs(excess) == abs(value - limit.value)


@given(directions, st.integers(1, 100), st.integers(1, 100), st.integers(0, 4))
def test_a_latency_keeps_a_limit_within_its_spread(side, bound, value, quarters):
    values = {"latency_ms": value, SPREAD: quarters / 4, "mflops": value}
    near = value * min(quarters, 2) / 4
    kept = value - near <= bound if side == "max" else value + near >= bound
    assert (Limit("latency_ms", side, bound).excess(values) <= 0) == kept
    exact = Limit("mflops", side, bound).excess(values)
    assert exact == Limit("latency_ms", side, bound).excess({"latency_ms": value})


@given(names, directions, st.integers(-(10**14), 10**14), st.integers(1, 10**9))
def test_limits_that_differ_look_different(name, side, number, more):
    """A study identifies them by their text."""
    assert str(Limit(name, side, number)) != str(Limit(name, side, number + more))
    assert str(Limit(name, side, number / 1000)) != str(Limit(name, side, (number + more) / 1000))


# reports


def test_a_report_has_every_quantity_under_the_name_that_queries_use():
    assert quantities(report(0.5)) == {
        "accuracy": 0.5, "mflops": 2.5, "mmacs": 2.25, "params": 7, "bytes": 28,
        "latency_ms": 0.1,
    }  # fmt: skip
    assert quantities(report(0.5)).keys() == QUANTITIES.keys()


def test_the_spread_of_a_latency_is_beside_the_quantities_if_it_is_known():
    spread = {"batch_1": 0.03, "batch_256": 0.5}
    found = quantities(report(0.5).model_copy(update={"latency_spread": spread}))
    assert found == quantities(report(0.5)) | {SPREAD: 0.03}


POINT = OperatingPoint(
    threshold=0.5, deferral_rate=0.75, val_deferral_rate=0.25, accuracy=0.25, val_accuracy=0.5,
    mflops=8, mmacs=7, val_mflops=6, val_mmacs=5,
)  # fmt: skip
DEFERRAL = Deferral(chosen=POINT, curve=(POINT,))


def test_a_model_that_defers_is_selected_by_its_cost_on_validation_images():
    found = quantities(report(0.5).model_copy(update={"deferral": DEFERRAL}))
    assert (found["mflops"], found["mmacs"]) == (6, 5)


def test_a_model_that_defers_takes_the_time_of_validation_images():
    evaluation = Evaluation(
        accuracy=0.25, val_accuracy=0.5, loss=0.1, ece=0.2, per_class={}, n=4, n_val=4,
        cost=Cost(flops=1, macs=1, params=1, bytes=4), deferral=DEFERRAL,
    )  # fmt: skip
    never, always = Timing(median=1, p95=2, n=10), Timing(median=5, p95=7, n=9)
    timed = {"model": {"batch_1": never}, "asked": {"batch_1": always}}
    latencies = Latencies(machine=report(0.5).machine, models=timed)
    assert timings_of("model", evaluation, latencies) == {
        "batch_1": Timing(median=1 + 0.25 * (5 - 1), p95=7, n=9)
    }
    assert timings_of("first", evaluation, latencies) == timed["model"]


def test_without_validation_images_there_is_no_accuracy_to_select_by():
    assert "accuracy" not in quantities(report(None))


def test_the_test_split_is_reported_and_never_used_for_selection():
    assert reported(report(0.5)) == {
        "accuracy": 0.25, "student": 0.375, "teacher": 0.75, "oracle": 1.0, "routing": 0.5,
    }  # fmt: skip
    assert reported(report(0.5)) == reported(report(0.9))


def test_the_accuracy_of_every_baseline_is_reported():
    one = report(0.5)
    beside = one.baselines.model_copy(update={"gathered": one.baselines.teacher})
    found = reported(one.model_copy(update={"baselines": beside}))
    assert found["gathered"] == 0.75 and "mixture" not in found


def test_a_value_that_is_not_a_number_is_reported_with_its_option():
    assert parse_values(["accuracy=0.5", "mflops=1e1"], "--best") == {
        "accuracy": 0.5,
        "mflops": 10,
    }
    with pytest.raises(ConfigError, match="`--reference mflops=much`") as refused:
        parse_values(["mflops=much"], "--reference")
    assert "--reference mflops=10" in refused.value.hint
