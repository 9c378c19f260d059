"""Samplers draw inside their space, no point twice, and from trials and seed alone."""

import math
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import pytest
import toy

from moist.errors import ConfigError
from moist.results.objectives import DEFAULT, Limit, Objective, parse_objectives
from moist.results.trials import Trial
from moist.study import ledger as ledgers
from moist.study.ledger import Ledger, opened
from moist.study.samplers import MAKERS, Untried, chosen, point, seed_of, suggest
from moist.study.settings import SAMPLERS
from moist.study.spec import study_spec
from moist.sweepfile import Parameter, Sweep, active, config_of, grid, size

DRAWN = [name for name in MAKERS if name != "grid"]
ACCURACY = parse_objectives(["accuracy"])
GENERATION = 50
"""Complete trials before NSGA-II has parents."""


def space(*parameters: Parameter, method: str = "custom", **fixed: Any) -> Sweep:
    return Sweep("some", Path("some.yaml"), method, None, fixed, parameters)


ROUTER = Parameter("router", "categorical", ("cnn", "linear"))
WIDTH = Parameter("routing.hidden_width", "categorical", (16, 32), when={"router": ("cnn",)})
K = Parameter("k", "int", low=1, high=4)
SMALL = space(ROUTER, K, WIDTH)
"""Twelve points: two more than what a Gaussian process draws at random."""
WIDE = space(
    ROUTER,
    WIDTH,
    Parameter("routing.widths", "categorical", ("8", "8,16"), when={"router": ("linear",)}),
    Parameter("k", "categorical", (2, 3, "auto")),
    Parameter("hidden_width", "int", low=4, high=512, log=True),
    Parameter("joint.epochs", "int", low=2, high=8, step=3),
    Parameter("temperature", "float", low=1, high=10, log=True),
    Parameter("distill.alpha", "float", low=0.1, high=0.7, step=0.1),
    Parameter("augment.flip", "categorical", (True, False)),
    Parameter("teacher.horizon", "categorical", (None, 30)),
    Parameter("seed", "categorical", (7,)),
    **{"teacher.epochs": 5},
)


def draw(ledger: Ledger, sweep: Sweep, name: str, seed: int = 0) -> tuple[int, dict[str, Any]]:
    """A trial as a driver draws it."""
    sampler = Untried(sweep, name, seed_of(seed, ledger.drawn), ledger.tried)
    return ledger.ask(sampler, partial(suggest, sweep), {})


def found(params: dict[str, Any]) -> dict[str, float]:
    """Some result that depends on nothing but the parameters."""
    some = seed_of(point(params)) / 2**32
    return {"accuracy": some, "mflops": float(params.get("hidden_width") or params["k"])}


def go_on(ledger: Ledger, sweep: Sweep, name: str, trials: int, seed: int = 0) -> list[str]:
    """The points of so many more trials, each ended before the next is drawn."""
    points = []
    for _ in range(trials):
        number, params = draw(ledger, sweep, name, seed)
        ledger.complete(number, found(params))
        points.append(point(params))
    return points


def in_memory(objectives: Sequence[Objective]) -> Ledger:
    return ledgers.in_memory(study_spec(SMALL, objectives, 0, "moist"))


@contextmanager
def kept(home: Path, sweep: Sweep) -> Iterator[Ledger]:
    """A study on disk."""
    with opened(toy.ref(home), study_spec(sweep, DEFAULT, 0, "moist")) as ledger:
        yield ledger


# each point once


@pytest.mark.parametrize("objectives", [DEFAULT, ACCURACY], ids=["two", "one"])
@pytest.mark.parametrize("name", [*DRAWN, "grid"])
def test_every_point_of_a_finite_space_is_drawn_once_and_then_no_more(name, objectives):
    ledger = in_memory(objectives)
    points = go_on(ledger, SMALL, name, 12)
    assert sorted(points) == sorted(map(point, grid(SMALL))) and size(SMALL) == 12
    with pytest.raises(RuntimeError, match="every point"):
        draw(ledger, SMALL, name)


