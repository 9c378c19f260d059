"""What sharing stages saves, and what a trial costs beyond its pipeline: measured, not claimed."""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from collections.abc import Collection
from itertools import pairwise
from pathlib import Path
from typing import Any

from moist import pipeline
from moist.bench.noop import NoPipeline
from moist.env import Env
from moist.errors import StoreError
from moist.results.objectives import DEFAULT
from moist.results.queries import members
from moist.results.trials import Trial
from moist.store.store import Store
from moist.study.driver import Driver
from moist.study.foresight import Foresight
from moist.study.ledger import opened
from moist.study.ref import StudyRef, url_of
from moist.study.schedule import Entry
from moist.study.search import describe, search, slots
from moist.study.settings import Outcome, Settings
from moist.study.tracking import Told
from moist.study.workers import Message, Pool
from moist.sweepfile import Sweep, config_of
from moist.tracking.mode import Mode
from moist.tracking.tracker import Tracker


class Clock:
    """Notes when each trial was told."""

    def __init__(self) -> None:
        self.told_at: list[float] = []

    def started(self, entry: Entry) -> None: ...
    def heard(self, entry: Entry, message: Message) -> None: ...
    def warned(self, text: str) -> None: ...
    def unwanted(self) -> Collection[int]:
        return ()

    def told(self, trial: Trial, how: str) -> None:
        self.told_at.append(time.perf_counter())


def sharing(
    sweep: Sweep, *, trials: int, workers: int, threads: int | None, folder: Path | None = None
) -> dict[str, Any]:
    """The same sweep with and without shared stages, each in a home of its own.

    Random draws, so that both run the same trials whatever they find. Compute is the sum of the
    seconds of all stages computed. The homes are deleted again.
    """
    found, places = {}, slots(None, workers, threads)
    for name, reuse in (("shared", True), ("alone", False)):
        home = Path(tempfile.mkdtemp(prefix="moist-bench-", dir=folder))
        try:
            found[name] = search(
                StudyRef(name, url_of(None, home), home),
                sweep,
                describe(sweep, DEFAULT, 0, "moist bench sweep"),
                Settings(trials, sampler="random", best={}, reuse=reuse),
                slots=places,
            )
        finally:
            shutil.rmtree(home)
    shared, alone = found["shared"], found["alone"]
    return {
        "ratio": alone.tally.seconds / shared.tally.seconds,
        "seconds_shared": shared.tally.seconds,
        "seconds_alone": alone.tally.seconds,
        "stages_shared": shared.tally.computed,
        "stages_alone": alone.tally.computed,
        "trials": len(shared.trials),
        "same_frontier": frontier_of(shared) == frontier_of(alone),
        "frontier": frontier_of(shared),
    }


def frontier_of(outcome: Outcome) -> list[dict[str, Any]]:
    """Parameters and values of the frontier's members."""
    front = members(outcome.trials, DEFAULT)
    return [{"params": trial.params, "values": trial.values} for trial in front]


def overhead(sweep: Sweep, *, trials: int, last: int = 50) -> dict[str, Any]:
    """What a trial of a TPE study costs beside its pipeline, which does nothing here.

    Drawing, planning, a process of its own, the run's record, telling, note and files for the
    dashboard, a W&B run in files. One run of the sweep's defaults is trained first, for its
    report. Milliseconds.
    """
    home = Path(tempfile.mkdtemp(prefix="moist-bench-"))
    try:
        store = Store(home, Env())
        report = pipeline.run(config_of(sweep, {}), store)
        clock = Clock()
        described = describe(sweep, DEFAULT, 0, "moist bench overhead")
        work = NoPipeline(home, report)
        ref = StudyRef("overhead", url_of(None, home), home)
        with (
            opened(ref, described) as ledger,
            Pool(work, slots(None, 1, 1), home / "logs") as pool,
            Tracker(Mode("offline", "as the benchmark says"), home, _refuse) as tracker,
        ):
            watch = Told(clock, tracker, "overhead", described)
            settings = Settings(trials, sampler="tpe", best={})
            foresee = Foresight(store).plan
            Driver(ref, ledger, sweep, pool, foresee, settings, watch, seed=0).run()
    finally:
        shutil.rmtree(home)
    taken = [1e3 * (b - a) for a, b in pairwise(clock.told_at)]
    return {
        "trials": len(clock.told_at),
        "ms_a_trial": statistics.fmean(taken),
        "ms_median": statistics.median(taken),
        "ms_median_of_the_last": statistics.median(taken[-last:]),
        "last": last,
    }


def _refuse(trouble: str) -> None:
    raise StoreError(trouble, "is there room on the disk?")
