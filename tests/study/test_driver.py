"""All policy of a study, by a real driver with real workers: what is trained, and what is not."""

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from toy import Do, Script, Step, Toy, computed, epochs, estimate, key_of, numbers, ref, reused

from moist.config import Config
from moist.errors import ConfigError, StageError
from moist.results.objectives import DEFAULT, parse_limits, parse_objectives
from moist.store.calls import Call
from moist.study.costs import CostEstimate
from moist.study.driver import Driver
from moist.study.events import (
    Deferred,
    Event,
    StageStarted,
    TrialStarted,
    Warned,
    broadcast,
)
from moist.study.ledger import in_memory
from moist.study.screening import ENOUGH
from moist.study.settings import Settings, Stats
from moist.study.spec import study_spec
from moist.study.stopping import USELESS_DRAWS
from moist.study.storage import ASKED
from moist.study.workers import PRELOADED, Pool, Slot
from moist.sweepfile import Parameter, Sweep

GRID = "grid"
PRELOAD = ("pytest", *PRELOADED)
"""All that any test's workers need: one server forks them all, as the first pool starts it."""


def space(**choices: Any) -> Sweep:
    """A grid over the values of each key; a single value is fixed."""
    fixed = {name: value for name, value in choices.items() if not isinstance(value, list)}
    searched = [
        Parameter(name, "categorical", tuple(values))
        for name, values in choices.items()
        if isinstance(values, list)
    ]
    return Sweep("some", Path("some.yaml"), GRID, None, fixed, tuple(searched))


@dataclass
class Seen:
    """An observer that keeps warnings, and stops some trials once they train."""

    warnings: list[str] = field(default_factory=list)
    stopped: Mapping[int, str] = field(default_factory=dict)

    def observe(self, event: Event) -> None:
        if isinstance(event, Warned):
            self.warnings.append(event.text)
        if isinstance(event, TrialStarted) and event.number in self.stopped:
            event.stop(self.stopped[event.number])


@dataclass
class Study:
    """A study in memory, in a home; each `drive` is a driver of its own, as after a resume."""

    home: Path
    sweep: Sweep
    work: Toy
    estimate: Callable[[Config], CostEstimate] = estimate

    def __post_init__(self) -> None:
        self.ledger = in_memory(study_spec(self.sweep, DEFAULT, 0, "moist"))
        self.seen = Seen()
        self.ref = ref(self.home)

    def drive(self, trials: int, workers: int = 1, **settings: Any) -> Stats:
        slots = [Slot(None, 1) for _ in range(workers)]
        settings.setdefault("sampler", GRID)
        with Pool(self.work, slots, self.home / "logs", PRELOAD) as pool:
            driver = Driver(
                self.ref, self.ledger, self.sweep, pool, self.estimate,
                Settings(trials, **settings), broadcast([self.seen]),
            )  # fmt: skip
            return driver.run()

    @property
    def states(self) -> list[str]:
        return [one.state for one in self.ledger.trials()]

    @property
    def reasons(self) -> list[str]:
        return [one.reason or "" for one in self.ledger.trials()]


@pytest.fixture
def study(tmp_path: Path) -> Callable[..., Study]:
    """A study over a grid, in a home of its own; its trials follow a script."""
    homes = (tmp_path / str(number) for number in count())

    def made(
        script: Script | None = None,
        again: Script | None = None,
        home: Path | None = None,
        **choices: Any,
    ) -> Study:
        home = home or next(homes)
        home.mkdir(exist_ok=True)
        return Study(home, space(**choices), Toy(home, script or {}, again or {}))

    return made


# before training


def test_a_trial_that_can_not_keep_a_limit_is_not_trained_and_samplers_know_by_how_much(study):
    one = study(hidden_width=[20, 5, 10])
    stats = one.drive(3, limits=parse_limits(["mflops=10"]))
    assert one.states == ["pruned", "complete", "complete"]
    assert one.reasons[0] == "it can't keep mflops <= 10"
    excess = [trial.constraints for trial in one.ledger.trials()]
    assert excess == [{"mflops <= 10": 10.0}, {"mflops <= 10": -5.0}, {"mflops <= 10": 0.0}]
    assert numbers(one.home) == [1, 2]
    assert stats.outcomes == {"screened": 1, "trained": 2}


