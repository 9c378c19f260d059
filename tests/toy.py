"""A study whose trials cost nothing and follow a script, with a real driver and real workers.

Nothing heavy is imported here, as every worker imports it.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from moist.config import Config
from moist.errors import MoistError
from moist.interrupts import Interrupted, handled
from moist.results.objectives import DEFAULT
from moist.results.report import Baselines, Machine, Measures, Report
from moist.store.objects import ObjectStore
from moist.store.runs import RunRecords
from moist.study.events import (
    Completed,
    Deferred,
    EpochDone,
    Send,
    StageFinished,
    StageStarted,
    Warned,
)
from moist.study.executor import Task
from moist.study.ref import StudyRef, database_of
from moist.study.workers import Pool, Slot

PRELOAD = ("moist.store.runs", "moist.config.overrides", "moist.study.workers", "pytest")
"""Imports of a worker's server: a second less than for a real pipeline, a hundred times."""

PATIENCE = 120.0
"""Seconds after which a test that waits fails."""

SWEEP = """
program: moist
method: bayes
metric: {name: objective/accuracy, goal: maximize}
command: ["${env}", moist, run, "${args_no_hyphens}"]
parameters:
  k: {values: [2, 3, 4, 5]}
  hidden_width: {distribution: q_log_uniform_values, min: 4, max: 512}
  temperature: {distribution: log_uniform_values, min: 1.0, max: 10.0}
"""

MEASURES: dict[str, Any] = {
    "accuracy": 0.5, "val_accuracy": 0.5, "loss": 1.0, "ece": 0.1, "per_class_accuracy": {},
    "mflops": 1.0, "mmacs": 1.0, "params": 7, "bytes": 28, "latency_ms": None,
    "latency_p95_ms": None, "latency_n": None,
}  # fmt: skip


def key_of(config: Config) -> str:
    text = json.dumps([config.k, config.hidden_width, config.temperature])
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def report(config: Config) -> Report:
    """Make up a report: more width and less heat help, more students a little."""
    assert config.k != "auto"
    accuracy = config.hidden_width / (config.hidden_width + 30 * config.temperature / config.k)
    found = MEASURES | {"val_accuracy": accuracy, "mflops": float(config.hidden_width)}
    one = Measures(**MEASURES)
    return Report(
        **found, upper_bound=False, routing_accuracy=0.5, per_cluster_accuracy=(),
        per_cluster_routing_accuracy=(), k=config.k, clusters=(), sent={}, silhouette={},
        n_test=3, n_val=3, baselines=Baselines(teacher=one, student=one, oracle=one),
        key=key_of(config), seconds=1.5, stage_seconds={},
        machine=Machine(device="cpu", threads=1, torch="2", system="x"),
    )  # fmt: skip


@dataclass(frozen=True)
class Do:
    """A step of a script that is no event: see `Attempt.act`."""

    what: str
    about: Any = None


Step = Do | EpochDone | StageStarted | StageFinished | Warned | Deferred
"""What a worker does, or an event that it reports: the trial's number is filled in."""
Script = Mapping[int, Sequence[Step]]

WAIT = (Do("wait"),)
DIE = (Do("die"),)
DIE_ONCE = (Do("die once"),)
FAIL = (Do("raise", ValueError("no such\nthing: [bold]really[/bold]")),)
LINGER = (Do("complete"), Do("linger"))


def epochs(stage: str, *accuracies: float) -> list[Step]:
    """Report the epochs of a stage, with these validation accuracies."""
    return [
        EpochDone(None, stage, done, len(accuracies), {"val_accuracy": accuracy})
        for done, accuracy in enumerate(accuracies, 1)
    ]


def computed(key: str, seconds: float) -> Step:
    return StageFinished(None, f"stage_{key}", key, seconds, reused=False)


def reused(key: str, seconds: float) -> Step:
    return StageFinished(None, f"stage_{key}", key, seconds, reused=True)


@dataclass(frozen=True)
class Toy:
    """A worker's work: the steps of its trial's script, or of `again` at a further attempt.

    Without `again` every attempt follows the script. With `stage` each trial has a stage of that
    name, which takes 0.25 s on record. A device called "broken" kills, and one called "faulty"
    fails like a GPU.
    """

    home: Path
    script: Script = field(default_factory=dict)
    again: Script | None = None
    stage: str = ""

    def __call__(self, send: Send, task: Task, device: str | None, _threads: int) -> None:
        signal.alarm(int(PATIENCE))  # a test that fails must not hang
        try:
            self.follow(send, task, device)
        finally:
            signal.alarm(0)  # `inline` runs in the process of the tests

    def follow(self, send: Send, task: Task, device: str | None) -> None:
        number, key = task.number, key_of(task.config)
        if self.stage:
            send(StageStarted(number, self.stage, key))
        first = number not in numbers(self.home)
        self.note(task, device)
        if device == "broken":
            os.kill(os.getpid(), signal.SIGKILL)
        if device == "faulty":
            raise RuntimeError("CUDA error: an illegal memory access was encountered\nand more")
        script = self.script if first or self.again is None else self.again
        trial = Attempt(self, task, send, report(task.config))
        for step in script.get(number, ()):
            trial.take(step)
        if not trial.ended:
            trial.complete()

    def note(self, task: Task, device: str | None) -> None:
        """Write a line for each attempt, so that a test can count them."""
        with (self.home / "attempts").open("a") as file:
            found = {"number": task.number, "device": device, "worker": os.getpid()}
            file.write(json.dumps(found | {"blocking": task.blocking}) + "\n")


