"""The schedule computes no stage twice, keeps no worker waiting or idle, and ends."""

import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from moist.config import Config
from moist.store.calls import Call
from moist.store.objects import ObjectStore
from moist.study.costs import CostEstimate
from moist.study.schedule import Entry, Schedule

Trials = list[list[Call]]


@dataclass
class Worker:
    """Goes through stages as `NonBlockingStore` does, or as `Store` if it is blocking."""

    entry: Entry
    blocking: bool
    at: int = 0
    computing: str = ""
    locked: set[str] = field(default_factory=set)
    left: set[str] = field(default_factory=set)

    @property
    def ended(self) -> bool:
        return self.at == len(self.entry.calls) and not self.computing

    @property
    def call(self) -> Call:
        return self.entry.calls[self.at]


class World:
    """Workers, other processes that compute some of the same stages, and a schedule between them.

    Whoever can move does, in any order. It checks whom the schedule picks, and whom it doesn't.
    """

    def __init__(self, home: Path, trials: Trials, workers: int, random: Random) -> None:
        self.home, self.random, self.free = home, random, workers
        self.schedule = Schedule(home)
        self.busy: list[Worker] = []
        self.others: set[str] = set()
        self.released: set[str] = set()
        self.computed: Counter[str] = Counter()
        self.completed: list[int] = []
        self.failed: list[int] = []
        for number, calls in enumerate(trials):
            estimate = CostEstimate(f"run{number}", tuple(calls), {})
            self.schedule.add(Entry(number, {}, Config(), "", estimate))

    def run(self, deaths: int) -> None:
        """Move until no process can; `deaths` workers are killed on the way."""
        while True:
            self.fill()
            moves = [(self.step, one) for one in self.busy if self.can_move(one)]
            moves += [(self.release, key) for key in sorted(self.others)]
            if deaths and self.busy and self.random.random() < 0.15:
                moves, deaths = [(self.die, self.random.choice(self.busy))], deaths - 1
            if not moves:
                return
            move, target = self.random.choice(moves)
            move(target)

    # state

    def stored(self, key: str) -> bool:
        return ObjectStore(self.home).folder(key).is_dir()

    def locked(self, key: str) -> bool:
        return key in self.others or any(one.computing == key for one in self.busy)

    def missing(self, entry: Entry) -> set[str]:
        return {call.key for call in entry.calls if not self.stored(call.key)}

    def claimed(self) -> set[str]:
        return {key for one in self.busy for key in self.missing(one.entry)}

    def awaited(self, entry: Entry) -> set[str]:
        return {key for key in entry.locked if not self.stored(key)}

    def is_useful(self, entry: Entry) -> bool:
        """Return whether it could compute what no running trial will, or has all it needs."""
        missing, claimed = self.missing(entry), self.claimed()
        return not missing or any(
            call.key in missing - claimed and all(map(self.stored, call.needs))
            for call in entry.calls
        )

    def can_move(self, worker: Worker) -> bool:
        waits = worker.blocking and not worker.computing and not worker.ended
        return not (waits and self.locked(worker.call.key))

    # starts

    def fill(self) -> None:
        """Give work to every free worker, as a driver does."""
        while self.free:
            waiting = list(self.schedule.waiting)
            blocking, entry = False, self.schedule.pick()
            if entry is None:
                self.check_all_wait(waiting)
                blocking, entry = True, None if self.busy else self.schedule.pick(blocking=True)
            else:
                self.check_first(entry, waiting)
            if entry is None:
                return
            assert entry not in self.schedule.waiting
            self.free -= 1
            self.busy.append(Worker(entry, blocking))

    def check_first(self, entry: Entry, waiting: list[Entry]) -> None:
        ready = [one for one in waiting if self.is_useful(one) and not self.awaited(one)]
        assert entry.number == min(one.number for one in ready)

    def check_all_wait(self, waiting: list[Entry]) -> None:
        others = self.claimed() | self.others | self.released
        for entry in waiting:
            assert not self.is_useful(entry) or self.awaited(entry) & others

    # moves

    def store(self, key: str) -> None:
        ObjectStore(self.home).folder(key).mkdir(parents=True)
        self.computed[key] += 1

    def step(self, worker: Worker) -> None:
        if worker.computing:
            self.store(worker.computing)
            worker.computing = ""
        elif worker.ended:
            self.finish(worker)
        else:
            self.settle(worker)
            worker.at += 1

    def settle(self, worker: Worker) -> None:
        call = worker.call
        if not worker.left.isdisjoint(call.needs):
            worker.left.add(call.key)
        elif self.locked(call.key):
            worker.locked.add(call.key)
            worker.left.add(call.key)
        elif not self.stored(call.key):
            worker.computing = call.key

    def finish(self, worker: Worker) -> None:
        self.leave(worker)
        if worker.left:
            worker.entry.locked = worker.locked
            self.schedule.add(worker.entry)
        else:
            self.completed.append(self.schedule.drop(worker.entry.number).number)

    def die(self, worker: Worker) -> None:
        """Lose what it was computing; its trial is retried, or fails."""
        self.leave(worker)
        if self.random.random() < 0.5:
            self.schedule.add(worker.entry)
        else:
            self.failed.append(self.schedule.drop(worker.entry.number).number)

    def leave(self, worker: Worker) -> None:
        self.busy.remove(worker)
        self.free += 1

    def release(self, key: str) -> None:
        """End another process's work on a stage: it stored it, or was killed."""
        self.others.remove(key)
        self.released.add(key)
        if self.random.random() < 0.5:
            self.store(key)


