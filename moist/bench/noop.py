"""A worker that trains nothing, to measure all that is around a pipeline."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from moist.results.report import Report
from moist.store.runs import RunRecords
from moist.study.events import Completed, Send
from moist.study.workers import Task


@dataclass(frozen=True)
class NoPipeline:
    """A worker's work without the work: it records a run with a made-up accuracy."""

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
