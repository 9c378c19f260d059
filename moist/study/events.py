"""Events of a study: workers send them to the driver, and the driver to its observers.

`number` is the trial's; it is None where the driver itself computes a stage for all trials.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from moist.config import Config
    from moist.results.report import Report
    from moist.results.trials import Trial
    from moist.store.calls import Call
    from moist.study.spec import StudySpec


@dataclass(frozen=True)
class WorkerStarted:
    """A worker process that can no longer outlive its driver."""

    number: int


@dataclass(frozen=True)
class StageStarted:
    """A stage that is being computed."""

    number: int | None
    stage: str
    key: str


@dataclass(frozen=True)
class EpochDone:
    """An epoch of a stage that trains."""

    number: int | None
    stage: str
    done: int
    total: int
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class StageFinished:
    """A stage whose output is stored now; if `reused`, it was stored before.

    `seconds` is what computing it took, now or then; `origin` the shared store it was pulled from.
    """

    number: int | None
    stage: str
    key: str
    seconds: float
    reused: bool
    origin: str = ""


@dataclass(frozen=True)
class Warned:
    """A warning of a trial, or of the driver."""

    number: int | None
    text: str


@dataclass(frozen=True)
class Completed:
    """The end of a trial: its run's report, and validation accuracies by stage and epoch."""

    number: int
    report: Report
    curves: Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class Deferred:
    """The end of an attempt that computed all it could: other processes lock the other `keys`."""

    number: int
    keys: tuple[str, ...]


@dataclass(frozen=True)
class Failed:
    """The end of a trial by an exception: its class and first line, and its last lines."""

    number: int
    error: str
    lines: Sequence[str]
    out_of_memory: bool

    @property
    def text(self) -> str:
        """Return all of it, as the trial's reason."""
        return "\n".join([self.error, *self.lines])


@dataclass(frozen=True)
class Lost:
    """The end of an attempt whose worker or device is gone, through no fault of the trial."""

    number: int
    reason: str


@dataclass(frozen=True)
class StudyOpened:
    """The start of a driver: `trials` are complete, of `requested` in the end.

    `planned` has the stages of the next few trials, as far as these can be foreseen.
    """

    name: str
    spec: StudySpec
    requested: int
    trials: Sequence[Trial] = ()
    planned: Sequence[Sequence[Call]] = ()
    workers: int = 1


@dataclass(frozen=True)
class TrialStarted:
    """The start of an attempt at a trial; `stop(reason)` requests that the driver stops it."""

    number: int
    params: Mapping[str, Any]
    config: Config
    command: str
    stop: Callable[[str], None]


@dataclass(frozen=True)
class TrialEnded:
    """The end of a trial.

    Its `outcome` is trained; reused, answered from the record of an earlier run; screened,
    rejected before any training; pruned, stopped while it trained; or failed.
    """

    trial: Trial
    outcome: str


@dataclass(frozen=True)
class Noted:
    """A message that is not a warning."""

    text: str


WorkerEvent = (
    WorkerStarted | StageStarted | EpochDone | StageFinished | Warned
    | Completed | Deferred | Failed | Lost
)  # fmt: skip
Event = WorkerEvent | StudyOpened | TrialStarted | TrialEnded | Noted
Send = Callable[[Event], None]
FINAL = (Completed, Deferred, Failed, Lost)
"""After one of these a worker sends nothing more."""


class Observer(Protocol):
    """Follows a study in its driver's process: a terminal, a tracker, a test."""

    def observe(self, event: Event) -> None: ...


def broadcast(observers: Sequence[Observer]) -> Send:
    """Send each event to all observers, in order."""

    def send(event: Event) -> None:
        for observer in observers:
            observer.observe(event)

    return send


class EventProgress:
    """Progress of stages (see `env.Progress`) as events."""

    def __init__(self, send: Send, number: int | None = None) -> None:
        self.send, self.number = send, number
        self.sent = set[str]()

    def started(self, stage: str, key: str) -> None:
        self.send(StageStarted(self.number, stage, key))

    def advanced(self, stage: str, done: int, total: int, metrics: Mapping[str, float]) -> None:
        self.send(EpochDone(self.number, stage, done, total=total, metrics=dict(metrics)))

    def finished(self, stage: str, key: str, seconds: float) -> None:
        self.send(StageFinished(self.number, stage, key, seconds, reused=False))

    def reused(self, stage: str, key: str, seconds: float, origin: str = "") -> None:
        self.send(StageFinished(self.number, stage, key, seconds, reused=True, origin=origin))

    def warned(self, message: str) -> None:
        """Send a warning once: the driver reads the data anew for each trial's estimate."""
        if message not in self.sent:
            self.sent.add(message)
            self.send(Warned(self.number, message))

    def noted(self, text: str) -> None:
        """Discard a line about the data: the driver prints it once."""