@pytest.mark.parametrize("name", ["tpe", "nsga2", "random"])
def test_points_of_low_probability_are_drawn_in_the_end(name):
    sweep = space(Parameter("hidden_width", "int", low=1, high=70, log=True))
    assert len(set(go_on(in_memory(DEFAULT), sweep, name, 70))) == 70


@pytest.mark.parametrize("name", ["tpe", "nsga2", "random", "grid"])
def test_a_point_is_not_drawn_again_while_its_trial_runs(name):
    ledger = in_memory(DEFAULT)
    points = [point(draw(ledger, SMALL, name)[1]) for _ in range(12)]
    assert len(set(points)) == 12


def test_a_grid_is_drawn_in_its_order():
    assert go_on(in_memory(DEFAULT), SMALL, "grid", 12) == list(map(point, grid(SMALL)))


@pytest.mark.parametrize("name", ["tpe", "nsga2", "random"])
def test_in_an_infinite_space_no_point_is_drawn_twice_either(name):
    """Most of what a sampler proposes are nineteen points; a twentieth of it is new each time."""
    k = Parameter("k", "int", low=1, high=20)
    endless = Parameter("temperature", "float", low=1, high=10, when={"k": (20,)})
    ledger, sweep = in_memory(ACCURACY), space(k, endless)
    points = go_on(ledger, sweep, name, GENERATION + 10)
    assert size(sweep) is None and len(set(points)) == GENERATION + 10


def test_a_point_does_not_depend_on_the_order_of_its_parameters():
    assert point({"k": 1, "router": "cnn"}) == point({"router": "cnn", "k": 1})
    assert len({point({"k": value}) for value in (1, 2, "1", None, True)}) == 5


def test_a_queued_trial_is_started_even_when_all_points_have_been_tried():
    ledger = in_memory(DEFAULT)
    go_on(ledger, SMALL, "random", 11)
    number, params = draw(ledger, SMALL, "random")
    ledger.fail(number, "no luck")
    assert ledger.retry_failed() == [number]
    again, same = draw(ledger, SMALL, "random")
    assert (again, same) == (number + 1, params) and ledger.trial(again).retry_of == number


# inside the space


def check_inside(sweep: Sweep, params: dict[str, Any]) -> None:
    applying = [one for one in sweep.parameters if active(sweep, params, one)]
    assert list(params) == [one.name for one in applying]
    for one in applying:
        value = params[one.name]
        assert one.low <= value <= one.high if not one.finite else value in one.values()
        assert type(value) in (
            {type(choice) for choice in one.values()} if one.finite else {float}
        )


@pytest.mark.parametrize(
    ("name", "objectives", "trials"),
    [
        ("random", DEFAULT, 30),
        ("tpe", DEFAULT, 40),
        ("tpe", ACCURACY, 40),
        ("nsga2", DEFAULT, GENERATION + 30),
        ("gp", DEFAULT, 12),
        ("gp", ACCURACY, 12),
    ],
)
def test_values_that_are_drawn_apply_are_inside_their_parameter_and_make_a_config(
    name, objectives, trials
):
    ledger, routers = in_memory(objectives), set()
    for _ in range(trials):
        number, params = draw(ledger, WIDE, name)
        check_inside(WIDE, params)
        assert config_of(WIDE, params).router == params["router"]
        assert ledger.trial(number).params == params
        ledger.complete(number, found(params))
        routers.add(params["router"])
    assert routers == {"cnn", "linear"} and ledger.drawn == len(ledger.tried) == trials


def test_a_gaussian_process_does_not_warn_of_conditional_parameters(caplog):
    optuna.logging.enable_propagation()
    go_on(in_memory(DEFAULT), SMALL, "gp", 12)
    optuna.logging.disable_propagation()
    assert not [message for message in caplog.messages if "sampled independently" in message]