def test_no_latency_is_measured_for_a_trial_that_its_counts_rule_out(study):
    """By a limit or by the frontier; a latency may rule out the others."""
    one = study({0: [Do("find", 0.9)]}, hidden_width=[5, 20, 4, 6], temperature=[2.0])
    timed = []

    def estimate_times(config: Config) -> CostEstimate:
        def measure() -> dict[str, float]:
            timed.append(config.hidden_width)
            return {"latency_ms": 3.0 if config.hidden_width == 4 else 1.0}

        return replace(estimate(config), measure=measure)

    one.estimate = estimate_times
    limits = parse_limits(["latency_ms=2", "mflops=10"])
    points = [{"hidden_width": width, "temperature": 2.0} for width in (5, 20, 4, 6)]
    one.drive(4, limits=limits, best={"accuracy": 0.8}, points=points)
    assert timed == [5, 4] and numbers(one.home) == [0]
    assert one.reasons[1:] == [
        "it can't keep mflops <= 10", "it can't keep latency_ms <= 2",
        "even with accuracy 0.8 it would be dominated by trial 0",
    ]  # fmt: skip
    excess = [trial.constraints for trial in one.ledger.trials()]
    assert excess[1] == {"mflops <= 10": 10.0}
    assert excess[2] == {"latency_ms <= 2": 1.0, "mflops <= 10": -6.0}


def test_limits_apply_to_quantities_that_training_decides_too(study):
    """With `k=auto` that is everything."""
    one = study({0: [Do("find", 0.6)], 1: [Do("find", 0.4)]}, hidden_width=[5, 30])
    one.estimate = lambda config: replace(estimate(config), quantities={})
    one.drive(2, limits=parse_limits(["mflops=7"], ["accuracy=0.5"]))
    first, second = one.ledger.trials()
    assert first.constraints == {"accuracy >= 0.5": pytest.approx(-0.1), "mflops <= 7": -2.0}
    assert second.constraints == {"accuracy >= 0.5": pytest.approx(0.1), "mflops <= 7": 23.0}
    assert (first.state, second.state) == ("complete", "complete")
    assert first.feasible and not second.feasible


def test_a_trial_that_would_be_dominated_at_its_best_is_not_trained(study):
    found: dict[int, list[Step]] = {0: [Do("find", 0.75)], 1: [Do("find", 0.5)]}
    one = study(found, hidden_width=[10, 5, 10, 20], temperature=[1.0])
    one.drive(9, best={"accuracy": 0.75}, points=[{"hidden_width": w} for w in (10, 5, 20)])
    assert one.states == ["complete", "complete", "pruned"]
    assert one.reasons[2] == "even with accuracy 0.75 it would be dominated by trial 0"
    assert numbers(one.home) == [0, 1]


def test_a_trial_that_could_still_reach_the_frontier_is_trained(study):
    found: dict[int, list[Step]] = {n: [Do("find", 0.75)] for n in range(3)}
    one = study(found, hidden_width=[10, 20, 40])
    one.drive(3, best={"accuracy": 0.76})
    assert one.states == ["complete"] * 3


def test_an_infeasible_trial_dominates_no_other(study):
    one = study({0: [Do("find", 0.9)]}, hidden_width=[10, 20])
    one.drive(2, best={"accuracy": 0.8}, limits=parse_limits(["mflops=50"], ["accuracy=0.95"]))
    assert one.states == ["complete"] * 2


# reused records


def test_a_recorded_run_is_reused_and_not_trained(study):
    first = study(hidden_width=[10, 20])
    first.drive(1)
    second = study(home=first.home, hidden_width=[10, 20])
    stats = second.drive(2)
    assert stats.outcomes == {"reused": 1, "trained": 1} and second.states == ["complete"] * 2
    before, after = (one.ledger.trial(0) for one in (first, second))
    assert (after.values, after.quantities, after.key) == (
        before.values, before.quantities, before.key
    )  # fmt: skip
    assert after.reported == before.reported and after.command == before.command
    assert second.reasons[0].startswith("reused the run recorded at 20") and not second.reasons[1]
    assert numbers(first.home) == [0, 1] and after.seconds == 0


