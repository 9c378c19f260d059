"""What a worker does with a trial: all stages it can, without waiting for another's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moist.config.overrides import build
from moist.config.systems import CURVES
from moist.env import make_env
from moist.pipeline import stages
from moist.results.objectives import quantities, reported
from moist.store.artifacts import Cascade
from moist.store.nonblocking import Deferred, NonBlockingStore
from moist.store.runs import RunRecords
from moist.store.store import Store
from moist.study.workers import Kind, Task
from moist.systems.outputs import Outputs, report_of

Send = Callable[[Kind, dict[str, Any]], None]


class Telling:
    """Progress as messages to the driver."""

    def __init__(self, send: Send) -> None:
        self.send = send

    def started(self, stage: str, key: str) -> None:
        self.send("stage", {"stage": stage, "key": key, "state": "started", "seconds": 0.0})

    def advanced(self, stage: str, done: int, total: int, metrics: Mapping[str, float]) -> None:
        self.send("epoch", {"stage": stage, "done": done, "total": total, **metrics})

    def finished(self, stage: str, key: str, seconds: float) -> None:
        self.send("stage", {"stage": stage, "key": key, "state": "computed", "seconds": seconds})

    def reused(self, stage: str, key: str, seconds: float) -> None:
        self.send("stage", {"stage": stage, "key": key, "state": "reused", "seconds": seconds})

    def warned(self, message: str) -> None:
        self.send("warned", {"text": message})


@dataclass(frozen=True)
class Trainer:
    """Runs trials with the stages of one home folder; `reuse=False` computes all afresh."""

    home: Path
    reuse: bool = True

    def __call__(self, send: Send, task: Task, device: str | None, threads: int) -> None:
        env = make_env(Telling(send), device, threads)
        kind = Store if task.patient or not self.reuse else NonBlockingStore
        store = kind(self.home, env, self.reuse)
        config = build(task.config)
        try:
            out = stages(config, store)
            if isinstance(store, NonBlockingStore):
                store.check()
            report, foretold = report_of(config, out, store.calls), curves(out)
        except Deferred as deferred:
            send("held", {"keys": deferred.locked})
            return
        RunRecords(self.home).save(
            command=task.command, config=config, report=report, artifacts=store.keys()
        )
        send(
            "done",
            {
                "found": quantities(report),
                "key": report.key,
                "reported": reported(report),
                "curves": foretold,
            },
        )


def curves(out: Outputs) -> dict[str, list[float]]:
    """Validation accuracy after each epoch of the stages that foretell the model's; empty
    without a validation split."""
    trained = {
        model.stage: model.value for model in out.models.named().values() if model.stage in CURVES
    }
    return {
        stage: [row["val_accuracy"] for row in model.history if "val_accuracy" in row]
        for stage, model in trained.items()
        if not isinstance(model, Cascade)
    }
