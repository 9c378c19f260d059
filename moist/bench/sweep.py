"""The compute saved by shared stages, and the overhead of a trial beside its pipeline."""

from __future__ import annotations

import hashlib
import shutil
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import numpy as np
import psutil

from moist import pipeline
from moist.bench.rows import Row, row
from moist.env import Env
from moist.errors import StoreError
from moist.reporting.progress import SearchProgress
from moist.results.objectives import DEFAULT
from moist.results.queries import members
from moist.results.report import Report
from moist.store.runs import RunRecords
from moist.store.store import Store
from moist.study.costs import CostEstimator
from moist.study.driver import Driver
from moist.study.events import (
    Completed,
    Event,
    Send,
    StudyOpened,
    TrialEnded,
    WorkerEvent,
    broadcast,
)
from moist.study.executor import Capacity, Executor, Task, Work
from moist.study.ledger import opened
from moist.study.ref import StudyRef, database_of
from moist.study.samplers import MAKERS, suggest
from moist.study.search import search
from moist.study.settings import SearchResult, Settings
from moist.study.spec import study_spec
from moist.study.tracking import WandbObserver
from moist.study.workers import Engine, Pool, Slot, make_slots
from moist.sweepfile import Sweep, config_of
from moist.tracking.mode import Mode
from moist.tracking.tracker import Tracker


@dataclass(frozen=True)
class NoPipeline:
    """A worker's task that trains nothing: it records a run with a made-up accuracy."""

    home: Path
    report: Report

    def __call__(self, send: Send, task: Task, device: str | None, threads: int) -> None:
        key = hashlib.sha256(str(task.number).encode()).hexdigest()[:32]
        made_up = {
            "key": key,
            "val_accuracy": task.number % 97 / 97,
            "mflops": float(task.config.hidden_width),
        }
        report = self.report.model_copy(update=made_up)
        RunRecords(self.home).save(
            command=task.command, config=task.config, report=report, artifacts={}
        )
        send(Completed(task.number, report, {}))


class Clock:
    """An observer that records when each trial ends, less what simulated workers took so far."""

    def __init__(self, executor: Executor) -> None:
        self.executor = executor
        self.times: list[float] = []

    def observe(self, event: Event) -> None:
        if isinstance(event, TrialEnded):
            simulated = getattr(self.executor, "seconds", 0.0)
            self.times.append(time.perf_counter() - simulated)


def sharing(
    sweep: Sweep, *, trials: int, workers: int, threads: int | None, folder: Path | None = None
) -> list[Row]:
    """Run the same sweep with and without shared stages, each in a home of its own.

    Draws are random, so that both run the same trials whatever their results. Compute is the sum
    of the seconds of all stages computed. The homes are deleted afterwards.
    """
    found, slots = {}, make_slots(None, workers, threads)
    for name, reuse in (("shared", True), ("alone", False)):
        home = Path(tempfile.mkdtemp(prefix="moist-bench-", dir=folder))
        try:
            with SearchProgress() as progress:
                found[name] = search(
                    StudyRef(name, database_of(None, home), home),
                    sweep,
                    study_spec(sweep, DEFAULT, 0, "moist bench sweep"),
                    Settings(trials, sampler="random", best={}, reuse=reuse),
                    slots=slots,
                    observers=[progress],
                )
        finally:
            shutil.rmtree(home)
    shared, alone = found["shared"], found["alone"]
    return [
        row(
            "sweep", f"the stages of {len(shared.trials)} trials, shared", "not shared",
            [1e3 * shared.stats.seconds], [1e3 * alone.stats.seconds],
            stages=shared.stats.computed, baseline_stages=alone.stats.computed,
            same_frontier=frontier_of(shared) == frontier_of(alone),
        )
    ]  # fmt: skip


def frontier_of(result: SearchResult) -> list[dict[str, Any]]:
    """Return parameters and values of the frontier's members."""
    front = members(result.trials, DEFAULT)
    return [{"params": trial.params, "values": trial.values} for trial in front]


