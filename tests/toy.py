"""A study whose trials cost nothing, with a real driver and real workers: to be killed.

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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moist.config import Config
from moist.config.overrides import build
from moist.errors import MoistError
from moist.results.objectives import DEFAULT, quantities, reported
from moist.results.report import Baselines, Machine, Measures, Report
from moist.store.runs import RunRecords
from moist.study.ref import StudyRef, url_of
from moist.study.workers import Pool, Slot, Task

PRELOAD = ("moist.store.runs", "moist.config.overrides", "moist.study.workers", "pytest")
"""What a worker's server imports: a second less than for a real pipeline, a hundred times."""

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
    said = json.dumps([config.k, config.hidden_width, config.temperature])
    return hashlib.sha256(said.encode()).hexdigest()[:32]


def report(config: Config) -> Report:
    """What training would find: more width and less heat help, more students a little."""
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
class Toy:
    """A worker's work. What befalls it: by trial number, a word that `befall` knows."""

    home: Path
    fates: Mapping[int, str] = field(default_factory=dict)

    def __call__(
        self, send: Callable[[Any, dict[str, Any]], None], task: Task, device: str | None, _: int
    ) -> None:
        config = build(task.config)
        stage = {"stage": "toy", "key": key_of(config), "seconds": 0.25}
        send("stage", {**stage, "state": "started"})
        self.note(task, device)
        self.befall(self.fates.get(task.number, ""), device, send)
        found = report(config)
        RunRecords(self.home).save(
            command=task.command, config=config, report=found, artifacts={}
        )  # all that a killed driver needs is on disk from here on
        send("stage", {**stage, "state": "computed"})
        facts = {"key": found.key, "reported": reported(found), "curves": {}}
        send("done", {"found": quantities(found), **facts})
        if self.fates.get(task.number) == "lingers":
            self.linger(task)

    def note(self, task: Task, device: str | None) -> None:
        """A line for each attempt, so that a test can count them."""
        with (self.home / "attempts").open("a") as file:
            said = {"number": task.number, "device": device, "worker": os.getpid()}
            file.write(json.dumps(said) + "\n")

    def linger(self, task: Task) -> None:
        """Stay until another worker has begun."""
        deadline = time.monotonic() + PATIENCE
        while len((self.home / "attempts").read_text().splitlines()) <= task.number + 1:
            if time.monotonic() > deadline:
                (self.home / "alone").touch()
                return
            time.sleep(0.01)

    def befall(self, fate: str, device: str | None, send: Callable[..., None]) -> None:
        if fate == "waits":
            while not (self.home / "go").exists():
                time.sleep(0.01)
        elif fate == "dies" or device == "broken":
            os.kill(os.getpid(), signal.SIGKILL)
        elif device == "faulty":
            raise RuntimeError("CUDA error: an illegal memory access was encountered\nand more")
        elif fate == "dies once":
            marker = self.home / "died"
            if not marker.exists():
                marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)
        elif fate == "errs":
            raise ValueError("no such\nthing: [bold]really[/bold]")
        elif fate == "fills memory":
            raise MemoryError
        elif fate == "allocates too much":
            import torch

            torch.empty(1 << 50)
        elif fate == "talks":
            self.befall("waits", device, send)
            send("warned", {"text": "x" * 10_000_000})


def foresee(config: Config) -> Any:
    """Known before training: the key of the run, and its cost."""
    from moist.study.schedule import Foreseen

    return Foreseen(key_of(config), (), {"mflops": float(config.hidden_width)})


@dataclass(frozen=True)
class Start:
    """A start of a driver: what to search in which home, and the commit at which to be killed."""

    home: Path
    trials: int
    workers: int = 1
    study: str = "toy"
    storage: str | None = None
    retries: int = 2
    fates: Mapping[int, str] = field(default_factory=dict)
    devices: Sequence[str | None] = (None,)
    kill_at: int | None = None


PATIENCE = 120.0


def ref(home: Path, name: str = "toy", storage: str | None = None) -> StudyRef:
    """A study in a home's own database, or in another."""
    return StudyRef(name, url_of(storage, home), home)


def search(start: Start) -> Any:
    """Drive a study in this process, to the end: its trials."""
    from moist.reporting.progress import Board
    from moist.study.driver import Driver
    from moist.study.ledger import opened
    from moist.study.search import describe
    from moist.study.settings import Settings
    from moist.sweepfile import read_sweep

    file = start.home / "toy.yaml"
    file.write_text(SWEEP)
    read = read_sweep(file)
    found = ref(start.home, start.study, start.storage)
    places = [Slot(start.devices[i % len(start.devices)], 1) for i in range(start.workers)]
    described = describe(read, DEFAULT, 0, "moist sweep optuna toy.yaml")
    work = Toy(start.home, start.fates)
    settings = Settings(start.trials, sampler="tpe", retries=start.retries, best={})
    with (
        opened(found, described) as ledger,
        Pool(work, places, start.home / "logs", PRELOAD) as pool,
        Board(start.study, DEFAULT, start.trials) as board,
    ):
        Driver(found, ledger, read, pool, foresee, settings, board, seed=0).run()
        return ledger.trials()


def alone(said: Path) -> None:
    """Leave the terminal, as a session of its own that hears signals and speaks to a file."""
    os.setsid()
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    for number in (1, 2):
        os.dup2(os.open(said, os.O_CREAT | os.O_WRONLY | os.O_APPEND), number)


def moist(words: Sequence[str], said: Path) -> None:
    """The command line."""
    from moist.cli.main import main

    alone(said)
    sys.argv = ["moist", *words]
    main()


def drive(start: Start, said: Path) -> None:
    """`search` as a command."""
    alone(said)
    if start.kill_at is not None:
        kill_at_commit(start.kill_at)
    try:
        print("driving", flush=True)
        search(start)
    except MoistError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)


def kill_at_commit(number: int) -> None:
    """SIGKILL this process just before its database would commit for that many times."""
    from sqlalchemy import Engine, event

    left = [number]

    def count(_connection: Any) -> None:
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    event.listen(Engine, "commit", count)
