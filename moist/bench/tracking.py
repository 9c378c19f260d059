"""The time of logging a trial to W&B offline."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from moist import pipeline
from moist.bench.rows import Row, row
from moist.config import Config
from moist.config.systems import epochs_of
from moist.errors import StoreError
from moist.results.report import Report
from moist.store.store import Store
from moist.tracking.client import RunInfo
from moist.tracking.journal import summary_of
from moist.tracking.mode import Mode
from moist.tracking.tracker import Tracker


def tracking_cost(config: Config, store: Store, *, rounds: int, trials: int) -> list[Row]:
    """Measure the time of logging a whole trial, of `trials` at a time, against its training.

    Each trial opens a run and logs a row for every epoch of `config`, its stages and its end. Once
    per process, wandb is imported and starts its own process: `seconds_to_start`. The training is
    run first, unless it is stored.
    """
    report = pipeline.run(config, store)
    problems: list[str] = []
    with tempfile.TemporaryDirectory(prefix="moist-bench-") as home:

        def seconds(numbers: range) -> float:
            begin = time.perf_counter()
            with Tracker(
                Mode("offline", "for the benchmark"), Path(home), problems.append
            ) as tracker:
                for number in numbers:
                    _log_trial(tracker, config, report, number)
            return time.perf_counter() - begin

        first = seconds(range(1))
        starts = range(1, rounds * trials, trials)
        ms = [1e3 * seconds(range(start, start + trials)) / trials for start in starts]
    if problems:
        raise StoreError(problems[0], "is there room on the disk?")
    return [
        row(
            "tracking", "logging a trial to W&B, offline", "its training",
            ms, [1e3 * report.seconds] * rounds,
            rows_a_trial=sum(epochs_of(config).values()), seconds_to_start=first,
        )
    ]  # fmt: skip


def _log_trial(tracker: Tracker, config: Config, report: Report, number: int) -> None:
    id, name = f"bench-{number:05d}", f"bench {number}"
    info = RunInfo(id, name, job_type="trial", config={"trial": number}, group="bench")
    journal = tracker.open(info, config)
    row = {"loss": 1.0, "lr": 1e-3, "images_per_second": 1e4, "val_accuracy": 0.5}
    for stage, epochs in epochs_of(config).items():
        for epoch in range(1, epochs + 1):
            journal.log_epoch(stage, epoch, row)
    for stage, seconds in report.stage_seconds.items():
        journal.log_stage(stage, seconds, reused=False)
    journal.end("complete", summary_of({"accuracy": 0.5, "mflops": 1.0}, {"accuracy": 0.5}))