class Simulated:
    """Workers in this process: a task is done when `wait` comes to it, in `seconds` of them all.

    An `Executor` of as many workers as slots, for what a driver of that many can do.
    """

    def __init__(self, work: Work, slots: Sequence[Slot], logs: Path) -> None:
        self.work, self.slots, self.logs = work, slots, logs
        self.tasks = deque[Task]()
        self.seconds = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.tasks.clear()

    def capacity(self) -> Capacity:
        """Return that of all slots."""
        return Capacity(len(self.slots))

    def submit(self, task: Task) -> None:
        """Queue a task."""
        self.tasks.append(task)

    def wait(self, timeout: float) -> list[WorkerEvent]:
        """Do the oldest task."""
        found: list[WorkerEvent] = []
        if self.tasks:
            start = time.perf_counter()
            self.work(found.append, self.tasks.popleft(), None, 1)  # type: ignore[arg-type]
            self.seconds += time.perf_counter() - start
        return found

    def cancel(self, number: int) -> None:
        """Forget a task."""
        self.tasks = deque(task for task in self.tasks if task.number != number)

    def paused(self) -> AbstractContextManager[None]:
        """Do nothing."""
        return nullcontext()


def overhead(
    sweep: Sweep,
    *,
    trials: int,
    slots: Sequence[Slot],
    engine: Engine = Pool,
    sampler: str = "tpe",
) -> list[Row]:
    """Measure the time that a trial of a study takes beside its pipeline, against Optuna's.

    The pipeline does nothing. What remains is sampling, planning, the worker process, the run's
    record, the study's database, note and files for the dashboard, and an offline W&B run. One run
    of the sweep's defaults is trained first, for its report. Optuna alone draws and records as
    many trials of the same space in a database. A measurement is a fifth of the study.
    """
    home = Path(tempfile.mkdtemp(prefix="moist-bench-"))
    try:
        store = Store(home, Env())
        report = pipeline.run(config_of(sweep, {}), store)
        before = _megabytes()
        spec = study_spec(sweep, DEFAULT, 0, "moist bench overhead")
        work = NoPipeline(home, report)
        ref = StudyRef("overhead", database_of(None, home), home)
        with (
            opened(ref, spec) as ledger,
            engine(work, slots, home / "logs") as executor,
            Tracker(Mode("offline", "for the benchmark"), home, _fail) as tracker,
        ):
            clock = Clock(executor)
            notify = broadcast([clock, WandbObserver(tracker)])
            notify(StudyOpened(ref.name, ledger.spec, trials))
            settings = Settings(trials, sampler=sampler, best={})
            estimate = CostEstimator(store).plan
            Driver(
                ref, ledger, sweep, executor, estimate=estimate, settings=settings, notify=notify
            ).run()
            bare = bare_optuna(sweep, home / "bare.db", trials, sampler)
    finally:
        shutil.rmtree(home)
    each = [1e3 * (b - a) for a, b in pairwise(clock.times)]
    return [
        row(
            "overhead", f"a trial of a {sampler} study that trains nothing", "Optuna alone",
            _fifths(each), _fifths(bare),
            trials=len(clock.times), mean_ms=statistics.fmean(each),
            megabytes=_megabytes(), megabytes_before=before,
        )
    ]  # fmt: skip


def bare_optuna(sweep: Sweep, file: Path, trials: int, sampler: str) -> list[float]:
    """Return the milliseconds of each trial of a study of Optuna's own, without moist."""
    import optuna

    study = optuna.create_study(
        storage=f"sqlite:///{file}",
        sampler=MAKERS[sampler](0, True),
        directions=["maximize", "minimize"],
    )
    times = [time.perf_counter()]
    for number in range(trials):
        trial = study.ask()
        params = suggest(sweep, trial)
        study.tell(trial, (number % 97 / 97, float(params.get("hidden_width", 1))))
        times.append(time.perf_counter())
    return [1e3 * (b - a) for a, b in pairwise(times)]


def _fifths(taken: Sequence[float]) -> list[float]:
    """Return the median of each fifth, in order; fewer than 5 are as they are."""
    parts = np.array_split(taken, min(5, len(taken)))
    return [float(np.median(part)) for part in parts]


def _megabytes() -> float:
    """Return the resident memory of this process."""
    return float(psutil.Process().memory_info().rss) / 1e6


def _fail(problem: str) -> None:
    raise StoreError(problem, "is there room on the disk?")
