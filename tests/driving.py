"""Drivers in processes of their own, to be watched and killed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from multiprocessing import forkserver
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import psutil
import pytest
import toy

from moist.results.trials import Trial
from moist.store.runs import RunRecords
from moist.study.storage import load

T = TypeVar("T")

PATIENCE = toy.PATIENCE
PRELOAD = [
    "moist.cli.main",
    "moist.study.search",
    "moist.study.trainer",
    "moist.study.costs",
    "sklearn.cluster",
    "torch._dynamo",
    "optuna.storages._rdb.models",
    "sqlalchemy.dialects.sqlite",
    "alembic.context",
    "alembic.config",
    "alembic.script",
    *toy.PRELOAD,
]


@cache
def server() -> Any:
    """Fork drivers from a process that has imported everything; they start their own servers.

    It replaces one that another test may have started, which has not.
    """
    forkserver._forkserver._stop()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    return context


@dataclass(frozen=True)
class Driving:
    """A driver in a session of its own, and the file of its output."""

    process: Any
    output: Path

    @property
    def text(self) -> str:
        return self.output.read_text() if self.output.exists() else ""

    @property
    def name(self) -> str:
        """Return its name in messages."""
        return f"process {self.process.pid} on {socket.gethostname()}"

    def family(self) -> list[psutil.Process]:
        """List all processes that it started, directly or not."""
        try:
            return psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def workers(self) -> list[psutil.Process]:
        """List the processes that its servers started."""
        found = []
        for process in self.family():
            try:
                if process.ppid() != self.process.pid and alive(process):
                    found.append(process)
            except psutil.NoSuchProcess:
                continue
        return found

    def until(self, seen: Callable[[], T]) -> T:
        """Wait until `seen` is true; the driver must not end before."""
        deadline = time.monotonic() + PATIENCE
        while not (found := seen()):
            if not self.process.is_alive() or time.monotonic() > deadline:
                self.process.kill()
                pytest.fail(f"it did not get there:\n{self.text}")
            time.sleep(0.01)
        return found

    def kill(self) -> None:
        """SIGKILL it, and check that no process of it survives."""
        family = self.family()
        self.process.kill()
        self.process.join(PATIENCE)
        assert self.process.exitcode == -signal.SIGKILL, self.text
        await_end(family)

    def finish(self) -> int:
        """Return its exit code, once neither it nor any process of it is left."""
        family: dict[int, psutil.Process] = {}
        deadline = time.monotonic() + PATIENCE
        while self.process.is_alive() and time.monotonic() < deadline:
            family |= {process.pid: process for process in self.family()}
            self.process.join(0.02)
        assert not self.process.is_alive(), self.text
        await_end(family.values())
        return int(self.process.exitcode)


def start(what: toy.Start) -> Driving:
    return command(toy.drive, what, home=what.home)


def command(target: Callable[..., None], *words: Any, home: Path) -> Driving:
    """Start a process that runs a function with these arguments and a file for its output."""
    output = home.with_name(f"{home.name}-{uuid4().hex}.txt")
    process = server().Process(target=target, args=(*words, output))
    process.start()
    return Driving(process, output)


def alive(process: psutil.Process) -> bool:
    """Return whether it still runs: a zombie does not."""
    try:
        return bool(process.status() not in {psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD})
    except psutil.NoSuchProcess:
        return False


def await_end(processes: Iterable[psutil.Process]) -> None:
    """Fail unless these end on their own."""
    deadline = time.monotonic() + PATIENCE
    left = [process for process in processes if alive(process)]
    while left and time.monotonic() < deadline:
        time.sleep(0.002)
        left = [process for process in left if alive(process)]
    for process in left:
        os.kill(process.pid, signal.SIGKILL)
    assert not left, "these outlived their driver"


def records(home: Path) -> dict[str, str]:
    """Return when each run was recorded."""
    return {run.key: run.created for run in RunRecords(home).all()}


def trials(home: Path, study: str = "toy", storage: str | None = None) -> list[Trial]:
    return load(toy.ref(home, study, storage))[1]
