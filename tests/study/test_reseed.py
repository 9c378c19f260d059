"""Certainty of a frontier: which seeds are new, and how sure a member is to be on it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from moist.results.aggregate import Spread
from moist.results.objectives import DEFAULT
from moist.study.reseed import MOST, on_front, seeded
from moist.sweepfile import Parameter, Sweep

WIDTH = Parameter("hidden_width", "categorical", (8, 16))
ONE = Sweep("some", Path("some.yaml"), "grid", None, fixed={}, parameters=(WIDTH,))


@pytest.mark.parametrize(
    ("sweep", "last"),
    [
        (ONE, 0),
        (replace(ONE, fixed={"seed": 7}), 7),
        (replace(ONE, parameters=(Parameter("seed", "categorical", (4, 9, 2)), WIDTH)), 9),
        (replace(ONE, parameters=(WIDTH, Parameter("seed", "int", low=3, high=5))), 5),
    ],
)
def test_new_seeds_are_those_after_all_that_selected_the_frontier(sweep, last):
    new = seeded(sweep)
    assert new.parameters[0] == WIDTH and "seed" not in new.fixed
    (seed,) = new.parameters[1:]
    assert seed.name == "seed" and list(seed.values()) == [*range(last + 1, last + 1 + MOST)]


def test_a_member_is_as_likely_on_the_frontier_as_a_t_test_of_its_means_says():
    """The second costs more: it is on the frontier where its true accuracy is higher."""
    times, sds, gap = 4, (0.03, 0.01), 0.01
    members = [
        {
            "accuracy": Spread(mean=mean, sd=sd, n=times),
            "mflops": Spread(mean=cost, sd=0.0, n=times),
        }
        for mean, sd, cost in zip((0.9, 0.9 + gap), sds, (1.0, 2.0), strict=True)
    ]
    first, second = on_front(members, DEFAULT, times)
    error = (sum(sd**2 for sd in sds) / 2 / times) ** 0.5
    draws = np.random.default_rng(1).standard_t(2 * (times - 1), (2, 200_000))
    expected = (gap + error * (draws[0] - draws[1]) > 0).mean()
    assert (first, second) == (1.0, pytest.approx(expected, abs=0.02))