def best_after(name: str, trials: int) -> float:
    """The mean accuracy of ten trials after so many, where two parameters matter."""
    ledger, accuracies = in_memory(ACCURACY), []
    for _ in range(trials + 10):
        number, params = draw(ledger, WIDE, name)
        off = abs(math.log2(params["hidden_width"] / 32)) / 4
        accuracies.append(1 - off - 0.5 * (not params["augment.flip"]))
        ledger.complete(number, {"accuracy": accuracies[-1]})
    return statistics.fmean(accuracies[trials:])


@pytest.mark.parametrize(("name", "trials"), [("tpe", 30), ("nsga2", 2 * GENERATION), ("gp", 12)])
def test_a_sampler_that_learns_finds_more_than_chance(name, trials):
    assert best_after(name, trials) > best_after("random", trials) + 0.2


# by trials and seed


def parallel(ledger: Ledger, sweep: Sweep, name: str, seed: int, scale: float) -> list[str]:
    """Twelve points, two trials running at once."""
    points, running = [], []
    for _ in range(12):
        running.append(draw(ledger, sweep, name, seed))
        points.append(point(running[-1][1]))
        if len(running) == 2:
            number, params = running.pop(0)
            ledger.complete(number, {n: scale * v for n, v in found(params).items()})
    return points


@pytest.mark.parametrize("name", DRAWN)
def test_draws_depend_on_the_seed_and_on_the_trials_before_and_on_nothing_else(name):
    once = parallel(in_memory(DEFAULT), WIDE, name, 0, 1.0)
    assert parallel(in_memory(DEFAULT), WIDE, name, 0, 1.0) == once
    assert not set(parallel(in_memory(DEFAULT), WIDE, name, 1, 1.0)) & set(once)


def test_what_trials_found_changes_what_is_drawn_next():
    worse = parallel(in_memory(DEFAULT), WIDE, "tpe", 0, -1.0)
    once = parallel(in_memory(DEFAULT), WIDE, "tpe", 0, 1.0)
    assert worse[:10] == once[:10] and worse != once


class Lost(Exception):
    """The end of a driver."""


def break_off(ledger: Ledger, sweep: Sweep, name: str, taken: int) -> None:
    """Draw a trial, and be lost once it has taken so many of its parameters."""

    def lose(trial: optuna.Trial) -> dict[str, Any]:
        suggest(replace(sweep, parameters=sweep.parameters[:taken]), trial)
        raise Lost

    with pytest.raises(Lost):
        ledger.ask(Untried(sweep, name, seed_of(0, ledger.drawn), ledger.tried), lose, {})


@pytest.mark.parametrize(
    ("name", "cuts"),
    [
        ("random", (3, 2, 2)),
        ("tpe", (8, 3, 3)),
        ("gp", (10, 1, 1)),
        ("nsga2", (GENERATION + 2, 3, 2)),
    ],
)
def test_an_interrupted_study_draws_what_an_unbroken_one_draws(tmp_path, name, cuts):
    """Each time it is broken off amid a draw, and goes on in a database opened anew."""
    unbroken = go_on(in_memory(DEFAULT), WIDE, name, sum(cuts))
    broken: list[str] = []
    for trials, taken in zip(cuts, (3, len(WIDE.parameters), 0), strict=True):
        with kept(tmp_path, WIDE) as ledger:
            assert ledger.unfinished() == []
            broken += go_on(ledger, WIDE, name, trials)
            break_off(ledger, WIDE, name, taken)
    assert broken == unbroken


def test_a_seed_depends_on_all_its_parts():
    seeds = {seed_of(*parts) for parts in [(0, 1), (1, 0), (0, 11), (0, 1, 1), ("0", "2"), (0,)]}
    assert len(seeds) == 6 and all(0 <= seed < 2**32 for seed in seeds)


# limits


