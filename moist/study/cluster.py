"""The executor `ray`: trials as tasks of a Ray cluster, each with its share of CPUs and GPUs.

Ray starts processes, finds room for them and notices when one or its machine is gone. The driver
alone owns the study and decides what becomes of a lost trial.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

from moist.disk import ELSEWHERE, writing
from moist.errors import ConfigError, StageError, first_line
from moist.study import events
from moist.study.executor import Capacity, Task, Work, log_of, log_to, stopped
from moist.study.inline import Inline
from moist.study.workers import Slot

RECOUNT = 2.0
"""Seconds after which the nodes of a cluster are counted again."""
POLL = 60.0
"""Seconds after which a task looks again for an event to hand on."""

SETTINGS = {
    "RAY_AUTH_MODE": "token",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # else `uv run moist` copies its folder to every node
    "RAY_USAGE_STATS_ENABLED": "0",
}
"""Environment variables of Ray, unless the user sets them."""


@dataclass(frozen=True)
class Share:
    """What one trial takes of a cluster; with `most`, so many are requested at once.

    Without it they are as many as there is room for on the nodes that are there.
    """

    cpus: float = 1.0
    gpus: float = 0.0
    most: int | None = None

    def __str__(self) -> str:
        """Describe it; a share of a GPU is one of its parts."""
        parts = {"CPU": self.cpus, "GPU": self.gpus}
        return " and ".join(
            f"{count:g} {name}{'s' * (count != 1)}" for name, count in parts.items() if count
        )

    def fits(self, resources: dict[str, float]) -> int:
        """Return how many trials a node of these resources can run at once."""
        needs = {"CPU": self.cpus, "GPU": self.gpus}
        return min(int(resources.get(name, 0.0) / need) for name, need in needs.items() if need)


def connect(address: str | None) -> None:
    """Connect this process to a cluster of which this machine is a node.

    Without an address it is RAY_ADDRESS, else one that runs on this machine, else a new one that
    ends with this process. Raises ConfigError if Ray is not installed, no cluster answers, or it
    has another token.
    """
    if address and "://" in address:
        raise ConfigError(
            f"`--address {address}` is a client's address, and the driver must run on a node",
            "run this command on a node of the cluster, with `--address auto`",
        )
    for name, value in SETTINGS.items():  # Ray reads them when it is imported
        os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError:
        raise ConfigError(
            "`--engine ray` needs Ray, which is not installed", "`pip install 'moist[ray]'`"
        ) from None
    if ray.is_initialized():
        return
    try:
        with _handler_kept():
            ray.init(address, log_to_driver=False, logging_level="ERROR", include_dashboard=False)
            # It would print the errors of nodes on standard output, among data.
            ray._private.worker.print_to_stdstream = lambda *_, **__: None
    except ray.exceptions.AuthenticationError as error:
        raise ConfigError(
            f"can't authenticate with the Ray cluster: {error.message}",
            "`ray get-auth-token --generate` makes one before `ray start`: every node needs the"
            " same ~/.ray/auth_token, and RAY_AUTH_MODE=token",
        ) from error
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        raise ConfigError(
            f"can't connect to the Ray cluster `{address or 'on this machine'}`:"
            f" {first_line(error)}",
            "`ray start --head` starts one; without `--address` it is started here",
        ) from error


def nodes() -> list[dict[str, float]]:
    """Return the resources of each node of the cluster."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def room(share: Share) -> int:
    """Return how many trials the cluster has room for.

    Raises ConfigError for none, unless a number is requested: an autoscaler may add nodes.
    """
    if (found := sum(map(share.fits, nodes()))) or share.most:
        return found
    gpus, cpus = max((node.get("GPU", 0.0), node.get("CPU", 0.0)) for node in nodes())
    raise ConfigError(
        f"no node of the Ray cluster has {share} for a trial; the largest has {Share(cpus, gpus)}",
        "lower `--cpus-per-trial` or `--gpus-per-trial`; `--workers N` requests nodes of an"
        " autoscaler",
    )


