"""W&B agents on this machine: each starts runs with the parameters that the server sends."""

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
from moist.agents.register import Registration
from moist.errors import StageError
from moist.study.workers import Slot
from moist.tracking.client import independent_environment

POLL_SECONDS = 5.0
"""Time between polls of the sweep's runs."""

GRACE_SECONDS = 20.0
"""Time for all processes to end their runs after SIGINT; batch systems grant 30."""

LAUNCHER = """
import ctypes, os, signal, sys
parent, *words = sys.argv[1:]
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGINT)
    if os.getppid() != int(parent):
        sys.exit("the process that started this is gone")
os.execv(sys.executable, [sys.executable, "-m", "wandb", *words])
"""
"""Runs wandb; it gets SIGINT when the process that started it dies (PR_SET_PDEATHSIG)."""


def shares(count: int, workers: int) -> list[int]:
    """Return how many runs each agent may start, so that all together start `count`."""
    return [count // workers + (i < count % workers) for i in range(workers)]


@dataclass
class AgentPool:
    """The agents, and perhaps a scheduler, of one sweep, `ENTITY/PROJECT/ID`.

    Their runs share stage outputs with those of other machines by the `store` of that URL.

    Use as a context manager: no process is left when it closes, whatever happens inside.
    """

    sweep: str
    home: Path
    store: str | None = None
    agents: list[Process] = field(default_factory=list)
    scheduler: Process | None = None

    def __enter__(self) -> AgentPool:
        return self

    def __exit__(self, *_: object) -> None:
        terminate([*self.agents, *([self.scheduler] if self.scheduler else [])])

    def start_agents(self, count: int | None, slots: Sequence[Slot]) -> None:
        """Start an agent for each slot.

        Together they start at most `count` runs; without a count, as many as the sweep has.
        """
        counts = [None] * len(slots) if count is None else shares(count, len(slots))
        for i, (slot, share) in enumerate(zip(slots, counts, strict=True)):
            if share == 0:
                continue
            limit = [] if share is None else ["--count", str(share)]
            words = ["agent", *limit, "--forward-signals", self.sweep]
            threads = {"OMP_NUM_THREADS": str(slot.threads)}
            self.agents.append(
                self._start(f"agent-{i}", words, threads | visible_device(slot.device, os.environ))
            )

    def start_scheduler(self, sweep: Registration, batch: int) -> None:
        """Start the process that draws parameters, `batch` runs ahead of the agents."""
        poll = ["--poll-interval", str(POLL_SECONDS)]  # its own, 10 s, is time agents may idle
        words = ["sweep-scheduler", "--batch-size", str(batch), *poll, self.sweep]
        self.scheduler = self._start("scheduler", words, environment(sweep))

    def wait(self, poll: Callable[[], None]) -> None:
        """Wait until every agent has ended; call `poll` in between and at the end.

        Raises StageError when the scheduler or an agent fails.
        """
        while any(agent.is_running for agent in self.agents):
            deadline = time.monotonic() + POLL_SECONDS
            for agent in self.agents:
                agent.wait(deadline)
            poll()
            if self.scheduler and self.scheduler.popen.poll():
                raise self.scheduler.failed()
        poll()
        for agent in self.agents:
            if agent.popen.returncode:
                raise agent.failed()

    def _start(self, name: str, words: Sequence[str], extra: Mapping[str, str]) -> Process:
        _entity, project, sweep = self.sweep.split("/")
        log = self.home / "logs" / "wandb" / sweep / f"{name}.txt"
        log.parent.mkdir(parents=True, exist_ok=True)
        scripts = str(Path(sys.executable).parent)
        env = {
            **independent_environment(),
            **extra,
            "PATH": os.pathsep.join([scripts, os.environ.get("PATH", "")]),
            "MOIST_HOME": str(self.home),
            **({"MOIST_STORE": self.store} if self.store else {}),
            "WANDB_DIR": str(self.home),
            "WANDB_PROJECT": project,
            "WANDB_AGENT_DISABLE_FLAPPING": "true",  # else early failures of runs end the agent
            "PYTHONUNBUFFERED": "1",
        }
        command = [sys.executable, "-c", LAUNCHER, str(os.getpid()), *words]
        with log.open("ab") as out:
            popen = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=env,
                start_new_session=True,
            )  # fmt: skip
        return Process(name, popen, log)


def visible_device(device: str | None, environment: Mapping[str, str]) -> dict[str, str]:
    """Return environment variables that make only `device` visible, of those visible here."""
    if device is None or not device.startswith("cuda"):
        return {} if device is None else {"CUDA_VISIBLE_DEVICES": ""}
    index = int(device.partition(":")[2] or 0)
    visible = [one for one in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if one]
    return {"CUDA_VISIBLE_DEVICES": visible[index] if visible else str(index)}


@dataclass(frozen=True)
class Process:
    """An agent or scheduler, which leads a session of its own."""

    name: str
    popen: subprocess.Popen[bytes]
    log: Path

    @property
    def is_running(self) -> bool:
        return self.popen.poll() is None

    def wait(self, deadline: float) -> None:
        with suppress(subprocess.TimeoutExpired):
            self.popen.wait(max(deadline - time.monotonic(), 0))

    def failed(self) -> StageError:
        lines = [line for line in self.log.read_text(errors="replace").splitlines() if line]
        return StageError(
            f"{self.name} ended with exit code {self.popen.returncode}: {(lines or [''])[-1]}",
            f"its output is in {self.log}",
        )


def terminate(processes: Sequence[Process]) -> None:
    """Send SIGINT, so that runs end cleanly; after GRACE_SECONDS kill those that remain."""
    for process in processes:
        if process.is_running:
            process.popen.send_signal(signal.SIGINT)
    deadline = time.monotonic() + GRACE_SECONDS
    for process in processes:
        process.wait(deadline)
    for pid in _members({process.popen.pid for process in processes}):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for process in processes:
        process.popen.wait()


def _members(sessions: Iterable[int]) -> list[int]:
    """Return the ids of the processes in some sessions."""
    found = []
    for pid in psutil.pids():
        with suppress(ProcessLookupError, PermissionError):
            if os.getsid(pid) in sessions:
                found.append(pid)
    return found
