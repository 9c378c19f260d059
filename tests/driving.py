"""Drivers as processes of their own: watched until something is seen, then killed."""

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
    """Forks drivers from a process that has imported all; they start servers of their own.

    In place of one that another test may have started, which has not.
    """
    forkserver._forkserver._stop()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    return context


@dataclass(frozen=True)
class Driving:
    """A driver at work, in a session of its own, and what it said."""

    process: Any
    said: Path

    @property
    def text(self) -> str:
        return self.said.read_text() if self.said.exists() else ""

    @property
    def name(self) -> str:
        """What it calls itself."""
        return f"process {self.process.pid} on {socket.gethostname()}"

    def family(self) -> list[psutil.Process]:
        """All processes that it started, directly or not."""
        try:
            return psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def workers(self) -> list[psutil.Process]:
        """Those that its servers started."""
        found = []
        for process in self.family():
            try:
                if process.ppid() != self.process.pid and alive(process):
                    found.append(process)
            except psutil.NoSuchProcess:
                continue
        return found

    def until(self, seen: Callable[[], T]) -> T:
        """Wait for what it does; it must not end before."""
        deadline = time.monotonic() + PATIENCE
        while not (found := seen()):
            if not self.process.is_alive() or time.monotonic() > deadline:
                self.process.kill()
                pytest.fail(f"it never got there:\n{self.text}")
            time.sleep(0.01)
        return found

    def kill(self) -> None:
        """SIGKILL, and see that nobody whom it started survives it."""
        family = self.family()
        self.process.kill()
        self.process.join(PATIENCE)
        assert self.process.exitcode == -signal.SIGKILL, self.text
        await_end(family)

    def finish(self) -> int:
        """Its exit code, once neither it nor any process of it is left."""
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
    """A process that runs a function with these words and a file to say things on."""
    said = home.with_name(f"{home.name}-{uuid4().hex}.txt")
    process = server().Process(target=target, args=(*words, said))
    process.start()
    return Driving(process, said)


def alive(process: psutil.Process) -> bool:
    """Whether it can still do anything: the dead may wait to be noticed."""
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
    """When each run was recorded."""
    return {run.key: run.created for run in RunRecords(home).all()}


def trials(home: Path, study: str = "toy", storage: str | None = None) -> list[Trial]:
    return load(toy.ref(home, study, storage))[1]