@contextmanager
def _handler_kept() -> Iterator[None]:
    """Restore the handler of SIGTERM, which `ray.init` replaces."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGTERM) is not before:
            signal.signal(signal.SIGTERM, before)


@dataclass(frozen=True)
class Begun:
    """The first thing that a task sends: where it runs."""

    host: str
    pid: int


class Ray:
    """Runs tasks on the cluster that this process is connected to; see `Executor`."""

    def __init__(
        self, work: Work, slots: Sequence[Slot], logs: Path, share: Share = Share()
    ) -> None:
        import ray

        self.ray, self.logs, self.share = ray, logs, share
        slot = Slot("cuda" if share.gpus else "cpu", slots[0].threads)
        self.common = work, slot, logs, version("moist")
        self.remote = ray.remote(
            num_cpus=share.cpus, num_gpus=share.gpus, max_retries=0, num_returns="streaming"
        )(run_on_node)
        self.running: dict[int, Any] = {}
        self.begun: dict[int, Begun] = {}
        self.kept: list[events.WorkerEvent] = []
        self.counted, self.room = 0.0, 0

    def __enter__(self) -> Self:
        """Make the folder by which nodes recognize the home."""
        with writing(self.logs, ELSEWHERE):
            self.logs.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, *_: object) -> None:
        for number in [*self.running]:
            self.cancel(number)

    def capacity(self) -> Capacity:
        """Return how many trials are requested, or how many there is room for; one at least."""
        if self.share.most:
            return Capacity(self.share.most)
        if time.monotonic() - self.counted > RECOUNT:
            self.room, self.counted = sum(map(self.share.fits, nodes())), time.monotonic()
        return Capacity(max(1, self.room))

    def submit(self, task: Task) -> None:
        """Hand a task to Ray, which starts it once a node has room."""
        self.running[task.number] = self.remote.remote(*self.common, task)

    def wait(self, timeout: float) -> list[events.WorkerEvent]:
        """Return new events of tasks; wait for the first, `timeout` seconds at most."""
        if self.kept:
            found, self.kept = self.kept, []
            return found
        if not self.running:
            return []
        by_stream = {stream: number for number, stream in self.running.items()}
        ready, others = self.ray.wait([*by_stream], timeout=timeout, fetch_local=False)
        if ready and others:
            ready += self.ray.wait(others, num_returns=len(others), timeout=0, fetch_local=False)[
                0
            ]
        return self._events(by_stream[stream] for stream in ready)

    def cancel(self, number: int) -> None:
        """Kill the worker of a trial, unless its last event is kept."""
        if (stream := self._drop(number)) is not None:
            self.ray.cancel(stream, force=True)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Pause the trials on this machine: latencies are measured here, those of all nodes."""
        by_stream = {self.running[n]: n for n in self.running.keys() - self.begun.keys()}
        if by_stream:  # some may have begun unheard
            ready, _ = self.ray.wait(
                [*by_stream], num_returns=len(by_stream), timeout=0, fetch_local=False
            )
            self.kept += self._events(by_stream[stream] for stream in ready)
        here = self.ray.util.get_node_ip_address()
        with stopped([begun.pid for begun in self.begun.values() if begun.host == here]):
            yield

    def _drop(self, number: int) -> Any:
        self.begun.pop(number, None)
        return self.running.pop(number, None)

    def _events(self, numbers: Iterable[int]) -> list[events.WorkerEvent]:
        """Return the next event of each task whose stream is ready."""
        return [event for number in numbers if (event := self._next(number)) is not None]

    def _next(self, number: int) -> Any:
        """Return the next event of a task whose stream is ready; None if it has only begun."""
        try:
            event = self.ray.get(next(self.running[number]))
        except StopIteration:
            event = events.Lost(number, "its worker sent no result")
        except self.ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, StageError):
                raise error.cause from None
            raise StageError(
                f"a node of the cluster can't run trials: {first_line(error.cause)}",
                "every node needs the same moist, Python and Ray as the driver",
            ) from error
        except self.ray.exceptions.RayError as error:
            event = events.Lost(number, self._reason(number, error))
        if isinstance(event, Begun):
            self.begun[number] = event
            return None
        if isinstance(event, events.FINAL):
            self._drop(number)
        return event

    def _reason(self, number: int, error: Exception) -> str:
        begun = self.begun.get(number)
        where = f" on {begun.host}" if begun else ""
        return f"its worker{where} is gone ({type(error).__name__})"


def run_on_node(
    work: Work, slot: Slot, logs: Path, driver: str, task: Task
) -> Iterator[events.Event | Begun]:
    """Run a task in this process, a worker of Ray; yield where it is, and its events."""
    import ray

    host = ray.util.get_node_ip_address()
    if (installed := version("moist")) != driver:
        raise StageError(
            f"node {host} has moist {installed}, the driver {driver}", "install the same version"
        )
    if not logs.is_dir():
        raise StageError(
            f"node {host} has no folder `{logs}`, which the driver has made",
            "every node needs the same home folder: name a shared one with `--home`",
        )
    yield Begun(host, os.getpid())
    log_to(log_of(logs, task.number))
    with Inline(work, [slot], logs) as inline:
        inline.submit(task)
        while True:
            for event in inline.wait(POLL):
                yield event
                if isinstance(event, events.FINAL):
                    return
