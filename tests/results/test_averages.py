"""Averages of trials over parameters such as the seed."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moist.errors import ConfigError
from moist.results.aggregate import averaged, spread
from moist.results.trials import Trial

NUMBERS = st.floats(-1e3, 1e3)


def trial(number: int, accuracy: float, state: str = "complete", **params: object) -> Trial:
    done = state == "complete"
    return Trial.model_validate({
        "number": number, "state": state, "params": params, "key": f"key {number}",
        "quantities": {"accuracy": accuracy, "mflops": 2.0} if done else {},
        "reported": {"accuracy": accuracy / 2} if done else {},
    })  # fmt: skip


@given(st.lists(NUMBERS, min_size=1, max_size=9))
def test_a_spread_equals_numpys(values):
    found = spread(values)
    assert found.mean == pytest.approx(np.mean(values), abs=1e-9)
    expected = np.std(values, ddof=1) if len(values) > 1 else 0.0
    assert found.sd == pytest.approx(expected, abs=1e-9) and found.n == len(values)


@given(
    st.lists(st.tuples(st.integers(1, 3), st.sampled_from("ab"), NUMBERS), min_size=1),
    st.randoms(),
)
def test_every_run_is_in_the_average_of_its_setting_and_of_no_other(drawn, random):
    trials = [trial(i, x, k=k, router=r, seed=i) for i, (k, r, x) in enumerate(drawn)]
    shuffled = list(trials)
    random.shuffle(shuffled)
    rows = averaged(shuffled, ["accuracy", "test/accuracy"])
    assert rows == averaged(trials, ["accuracy", "test/accuracy"])
    assert sum(row.values["accuracy"].n for row in rows) == len(trials)
    for row in rows:
        own = [
            x
            for k, r, x in drawn
            if row.params.get("k", k) == k and row.params.get("router", r) == r
        ]
        assert row.values["accuracy"] == spread(own)
        assert row.values["test/accuracy"].mean == pytest.approx(np.mean(own) / 2, abs=1e-9)
        assert "seed" not in row.params
    varied = {name for name, at in (("k", 0), ("router", 1)) if len({d[at] for d in drawn}) > 1}
    assert all(row.params.keys() == varied for row in rows)


def test_any_parameter_can_be_averaged_over():
    trials = [trial(i, i, k=i % 2, temperature=i // 2, seed=0) for i in range(4)]
    (row,) = averaged(trials, ["accuracy"], ["k", "temperature"])
    assert row.params == {} and row.values["accuracy"] == spread([0, 1, 2, 3])
    rows = averaged(trials, ["accuracy"], ["k"])
    assert [(row.params, row.values["accuracy"].mean) for row in rows] == [
        ({"temperature": 0}, 0.5), ({"temperature": 1}, 2.5),
    ]  # fmt: skip


def test_a_setting_that_lacks_a_parameter_is_separate():
    trials = [trial(0, 1, method="topk", layout="block"), trial(1, 2, method="topk", layout="x"),
              trial(2, 3, method="svd")]  # fmt: skip
    assert [row.params for row in averaged(trials, ["accuracy"])] == [
        {"method": "topk", "layout": "block"}, {"method": "topk", "layout": "x"},
        {"method": "svd"},
    ]  # fmt: skip


def test_one_run_counts_once_and_unfinished_ones_do_not():
    first = trial(0, 1.0, k=2)
    again = first.model_copy(update={"number": 1})
    other = trial(2, 2.0, k=2)
    failed, running = trial(3, 9.0, "failed", k=2), trial(4, 9.0, "running", k=5)
    (row,) = averaged([first, again, other, failed, running], ["accuracy"])
    assert row.values["accuracy"] == spread([1.0, 2.0]) and row.params == {}


def test_a_measure_that_a_run_lacks_is_left_out_of_its_setting():
    bare = trial(0, 1.0, system="student")
    more = trial(1, 2.0, system="ones")
    more = more.model_copy(update={"reported": {**more.reported, "gathered": 0.3}})
    rows = averaged([bare, more], ["accuracy", "test/gathered"])
    assert [list(row.values) for row in rows] == [["accuracy"], ["accuracy", "test/gathered"]]


@pytest.mark.parametrize(
    ("measures", "over", "message"),
    [
        (["speed"], ["seed"], "unknown quantity `speed`.*mflops.*test/accuracy"),
        (["test/routing"], ["seed"], "unknown quantity `test/routing`"),
        (["accuracy"], ["k", "width"], "unknown parameter `width`\nhint: there are: k, seed"),
    ],
)
def test_an_unknown_name_is_reported_with_the_known_ones(measures, over, message):
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        averaged([trial(0, 1.0, k=2), trial(1, 1.0, k=3)], measures, over)


def test_a_study_without_a_complete_trial_has_no_averages():
    with pytest.raises(ConfigError, match="no complete trial"):
        averaged([trial(0, 1.0, "running", k=2)], ["accuracy"])