def test_other_parameters_that_make_the_same_run_reuse_it_too(study):
    """Here the run's key does not depend on `distill.alpha`."""
    one = study(hidden_width=[10, 20], **{"distill.alpha": [0.1, 0.2, 0.3]})
    stats = one.drive(6)
    assert stats.outcomes == {"trained": 2, "reused": 4} and numbers(one.home) == [0, 3]
    values = [trial.values for trial in one.ledger.trials()]
    assert values == [values[0]] * 3 + [values[3]] * 3 and values[0] != values[3]


# while training

GOOD = [*epochs("distill_student", 0.5, 0.7, 0.8), Do("find", 0.8)]
"""Gains of 0.3, 0.1 and 0 are left after its epochs."""
POOR = epochs("distill_student", 0.6, 0.65, 0.7)
"""After its second epoch its bound is 0.75, at more cost."""


def eight_good_trials(study: Callable[..., Study], *last: Step) -> Study:
    """Eight good trials, then one that is more expensive and worse, and one that is cheaper."""
    script: dict[int, Sequence[Step]] = dict.fromkeys(range(ENOUGH), GOOD)
    script[ENOUGH] = [*POOR, Do("find", 0.79), *last]
    script[ENOUGH + 1] = [*POOR, Do("find", 0.79)]
    heats = [1 + n / 10 for n in range(ENOUGH)]
    one: Study = study(script, hidden_width=[5, 10, 20], temperature=heats)
    one.points = [{"hidden_width": 10, "temperature": heat} for heat in heats]
    one.points += [{"hidden_width": width, "temperature": 1.0} for width in (20, 5)]
    return one


def test_pruning_kills_a_trial_at_the_first_epoch_after_which_its_bound_is_dominated(study):
    one = eight_good_trials(study, Do("hang"))
    stats = one.drive(10, prune=True, points=one.points)
    assert one.states == ["complete"] * 8 + ["pruned", "complete"]
    assert one.reasons[8] == (
        "after distill_student epoch 2 of 3, accuracy would be 75.00% at most: trial 0 is better"
    )
    assert stats.outcomes == {"trained": 9, "pruned": 1} and stats.would_prune == {}


def test_an_audit_stops_no_trial_and_lists_those_that_pruning_would_have_stopped(study):
    one = eight_good_trials(study)
    stats = one.drive(10, audit=True, points=one.points)
    assert one.states == ["complete"] * 10
    assert stats.would_prune == {8: "distill_student epoch 2 of 3"}


def test_without_pruning_no_trial_is_listed(study):
    one = eight_good_trials(study)
    stats = one.drive(10, points=one.points)
    assert one.states == ["complete"] * 10 and stats.would_prune == {}


def test_gains_are_learned_from_trials_of_an_earlier_start_too(study):
    one = eight_good_trials(study, Do("hang"))
    one.drive(8, points=one.points[:8])
    one.drive(10, prune=True, points=one.points)
    assert one.states[8] == "pruned"


@pytest.mark.parametrize("objectives", ["accuracy", "accuracy mflops"])
def test_epochs_are_in_optuna_while_a_trial_trains_only_if_accuracy_is_all(study, objectives):
    """Optuna's TPE fails on a trial that is pruned with epochs in a study of two objectives."""
    trained = epochs("train_jointly", 0.5, 0.7)
    script = {0: [*trained, Do("raise", ValueError("no luck"))], 1: [*trained, Do("find", 0.8)]}
    one = study(script, hidden_width=[10, 20])
    named = parse_objectives(objectives.split())
    one.ledger = in_memory(study_spec(one.sweep, named, 0, "moist"))
    one.drive(1)
    failed, complete = one.ledger.study.trials
    assert failed.intermediate_values == ({1: 0.5, 2: 0.7} if len(named) == 1 else {})
    assert complete.intermediate_values == {1: 0.5, 2: 0.7}


def test_a_trial_that_an_observer_stops_is_pruned_with_its_reason(study):
    one = study({0: [*epochs("distill_student", 0.5), Do("hang")]}, hidden_width=[10, 20])
    one.seen.stopped = {0: "stopped from elsewhere"}
    assert one.drive(1).outcomes == {"pruned": 1, "trained": 1}
    assert one.states == ["pruned", "complete"] and one.reasons[0] == "stopped from elsewhere"


