"""A pipeline that does nothing, to measure all that is around it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moist.config.overrides import build
from moist.results.objectives import quantities, reported
from moist.results.report import Report
from moist.store.runs import RunRecords
from moist.study.workers import Kind, Task


@dataclass(frozen=True)
class NoPipeline:
    """A worker's work without the work: it records a run, with made-up accuracy, and says so."""

    home: Path
    report: Report

    def __call__(
        self,
        send: Callable[[Kind, dict[str, Any]], None],
        task: Task,
        device: str | None,
        threads: int,
    ) -> None:
        key = hashlib.sha256(str(task.number).encode()).hexdigest()[:32]
        report = self.report.model_copy(update={"key": key, "val_accuracy": task.number % 97 / 97})
        RunRecords(self.home).save(
            command=task.command, config=build(task.config), report=report, artifacts={}
        )
        found = quantities(report) | {"mflops": float(task.config["hidden_width"])}
        send("done", {"found": found, "key": key, "reported": reported(report), "curves": {}})
