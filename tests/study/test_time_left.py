"""The time that a search has left, from its events."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny import STUDY

from moist.config import Config
from moist.results.expected import Expected
from moist.results.objectives import DEFAULT
from moist.results.trials import Trial
from moist.store.calls import Call
from moist.study import events
from moist.study.spec import StudySpec, study_spec
from moist.study.time_left import TimeLeft
from moist.sweepfile import read_sweep


def call(key: str, seconds: float | None, reused: bool = False) -> Call:
    one = None if seconds is None else Expected(seconds, seconds / 2, seconds * 2, 3)
    return Call("stage", key, reused, 1.0 if reused else None, expected=one)


class Search:
    """A search of trials that share a teacher of 100 s, with 10 s of their own, and its clock."""

    def __init__(self, spec: StudySpec, teacher: Call, workers: int = 1) -> None:
        self.now = 0.0
        self.time = TimeLeft(lambda: self.now)
        planned = [[teacher, call(f"own {n}", 10.0)] for n in range(3)]
        self.see(events.StudyOpened("s", spec, 4, (), planned, workers))

    def see(self, event: events.Event) -> None:
        self.time.observe(event)

    def start(self, number: int, key: str | None = None) -> None:
        if key is None:
            self.see(events.TrialStarted(number, {}, Config(), command="", stop=print))
        else:
            self.see(events.StageStarted(number, "stage", key))

    def finish(self, number: int, key: str, seconds: float, reused: bool = False) -> None:
        self.see(events.StageFinished(number, "stage", key, seconds, reused))

    def end(self, number: int, outcome: str) -> None:
        state = "complete" if outcome in {"trained", "reused"} else "pruned"
        trial = Trial.model_validate({"number": number, "state": state, "params": {}})
        self.see(events.TrialEnded(trial, outcome))

    @property
    def left(self) -> float | None:
        found = self.time.left()
        return None if found is None else found.seconds


@pytest.fixture
def spec(tmp_path: Path) -> Iterator[StudySpec]:
    (file := tmp_path / "s.yaml").write_text(STUDY)
    yield study_spec(read_sweep(file, []), DEFAULT, 0, "moist ...")


def test_a_shared_stage_counts_once_and_only_until_it_is_stored(spec: StudySpec) -> None:
    search = Search(spec, call("teacher", 100.0))
    found = search.time.left()
    assert found == Expected(140.0, 70.0, 280.0, 0)
    search.start(0)
    search.start(0, "teacher")
    search.now = 30
    assert search.left == 110
    search.now = 120
    assert search.left == 40  # longer than expected: it does not count below zero
    search.finish(0, "teacher", 120)
    assert search.left == 40
    search.start(0, "own 0")
    search.now = 126
    assert search.left == 34


def test_the_time_of_trials_is_measured_without_what_they_share(spec: StudySpec) -> None:
    search = Search(spec, call("teacher", 100.0))
    search.start(0)
    search.finish(0, "teacher", 100)
    search.finish(0, "own 0", 20)
    search.finish(0, "router", 7)
    search.end(0, "trained")
    assert search.left == 3 * 27
    search.start(1)
    search.finish(1, "teacher", 100, reused=True)
    search.finish(1, "router", 7, reused=True)
    assert search.left == 3 * 20  # the router turned out to be shared, too
    search.finish(1, "own 1", 30)
    search.end(1, "trained")
    assert search.time.left() == Expected(2 * 25, 2 * 20, 2 * 30, 2)
    search.start(2)
    search.end(2, "screened")
    assert search.left == 2 * 25
    search.start(3)
    search.finish(3, "own 3", 8)
    search.end(3, "pruned")
    assert search.left == 2 * 29  # a complete trial costs what pruned ones beside it take
    search.end(4, "reused")
    search.end(5, "trained")
    assert search.left == 0


def test_workers_share_the_time(spec: StudySpec) -> None:
    search = Search(spec, call("teacher", None, reused=True), workers=2)
    assert search.left == 20
    search.start(0)
    search.start(1)
    search.now = 4
    assert search.left == 16


def test_without_a_comparable_record_nothing_is_expected_until_it_is_measured(
    spec: StudySpec,
) -> None:
    search = Search(spec, call("teacher", None))
    assert search.left is None
    search.start(0)
    search.finish(0, "teacher", 3)
    assert search.left == 40