# how far


def test_trials_are_complete_ones_in_all_over_every_start(study):
    one = study({1: [Do("raise", ValueError("no luck"))]}, hidden_width=[10, 20, 30, 40, 50])
    assert one.drive(2).outcomes == {"trained": 2, "failed": 1}
    assert one.drive(3).outcomes == {"trained": 1}
    assert one.drive(3).outcomes == {}
    assert one.states == ["complete", "failed", "complete", "complete"]
    assert one.drive(4).ended == ""


def test_a_study_that_is_continued_draws_what_an_unbroken_one_draws(study):
    widths = [*range(8, 40)]
    unbroken, broken = study(hidden_width=widths), study(hidden_width=widths)
    unbroken.drive(4, sampler="random")
    for trials in (1, 3, 4):
        broken.drive(trials, sampler="random")
    for one in (unbroken, broken):
        asked = [trial.user_attrs[ASKED] for trial in one.ledger.study.get_trials()]
        assert asked == [{"index": index, "sampler": "random"} for index in range(4)]
    drawn = [[trial.params for trial in one.ledger.trials()] for one in (unbroken, broken)]
    assert drawn[0] == drawn[1]


def test_a_space_that_is_used_up_ends_a_study_with_its_reason(study):
    one = study(hidden_width=[10, 20], k=[2, 3])
    assert one.drive(9).ended == "all 4 points of the space have been tried"
    assert one.states == ["complete"] * 4 and one.drive(9).outcomes == {}


def test_only_points_that_are_given_are_run_and_in_their_order(study):
    one = study(hidden_width=[10, 20, 30, 40])
    points = [{"hidden_width": width} for width in (30, 10)]
    stats = one.drive(9, points=points)
    assert [trial.params for trial in one.ledger.trials()] == points and stats.ended == ""
    assert one.drive(9, points=[*points, {"hidden_width": 20}]).outcomes == {"trained": 1}


def test_two_hundred_draws_in_a_row_that_are_not_worth_training_end_a_study(study):
    one = study(k=2)
    one.sweep = replace(one.sweep, parameters=(Parameter("temperature", "float", low=1, high=9),))
    stats = one.drive(3, sampler="random", limits=parse_limits(["mflops=1"]))
    assert stats.ended == f"the last {USELESS_DRAWS} draws were not worth training"
    assert one.states == ["pruned"] * USELESS_DRAWS and numbers(one.home) == []


def test_draws_that_were_not_worth_training_count_only_in_a_row(study):
    dear = list(range(11, USELESS_DRAWS))
    one = study(hidden_width=[*dear, 5, *(width + 999 for width in dear), 6])
    stats = one.drive(2, limits=parse_limits(["mflops=10"]))
    assert stats.outcomes == {"screened": 2 * len(dear), "trained": 2} and stats.ended == ""
    assert 2 * len(dear) > USELESS_DRAWS


def test_a_study_ends_when_its_time_is_over_and_can_be_continued(study):
    one = study({0: [Do("hang")]}, hidden_width=[10, 20])
    assert one.drive(2, timeout=0.5).ended == "the time limit of 0.5 seconds is reached"
    assert one.states == ["running"]
    assert one.drive(2).outcomes == {"trained": 2}


@pytest.mark.parametrize(("workers", "most"), [(1, 1), (2, 4), (3, 6)])
def test_workers_can_choose_from_twice_their_number_of_trials(study, workers, most):
    """All need what the first computes, which it does when `most` trials have been drawn."""
    one = study({0: [Do("await", "pipe"), Do("store", "00")]}, hidden_width=list(range(1, 13)))
    os.mkfifo(one.home / "pipe")
    pipe = os.open(one.home / "pipe", os.O_RDWR)
    under_way = []

    def counted(config: Config) -> CostEstimate:
        under_way.append(sum(trial.state == "running" for trial in one.ledger.trials()))
        if len(under_way) == most:
            os.write(pipe, b"!")
        own = Call("own", key_of(config), False, None, ("00",))
        return replace(estimate(config), calls=(Call("shared", "00", False, None), own))

    one.estimate = counted
    one.drive(12, workers=workers)
    os.close(pipe)
    assert max(under_way) == most and one.states == ["complete"] * 12
    assert sorted(numbers(one.home)) == list(range(12))


