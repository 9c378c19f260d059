"""A worker's part of a trial: it runs all stages that no other process is computing."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from moist.config.systems import CURVES
from moist.env import make_env
from moist.pipeline import stages
from moist.store import nonblocking
from moist.store.artifacts import Cascade
from moist.store.remote import remote_of
from moist.store.runs import RunRecords
from moist.store.store import Store
from moist.study.events import Completed, Deferred, EventProgress, Send
from moist.study.executor import Task
from moist.systems.outputs import Outputs, report_of


@dataclass(frozen=True)
class Trainer:
    """Runs trials with the stages of one home folder; `reuse=False` recomputes them all.

    `store` is the URL of a store that the home shares its outputs with.
    """

    home: Path
    reuse: bool = True
    store: str | None = None

    def __call__(self, send: Send, task: Task, device: str | None, threads: int) -> None:
        env = make_env(EventProgress(send, task.number), device, threads)
        if task.timed_on not in {None, env.machine()}:
            env = replace(env, timed_on=task.timed_on)
        kind = Store if task.blocking or not self.reuse else nonblocking.NonBlockingStore
        remote = remote_of(self.store) if self.store else None
        store = kind(self.home, env, self.reuse, remote)
        try:
            out = stages(task.config, store)
            if isinstance(store, nonblocking.NonBlockingStore):
                store.check()
            report, accuracies = report_of(task.config, out, store.calls), curves(out)
        except nonblocking.Deferred as deferred:
            send(Deferred(task.number, tuple(deferred.locked)))
            return
        RunRecords(self.home).save(
            command=task.command,
            config=task.config,
            report=report,
            artifacts=store.keys(),
            computed=store.computed(),
        )
        send(Completed(task.number, report, accuracies))


def curves(out: Outputs) -> dict[str, list[float]]:
    """Return validation accuracies by epoch, for the stages in CURVES.

    Empty without a validation split.
    """
    models = [*out.models.named().values(), out.models.fallback]
    trained = {model.stage: model.value for model in models if model and model.stage in CURVES}
    return {
        stage: [row["val_accuracy"] for row in model.history if "val_accuracy" in row]
        for stage, model in trained.items()
        if not isinstance(model, Cascade)
    }
