"""What sharing stages saves, and what a trial costs beyond its pipeline: measured, not claimed."""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from moist import pipeline
from moist.bench.noop import NoPipeline
from moist.env import Env
from moist.errors import StoreError
from moist.reporting.progress import SearchProgress
from moist.results.objectives import DEFAULT
from moist.results.queries import members
from moist.store.store import Store
from moist.study.costs import CostEstimator
from moist.study.driver import Driver
from moist.study.events import Event, StudyOpened, TrialEnded, broadcast
from moist.study.ledger import opened
from moist.study.ref import StudyRef, url_of
from moist.study.search import search
from moist.study.settings import SearchResult, Settings
from moist.study.spec import study_spec
from moist.study.tracking import WandbObserver
from moist.study.workers import Pool, make_slots
from moist.sweepfile import Sweep, config_of
from moist.tracking.mode import Mode
from moist.tracking.tracker import Tracker


class Clock:
    """An observer that notes when each trial ended."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def observe(self, event: Event) -> None:
        if isinstance(event, TrialEnded):
            self.times.append(time.perf_counter())


def sharing(
    sweep: Sweep, *, trials: int, workers: int, threads: int | None, folder: Path | None = None
) -> dict[str, Any]:
    """The same sweep with and without shared stages, each in a home of its own.

    Random draws, so that both run the same trials whatever they find. Compute is the sum of the
    seconds of all stages computed. The homes are deleted again.
    """
    found, slots = {}, make_slots(None, workers, threads)
    for name, reuse in (("shared", True), ("alone", False)):
        home = Path(tempfile.mkdtemp(prefix="moist-bench-", dir=folder))
        try:
            with SearchProgress() as progress:
                found[name] = search(
                    StudyRef(name, url_of(None, home), home),
                    sweep,
                    study_spec(sweep, DEFAULT, 0, "moist bench sweep"),
                    Settings(trials, sampler="random", best={}, reuse=reuse),
                    slots=slots,
                    observers=[progress],
                )
        finally:
            shutil.rmtree(home)
    shared, alone = found["shared"], found["alone"]
    return {
        "ratio": alone.stats.seconds / shared.stats.seconds,
        "seconds_shared": shared.stats.seconds,
        "seconds_alone": alone.stats.seconds,
        "stages_shared": shared.stats.computed,
        "stages_alone": alone.stats.computed,
        "trials": len(shared.trials),
        "same_frontier": frontier_of(shared) == frontier_of(alone),
        "frontier": frontier_of(shared),
    }


def frontier_of(outcome: SearchResult) -> list[dict[str, Any]]:
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
        spec = study_spec(sweep, DEFAULT, 0, "moist bench overhead")
        work = NoPipeline(home, report)
        ref = StudyRef("overhead", url_of(None, home), home)
        with (
            opened(ref, spec) as ledger,
            Pool(work, make_slots(None, 1, 1), home / "logs") as pool,
            Tracker(Mode("offline", "as the benchmark says"), home, _refuse) as tracker,
        ):
            notify = broadcast([clock, WandbObserver(tracker)])
            notify(StudyOpened(ref.name, ledger.spec, trials, 0))
            settings = Settings(trials, sampler="tpe", best={})
            estimate = CostEstimator(store).plan
            Driver(ref, ledger, sweep, pool, estimate, settings, notify).run()
    finally:
        shutil.rmtree(home)
    taken = [1e3 * (b - a) for a, b in pairwise(clock.times)]
    return {
        "trials": len(clock.times),
        "ms_a_trial": statistics.fmean(taken),
        "ms_median": statistics.median(taken),
        "ms_median_of_the_last": statistics.median(taken[-last:]),
        "last": last,
    }


def _refuse(trouble: str) -> None:
    raise StoreError(trouble, "is there room on the disk?")