@st.composite
def studies(draw: st.DrawFn) -> Trials:
    """Draw trials over one graph of up to eight stages: some stages each, and all they need."""
    count = draw(st.integers(1, 8))
    needs = [
        draw(st.sets(st.integers(0, n - 1), max_size=2)) if n else set() for n in range(count)
    ]
    trials = []
    for _ in range(draw(st.integers(1, 5))):
        wanted = draw(st.sets(st.integers(0, count - 1), min_size=1, max_size=3))
        for n in reversed(range(count)):
            wanted |= needs[n] if n in wanted else set()
        trials.append([call(n, needs[n]) for n in sorted(wanted)])
    return trials


def call(number: int, needs: set[int]) -> Call:
    return Call("some", f"{number:02}", False, None, tuple(f"{one:02}" for one in sorted(needs)))


laws = settings(deadline=None, max_examples=150)
workers = st.integers(1, 4)
orders = st.randoms(use_true_random=False)


def played(
    trials: Trials, workers: int, random: Random, deaths: int = 0, others: float = 0.0
) -> World:
    """Play until the end, when other processes compute that share of the stages."""
    keys = sorted({call.key for calls in trials for call in calls})
    with tempfile.TemporaryDirectory() as home:
        world = World(Path(home), trials, workers, random)
        world.others = {key for key in keys if random.random() < others}
        world.run(deaths)
    assert world.free == workers and len(world.schedule) == 0
    return world


@laws
@given(studies(), workers, orders)
def test_every_trial_ends_and_every_stage_is_computed_once(trials, workers, random):
    world = played(trials, workers, random)
    assert sorted(world.completed) == list(range(len(trials)))
    assert world.computed == dict.fromkeys({call.key for calls in trials for call in calls}, 1)


@laws
@given(studies(), workers, orders)
def test_the_same_holds_beside_other_processes_that_may_be_killed(trials, workers, random):
    world = played(trials, workers, random, others=0.3)
    assert sorted(world.completed) == list(range(len(trials)))
    assert world.computed == dict.fromkeys({call.key for calls in trials for call in calls}, 1)


@laws
@given(studies(), workers, orders)
def test_the_same_holds_when_workers_are_killed_and_trials_fail(trials, workers, random):
    world = played(trials, workers, random, deaths=4)
    assert sorted(world.completed + world.failed) == list(range(len(trials)))
    needed = {call.key for number in world.completed for call in trials[number]}
    assert needed <= world.computed.keys() and set(world.computed.values()) <= {1}


def scheduled(home: Path, *trials: list[Call]) -> Schedule:
    return World(home, list(trials), 0, Random(0)).schedule


def numbers(entry: Entry | None) -> int | None:
    return None if entry is None else entry.number


def test_no_trial_waits_for_the_stages_of_one_that_failed(tmp_path):
    schedule = scheduled(tmp_path, [call(0, set())], [call(0, set()), call(1, set())])
    first, second = schedule.pick(), schedule.pick()
    assert first is not None and second is not None
    second.locked = {"00"}
    schedule.add(second)
    ObjectStore(tmp_path).folder("01").mkdir(parents=True)
    assert schedule.pick() is None
    schedule.drop(first.number)
    assert schedule.pick() is second


def test_a_trial_waits_for_another_process_until_its_output_is_stored_or_nothing_else_is_left(
    tmp_path,
):
    schedule = scheduled(tmp_path, [call(0, set())], [call(0, set()), call(1, {0})])
    for entry in (schedule.pick(), schedule.pick(blocking=True)):
        assert entry is not None
        entry.locked = {"00"}
        schedule.add(entry)
    assert schedule.pick() is None
    ObjectStore(tmp_path).folder("00").mkdir(parents=True)
    assert [numbers(schedule.pick()) for _ in range(3)] == [0, 1, None]


def test_a_trial_all_of_whose_stages_are_stored_can_start_beside_any_other(tmp_path):
    ObjectStore(tmp_path).folder("00").mkdir(parents=True)
    schedule = scheduled(tmp_path, [call(0, set()), call(1, {0})], [call(0, set())])
    assert [numbers(schedule.pick()) for _ in range(3)] == [0, 1, None]
    assert len(schedule) == 2 and schedule.waiting == []