DEFERRED: list[Step] = [Deferred(0, ("00",))]


def test_a_single_worker_waits_for_a_stage_that_another_process_computes(study):
    one = study({0: DEFERRED}, hidden_width=[10, 20])
    one.drive(2)
    assert numbers(one.home) == [0, 0, 1] and numbers(one.home, blocking=True) == [0]
    assert one.states == ["complete"] * 2


def test_several_workers_do_all_other_work_before_one_of_them_waits(study):
    one = study({0: DEFERRED, 3: DEFERRED}, hidden_width=list(range(1, 9)))
    one.drive(8, workers=2)
    assert numbers(one.home, blocking=True) == [0, 3] == numbers(one.home)[-2:]
    assert one.states == ["complete"] * 8


# failures


def test_conflicting_values_fail_at_once_and_are_not_retried(study):
    one = study(
        hidden_width=[10], **{"joint.objective": ["switch"], "joint.mask_students": [True, False]}
    )
    stats = one.drive(2)
    assert one.states == ["failed", "complete"] and stats.outcomes == {"failed": 1, "trained": 1}
    assert one.reasons[0].startswith("ConfigError: ") and "mask_students" in one.reasons[0]
    assert one.ledger.trial(0).attempts == () and numbers(one.home) == [1]


def test_a_config_that_can_not_work_on_the_data_fails_at_once_too(study):
    def refuse(config: Config) -> CostEstimate:
        if config.hidden_width == 10:
            raise ConfigError("ten is too much", "write 9")
        return estimate(config)

    one = study(hidden_width=[10, 9])
    one.estimate = refuse
    one.drive(2)
    assert one.reasons == ["ConfigError: ten is too much\nhint: write 9", ""]
    assert numbers(one.home) == [1]


def test_a_study_whose_trials_fail_with_the_same_error_in_a_row_is_stopped(study):
    script: dict[int, list[Step]] = {n: [Do("raise", KeyError("what?"))] for n in range(9)}
    one = study(script, hidden_width=list(range(1, 10)))
    with pytest.raises(
        StageError, match="the last 5 trials failed with the same error"
    ) as stopped:
        one.drive(9)
    assert "KeyError: 'what?'" in str(stopped.value) and "retry" in stopped.value.hint
    assert one.states == ["failed"] * 5 and numbers(one.home) == list(range(5))


def test_a_study_is_stopped_by_failures_in_a_row_after_a_success_too(study):
    script: dict[int, list[Step]] = {n: [Do("raise", KeyError("what?"))] for n in range(1, 9)}
    one = study(script, hidden_width=list(range(1, 10)))
    with pytest.raises(StageError, match="the last 5 trials failed with the same error"):
        one.drive(9)
    assert one.states == ["complete"] + ["failed"] * 5


def test_failures_of_different_kinds_or_with_a_success_between_stop_nothing(study):
    script: dict[int, list[Step]] = {n: [Do("raise", KeyError("what?"))] for n in range(9)}
    one = study(script | {4: []}, hidden_width=list(range(1, 10)))
    assert one.drive(9).outcomes == {"trained": 1, "failed": 8}
    kinds = {n: [Do("raise", ValueError("what?"))] for n in range(0, 9, 2)}
    other = study(script | kinds, hidden_width=list(range(1, 10)))
    assert other.drive(9).outcomes == {"failed": 9}


def test_a_driver_whose_own_gpu_fails_stops_at_once_and_continues_with_the_same_trial(study):
    def refuse(config: Config) -> CostEstimate:
        raise RuntimeError("CUDA error: device-side assert triggered")

    one = study(hidden_width=[10, 20])
    one.estimate = refuse
    with pytest.raises(StageError, match="the driver's device failed: RuntimeError: CUDA error"):
        one.drive(2)
    one.estimate = estimate
    assert one.states == ["running"] and one.drive(2).outcomes == {"trained": 2}