@dataclass
class Attempt:
    """One attempt at a trial: where it sends events, and what it will have found."""

    toy: Toy
    task: Task
    send: Send
    report: Report
    curves: dict[str, list[float]] = field(default_factory=dict)
    ended: bool = False

    def take(self, step: Step) -> None:
        if isinstance(step, Do):
            self.act(step.what, step.about)
            return
        if isinstance(step, EpochDone):
            self.curves.setdefault(step.stage, []).append(step.metrics["val_accuracy"])
        self.send(replace(step, number=self.task.number))
        self.ended = isinstance(step, Deferred)

    def act(self, what: str, about: Any) -> None:
        home = self.toy.home
        if what == "find":  # this accuracy
            self.report = self.report.model_copy(update={"val_accuracy": about})
        elif what == "store":  # an output of this key
            ObjectStore(home).folder(about).mkdir(parents=True)
        elif what == "await":  # a byte in this pipe
            (home / about).open("rb").read(1)
        elif what == "wait":  # for the file `go`
            until(lambda: (home / "go").exists())
        elif what == "linger":  # until another worker has begun
            if not until(lambda: len(attempts(home)) > self.task.number + 1):
                (home / "alone").touch()
        elif what == "raise":  # this error
            raise about
        elif what == "allocate":  # too much
            import torch

            torch.empty(1 << 50)
        elif what == "hang":
            while True:
                signal.pause()
        elif what == "die" or (what == "die once" and not (home / "died").exists()):
            (home / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        elif what == "complete":
            self.complete()

    def complete(self) -> None:
        self.ended, number = True, self.task.number
        RunRecords(self.toy.home).save(
            command=self.task.command, config=self.task.config, report=self.report, artifacts={}
        )  # all that a killed driver needs is on disk from here on
        if self.toy.stage:
            key = self.report.key
            self.send(StageFinished(number, self.toy.stage, key, 0.25, reused=False))
        self.send(Completed(number, self.report, self.curves))


def until(seen: Callable[[], bool]) -> bool:
    """Wait for something; return whether it came."""
    deadline = time.monotonic() + PATIENCE
    while not seen():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def attempts(home: Path) -> list[dict[str, Any]]:
    """Read the number, device and process of all attempts, and whether they were blocking."""
    path = home / "attempts"
    return list(map(json.loads, path.read_text().splitlines())) if path.exists() else []


def numbers(home: Path, **having: Any) -> list[int]:
    """Return the trials of all attempts, or only of those that have these properties."""
    found = attempts(home)
    return [one["number"] for one in found if having.items() <= one.items()]


def estimate(config: Config) -> Any:
    """Estimate the key of the run, and its cost."""
    from moist.study.costs import CostEstimate

    return CostEstimate(key_of(config), (), {"mflops": float(config.hidden_width)})


@dataclass(frozen=True)
class Start:
    """A driver to start: what it searches in which home, and the commit at which it is killed."""

    home: Path
    trials: int
    workers: int = 1
    study: str = "toy"
    storage: str | None = None
    retries: int = 2
    script: Script = field(default_factory=dict)
    devices: Sequence[str | None] = (None,)
    kill_at: int | None = None


def ref(home: Path, name: str = "toy", storage: str | None = None) -> StudyRef:
    """Refer to a study in a home's own database, or in another."""
    return StudyRef(name, database_of(storage, home), home)


def search(start: Start) -> Any:
    """Drive a study in this process, to the end; return its trials."""
    from moist.disk import write_atomically
    from moist.reporting.progress import SearchProgress
    from moist.study.driver import Driver
    from moist.study.events import StudyOpened
    from moist.study.ledger import opened
    from moist.study.settings import Settings
    from moist.study.spec import study_spec
    from moist.sweepfile import read_sweep

    file = start.home / "toy.yaml"
    write_atomically(file, SWEEP.encode(), durable=False)  # rivals read it meanwhile
    read = read_sweep(file)
    found = ref(start.home, start.study, start.storage)
    places = [Slot(start.devices[i % len(start.devices)], 1) for i in range(start.workers)]
    spec = study_spec(read, DEFAULT, 0, "moist sweep optuna toy.yaml")
    work = Toy(start.home, start.script, stage="toy")
    settings = Settings(start.trials, sampler="tpe", retries=start.retries, best={})
    with (
        opened(found, spec) as ledger,
        Pool(work, places, start.home / "logs", PRELOAD) as pool,
        SearchProgress() as progress,
    ):
        notify = progress.observe
        notify(StudyOpened(start.study, ledger.spec, start.trials))
        Driver(found, ledger, read, pool, estimate, settings, notify).run()
        return ledger.trials()


def drive(start: Start) -> None:
    """Run `search` as a command."""
    if start.kill_at is not None:
        kill_at_commit(start.kill_at)
    try:
        with handled():
            print("driving", flush=True)
            search(start)
    except MoistError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
    except Interrupted as stopped:
        sys.exit(stopped.exit_code)


def kill_at_commit(number: int) -> None:
    """SIGKILL this process just before its database would commit for that many times."""
    from sqlalchemy import Engine, event

    left = [number]

    def count(_connection: Any) -> None:
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    event.listen(Engine, "commit", count)
