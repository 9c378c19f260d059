"""Runs that moist.tracking really logs, offline, in this process or in one that is killed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from forked import Forked

from moist.config import Config
from moist.tracking.client import RunInfo
from moist.tracking.files import LoggedRun, read
from moist.tracking.mode import Mode, Name
from moist.tracking.tracker import Tracker

FIRST = 72
"""Steps before the first epoch of joint training with the default config."""

ENDLESS = """
import sys, threading
from pathlib import Path
sys.path.insert(0, sys.argv[4])
import tracked
with tracked.tracking(Path(sys.argv[1]), sys.argv[3]) as tracker:
    journal = tracked.opened(tracker, sys.argv[2])
    for epoch in range(1, 6):
        journal.log_epoch("train_jointly", epoch, {"loss": 1 / epoch})
    journal.update_summary({"mark": 1})
    threading.Event().wait()
"""


def _fail(message: str) -> None:
    """Any trouble fails the test; that a busy machine takes its time to send is none."""
    if not message.startswith("still uploading"):
        raise AssertionError(message)


def tracking(home: Path, mode: Name) -> Tracker:
    """A tracker; any trouble with it fails the test."""
    return Tracker(Mode(mode, "a test's"), home, _fail)


def offline(home: Path) -> Tracker:
    """A tracker into files."""
    return tracking(home, "offline")


def opened(
    tracker: Tracker, id: str, group: str | None = "s", job_type: str = "trial", **config: Any
) -> Any:
    about = RunInfo(id, f"name of {id}", job_type, config, group=group, tags=("a", "b"))
    return tracker.open(about, Config())


def log(
    home: Path, id: str, state: str = "complete", values: Mapping[str, Any] | None = None,
    epochs: range = range(1, 4), **about: Any,
) -> None:  # fmt: skip
    """One whole run."""
    with offline(home) as tracker:
        journal = opened(tracker, id, **about)
        for epoch in epochs:
            journal.log_epoch("train_jointly", epoch, {"loss": 1 / epoch, "val_accuracy": 0.5})
        journal.end(state, values or {})
    while not _has(home, id, lambda run: run.exit_code is not None):
        os.sched_yield()  # wandb's own process may still be writing


@contextmanager
def writing(
    home: Path, id: str, environment: Mapping[str, str] | None = None
) -> Iterator[Callable[[], None]]:
    """Have a process log a run that never ends, and yield what kills it, once its log is complete.

    Offline, without an environment that has a server. It is killed at the end, too.
    """
    mode = "online" if environment else "offline"
    own = {k: v for k, v in os.environ.items() if not k.startswith("WANDB")}  # its own service
    words = ["-c", ENDLESS, home, id, mode, Path(__file__).parent]
    with Forked(words, env=environment or own) as process:
        process.until(lambda: _has(home, id, lambda run: "mark" in run.summary))
        yield process.kill


def _has(home: Path, id: str, seen: Callable[[LoggedRun], bool]) -> bool:
    """Return whether the log of a run has come so far."""
    return any(run.id == id and seen(run) for run in read(home, lambda _warning: None))
