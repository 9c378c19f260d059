"""W&B's agents at work on this machine: each starts runs with the parameters its server sends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from moist.agents.engine import environment
from moist.agents.register import Registered
from moist.errors import StageError
from moist.study.workers import Slot

TICK = 5.0
"""Seconds between looks at the sweep's runs."""

LEAVE = 20.0
"""Seconds that all have to end their runs when they are asked to; batch systems grant 30."""

BOUND = """
import ctypes, os, signal, sys
parent, *words = sys.argv[1:]
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGINT)
    if os.getppid() != int(parent):
        sys.exit("who started this is gone")
os.execv(sys.executable, [sys.executable, "-m", "wandb", *words])
"""
"""wandb, asked to leave when the process that started it is gone (PR_SET_PDEATHSIG)."""


def shares(count: int, workers: int) -> list[int]:
    """How many runs each agent may start, so that all together start `count`."""
    return [count // workers + (i < count % workers) for i in range(workers)]


@dataclass
class Crew:
    """Processes that work on one sweep, `ENTITY/PROJECT/ID`. Use as a context: whatever happens in
    it, nobody works on afterwards."""

    sweep: str
    home: Path
    agents: list[Member] = field(default_factory=list)
    scheduler: Member | None = None

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *_: object) -> None:
        leave([*self.agents, *([self.scheduler] if self.scheduler else [])])

    def start_agents(self, count: int | None, slots: Sequence[Slot]) -> None:
        """An agent a slot. They start at most `count` runs, all together; without one, until the
        sweep is over."""
        each = [None] * len(slots) if count is None else shares(count, len(slots))
        for i, (slot, share) in enumerate(zip(slots, each, strict=True)):
            if share == 0:
                continue
            limit = [] if share is None else ["--count", str(share)]
            words = ["agent", *limit, "--forward-signals", self.sweep]
            threads = {"OMP_NUM_THREADS": str(slot.threads)}
            self.agents.append(
                self._start(f"agent-{i}", words, threads | visible(slot.device, os.environ))
            )

    def start_scheduler(self, asked: Registered, batch: int) -> None:
        """The process that draws parameters for the server, `batch` runs ahead of the agents."""
        words = ["sweep-scheduler", "--batch-size", str(batch), self.sweep]
        self.scheduler = self._start("scheduler", words, environment(asked))

    def watch(self, look: Callable[[], None]) -> None:
        """Wait until every agent has left, looking at the runs from time to time.

        Raises StageError when the scheduler fails, or an agent does.
        """
        while any(agent.working for agent in self.agents):
            deadline = time.monotonic() + TICK
            for agent in self.agents:
                agent.wait(deadline)
            look()
            if self.scheduler and self.scheduler.process.poll():
                raise self.scheduler.failed()
        look()
        for agent in self.agents:
            if agent.process.returncode:
                raise agent.failed()

    def _start(self, name: str, words: Sequence[str], extra: Mapping[str, str]) -> Member:
        _entity, project, sweep = self.sweep.split("/")
        log = self.home / "logs" / "wandb" / sweep / f"{name}.txt"
        log.parent.mkdir(parents=True, exist_ok=True)
        scripts = str(Path(sys.executable).parent)
        own = {k: v for k, v in os.environ.items() if k != "WANDB_SERVICE"}  # ours ends with us
        given = {
            **own,
            **extra,
            "PATH": os.pathsep.join([scripts, os.environ.get("PATH", "")]),
            "MOIST_HOME": str(self.home),
            "WANDB_DIR": str(self.home),
            "WANDB_PROJECT": project,
            "WANDB_AGENT_DISABLE_FLAPPING": "true",  # several runs may fail early, and others not
            "PYTHONUNBUFFERED": "1",
        }
        command = [sys.executable, "-c", BOUND, str(os.getpid()), *words]
        with log.open("ab") as out:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=given,
                start_new_session=True,
            )  # fmt: skip
        return Member(name, process, log)


def visible(device: str | None, around: Mapping[str, str]) -> dict[str, str]:
    """What shows a process one device alone, of those that are visible here."""
    if device is None or not device.startswith("cuda"):
        return {} if device is None else {"CUDA_VISIBLE_DEVICES": ""}
    index = int(device.partition(":")[2] or 0)
    shown = [one for one in around.get("CUDA_VISIBLE_DEVICES", "").split(",") if one]
    return {"CUDA_VISIBLE_DEVICES": shown[index] if shown else str(index)}


@dataclass(frozen=True)
class Member:
    """A process of the crew, at the head of a session of its own."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def working(self) -> bool:
        return self.process.poll() is None

    def wait(self, deadline: float) -> None:
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(max(deadline - time.monotonic(), 0))

    def failed(self) -> StageError:
        lines = [line for line in self.log.read_text(errors="replace").splitlines() if line]
        return StageError(
            f"{self.name} ended with exit code {self.process.returncode}: {(lines or [''])[-1]}",
            f"all that it said is in {self.log}",
        )


def leave(members: Sequence[Member]) -> None:
    """Ask all to end, their runs in order; after a while end whoever is left of their sessions."""
    for member in members:
        if member.working:
            member.process.send_signal(signal.SIGINT)
    deadline = time.monotonic() + LEAVE
    for member in members:
        member.wait(deadline)
    sessions = {member.process.pid for member in members}
    for pid in _of(sessions):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for member in members:
        member.process.wait()


def _of(sessions: Iterable[int]) -> list[int]:
    """The processes of some sessions."""
    found = []
    for pid in psutil.pids():
        with suppress(ProcessLookupError, PermissionError):
            if os.getsid(pid) in sessions:
                found.append(pid)
    return found
