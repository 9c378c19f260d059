"""Drivers in processes of their own, to be watched and killed."""

from __future__ import annotations

import os
import pickle
import signal
import socket
import time
from collections.abc import Iterable
from pathlib import Path

import psutil
import toy
from forked import MOIST, PATIENCE, Forked

from moist.results.trials import Trial
from moist.store.runs import RunRecords
from moist.study.storage import load

TOY = "import pickle, sys, toy; toy.drive(pickle.loads(bytes.fromhex(sys.argv[1])))"


class Driving(Forked):
    """A driver at work, with the processes that it started."""

    @property
    def text(self) -> str:
        return self.out + self.err

    @property
    def name(self) -> str:
        """Return its name in messages."""
        return f"process {self.pid} on {socket.gethostname()}"

    def family(self) -> list[psutil.Process]:
        """List all processes that it started, directly or not."""
        try:
            return psutil.Process(self.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def workers(self) -> list[psutil.Process]:
        """List the processes that its servers started."""
        found = []
        for process in self.family():
            try:
                if process.ppid() != self.pid and alive(process):
                    found.append(process)
            except psutil.NoSuchProcess:
                continue
        return found

    def kill(self) -> None:
        """Kill it, and check that no process of it survives."""
        family = self.family()
        os.kill(self.pid, signal.SIGKILL)
        assert self.wait() == -signal.SIGKILL, self.text
        await_end(family)

    def finish(self) -> int:
        """Return its exit code, once neither it nor any process of it is left."""
        family: dict[int, psutil.Process] = {}
        deadline = time.monotonic() + PATIENCE
        while self.poll(0.02) is None and time.monotonic() < deadline:
            family |= {process.pid: process for process in self.family()}
        code = self.wait(0)
        await_end(family.values())
        return code


def start(what: toy.Start) -> Driving:
    return Driving(["-c", TOY, pickle.dumps(what).hex()])


def sweep(*words: object) -> Driving:
    return Driving([*MOIST, "sweep", "optuna", *words])


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