def test_a_network_too_large_to_count_is_its_trials_own_failure(study):
    def refuse(config: Config) -> CostEstimate:
        if config.hidden_width == 10:
            raise RuntimeError("can't allocate memory")
        return estimate(config)

    one = study(hidden_width=[10, 20])
    one.estimate = refuse
    one.drive(1)
    assert one.states == ["failed", "complete"]
    assert one.reasons[0].startswith("RuntimeError: can't allocate memory\n")


def test_a_driver_that_stops_prints_a_command_that_finds_its_study(study):
    script: dict[int, list[Step]] = {n: [Do("raise", KeyError("what?"))] for n in range(9)}
    one = study(script, hidden_width=list(range(1, 10)))
    one.ref = replace(one.ref, options={"--home": "there"})
    with pytest.raises(StageError) as stopped:
        one.drive(9)
    assert "`moist sweep retry toy --home there`" in stopped.value.hint


def test_a_run_without_an_objective_of_its_study_fails_and_the_next_one_is_trained(study):
    """Trained now, or before, in a record."""
    one = study({0: [Do("find", None)]}, hidden_width=[10, 20])
    assert one.drive(1).outcomes == {"failed": 1, "trained": 1}
    assert one.reasons[0] == "StageError: its run has no accuracy, an objective of this study"
    again = study(home=one.home, hidden_width=[10, 20])
    assert again.drive(1).outcomes == {"failed": 1, "reused": 1}


def test_a_search_whose_validation_images_can_not_give_what_it_needs_is_not_trained(study):
    one = study(hidden_width=[10], **{"data.val_fraction": [0.0, 0.1]})
    one.ledger = in_memory(study_spec(one.sweep, parse_objectives(["mflops"]), 0, "moist"))
    for name, settings in {
        "limit": {"limits": parse_limits(["accuracy=0.9"])}, "prune": {"prune": True},
        "audit": {"audit": True}, "none": {},
    }.items():  # fmt: skip
        needed = Settings(1, **settings).needed(one.ledger.objectives)
        assert ("accuracy" in needed) == (name != "none")
    one.drive(2, prune=True)
    assert "`accuracy` is measured on validation images" in one.reasons[0]
    assert one.states == ["failed", "complete"] and numbers(one.home) == [1]


@pytest.mark.parametrize(
    ("outcomes", "failed"),
    [
        ({"failed": 2}, True),
        ({"failed": 1, "screened": 3}, True),
        ({"failed": 2, "reused": 1}, False),
        ({"screened": 2}, False),
        ({}, False),
    ],
)
def test_a_start_failed_if_trials_failed_and_none_gave_a_result(outcomes, failed):
    assert Stats(outcomes=Counter(outcomes)).all_failed == failed


# statistics


def test_statistics_count_each_stage_once_that_a_trial_computed_or_reused(study):
    script: dict[int, list[Step]] = {
        0: [reused("a", 8.0), computed("b", 2.0), Do("die")],
        1: [reused("a", 8.0), reused("b", 2.0)],
    }
    again: dict[int, list[Step]] = {
        0: [
            reused("a", 8.0), reused("b", 2.0), StageStarted(0, "stage_c", "c"),
            computed("c", 4.0),
        ]
    }  # fmt: skip
    one = study(script, again, hidden_width=[10, 20])
    stats = one.drive(2)
    assert (stats.computed, stats.seconds) == (2, 6.0)
    assert (stats.reused, stats.saved) == (3, 18.0)
    spent = [(trial.seconds, trial.saved) for trial in one.ledger.trials()]
    assert spent == [(6.0, 8.0), (0.0, 10.0)]
    assert len(one.ledger.trial(0).attempts) == 1 == len(one.seen.warnings)


def test_stages_of_failed_and_pruned_trials_count_too(study):
    one = eight_good_trials(study, Do("hang"))
    script = dict(one.work.script)
    script[0] = [computed("a", 1.5), Do("raise", ValueError("no luck"))]
    script[9] = script[1]
    script[8] = [computed("b", 2.5), *script[8]]
    one.work = replace(one.work, script=script)
    points = [*one.points[:8], one.points[9] | {"temperature": 1.1}, one.points[8]]
    script[8], script[9] = script[9], script[8]
    stats = one.drive(10, prune=True, points=points)
    assert stats.outcomes == {"failed": 1, "trained": 8, "pruned": 1}
    assert (stats.computed, stats.seconds) == (2, 4.0)