def limited(name: str, most: float, stored: bool = True, seed: int = 0) -> list[float]:
    """The cost of forty trials after twenty, where a trial beyond the limit is not trained."""
    limit, ledger, costs = Limit("mflops", "max", most), in_memory(DEFAULT), []
    for _ in range(60):
        number, params = draw(ledger, WIDE, name, seed)
        cost = found(params)["mflops"]
        if stored:
            ledger.limit(number, str(limit), limit.excess({limit.name: cost}))
        if limit.excess({limit.name: cost}) > 0:
            ledger.prune(number, f"it can't keep {limit}")
        else:
            ledger.complete(number, found(params))
        costs.append(cost)
    return costs[20:]


def test_tpe_learns_to_keep_a_limit_from_trials_that_were_never_trained():
    tpe, chance = (
        [cost > 8 for seed in range(2) for cost in limited(name, 8, seed=seed)]
        for name in ("tpe", "random")
    )
    assert sum(chance) / 80 > 0.8
    assert sum(tpe) < 0.6 * sum(chance)


def test_tpe_is_led_towards_a_limit_that_no_trial_has_kept_yet():
    """Only by how far the others were beyond it."""
    led, blind = (statistics.median(limited("tpe", 1, stored)) for stored in (True, False))
    assert led < blind / 2


# auto


def trials(count: int, seconds: float) -> list[Trial]:
    return [
        Trial(number=number, state="complete", params={}, seconds=seconds)
        for number in range(count)
    ]


@pytest.mark.parametrize(
    ("method", "count", "seconds", "requested", "expected"),
    [
        ("grid", 20, 99.0, 20, "grid"),
        ("random", 20, 99.0, 20, "random"),
        ("bayes", 0, 0.0, 20, "tpe"),
        ("custom", 9, 99.0, 20, "tpe"),
        ("custom", 10, 60.0, 300, "gp"),
        ("bayes", 10, 60.0, 301, "tpe"),
        ("bayes", 10, 59.9, 20, "tpe"),
        ("bayes", 30, 0.0, 20, "tpe"),
    ],
)
def test_auto_is_the_files_method_else_tpe_or_gp_for_few_expensive_trials(
    method, count, seconds, requested, expected
):
    sweep = space(K, method=method)
    assert chosen("auto", sweep, trials(count, seconds), requested) == expected
    for name in DRAWN:
        assert chosen(name, sweep, trials(count, seconds), requested) == name


def under(limits: tuple[str, ...], count: int = 10) -> list[Trial]:
    kept = dict.fromkeys(limits, -1.0)
    return [one.model_copy(update={"constraints": kept}) for one in trials(count, 99.0)]


def test_a_gaussian_process_is_not_given_trials_under_different_limits():
    """Optuna's raises an error at them."""
    sweep = space(K, method="bayes")
    first, second = ("mflops <= 9", "params <= 5"), ("params <= 5",)
    assert chosen("gp", sweep, under(first) + under(first), 20) == "gp"
    for mixed in (under(first) + under(second), under(second) + under(())):
        assert chosen("auto", sweep, mixed, 20) == "tpe" == chosen("tpe", sweep, mixed, 20)
        with pytest.raises(ConfigError, match="params <= 5"):
            chosen("gp", sweep, mixed, 20)


def test_a_gaussian_process_learns_from_trials_under_one_limit():
    ledger = in_memory(DEFAULT)
    for _ in range(12):
        number, params = draw(ledger, WIDE, "gp")
        ledger.limit(number, "mflops <= 99", found(params)["mflops"] - 99)
        ledger.complete(number, found(params))
    check_inside(WIDE, params)


def test_trials_that_reused_all_their_stages_do_not_count_as_cheap():
    found_so_far = [*trials(10, 99.0), *trials(30, 0.0)]
    assert chosen("auto", space(K, method="bayes"), found_so_far, 20) == "gp"


def test_every_sampler_that_can_be_chosen_can_be_made():
    assert SAMPLERS == ("auto", *MAKERS)
