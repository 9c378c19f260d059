"""Workers that say what is written down for them. Nothing heavy is imported: each one imports it.

`toy.report` is what a trial finds: more width and less heat are more accurate, and width is cost.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from toy import key_of, report

from moist.config.overrides import build
from moist.results.objectives import quantities, reported
from moist.store.objects import ObjectStore
from moist.store.runs import RunRecords
from moist.study.workers import Task

PATIENCE = 60

Line = tuple[str, Any]
"""A message to send: its kind, and what about; or what to do: `find` an accuracy, `store` a key,
`await` a byte in a pipe, `raise` an error, `hang` for ever, `die`."""


def epochs(stage: str, *accuracies: float) -> list[Line]:
    """The epochs of a stage, by their validation accuracy."""
    count = len(accuracies)
    return [
        ("epoch", {"stage": stage, "done": done, "total": count, "val_accuracy": accuracy})
        for done, accuracy in enumerate(accuracies, 1)
    ]


def stage(key: str, state: str, seconds: float = 0.0) -> Line:
    return ("stage", {"stage": f"stage_{key}", "key": key, "state": state, "seconds": seconds})


@dataclass(frozen=True)
class Scripted:
    """A worker's work: the lines of its trial, or of this attempt at it; then it is done."""

    home: Path
    script: Mapping[int, Sequence[Line]] = field(default_factory=dict)
    again: Mapping[int, Sequence[Line]] = field(default_factory=dict)

    def __call__(
        self, send: Callable[[Any, dict[str, Any]], None], task: Task, device: str | None, _: int
    ) -> None:
        signal.alarm(PATIENCE)  # a test that fails must not hang
        first = self.note(task)
        config, curves = build(task.config), dict[str, list[float]]()
        found = report(config)
        for what, about in (self.script if first else self.again).get(task.number, ()):
            if what == "store":
                ObjectStore(self.home).folder(about).mkdir(parents=True)
            elif what == "await":
                (self.home / about).open("rb").read(1)
            elif what == "find":
                found = found.model_copy(update={"val_accuracy": about})
            elif what in {"raise", "hang", "die"}:
                end(what, about)
            else:
                send(what, about)
            if what == "held":
                return
            if what == "epoch":
                curves.setdefault(about["stage"], []).append(about["val_accuracy"])
        RunRecords(self.home).save(command=task.command, config=config, report=found, artifacts={})
        said = {"found": quantities(found), "key": key_of(config), "reported": reported(found)}
        send("done", {**said, "curves": curves})

    def note(self, task: Task) -> bool:
        """A line for each attempt; whether it is the first at this trial."""
        first = task.number not in attempts(self.home)
        with (self.home / "attempts").open("a") as file:
            file.write(f"{task.number} {'patient' if task.patient else ''}\n")
        return first


def end(how: str, error: Any) -> None:
    if how == "raise":
        raise error
    while how == "hang":
        signal.pause()
    os.kill(os.getpid(), signal.SIGKILL)


def attempts(home: Path, only: str = "") -> list[int]:
    """The trials that workers were started for, in order; or `only` the patient ones."""
    path = home / "attempts"
    lines = path.read_text().splitlines() if path.exists() else []
    return [int(line.split()[0]) for line in lines if only in line]
