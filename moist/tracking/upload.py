"""Upload runs from files here to W&B's server: each once, whatever is killed meanwhile.

`wandb sync` uploads them. It leaves `run-ID.wandb.synced` beside a log that it is done with, even
when the server rejected the rows: then only an error in its output, which names the run, shows it.
HOME/wandb/sent.json records what has arrived, so that it counts as uploaded without those marks;
a log that has grown since is uploaded again.

When this process is killed, `wandb sync` continues: its output stays in HOME/wandb/sending.log
until it was examined, so that a mark beside an error does not count. When `wandb sync` is killed
itself, there is neither record nor mark, and the run is uploaded again: rows that the server has
already are there twice then, with the same steps and values, as wandb appends the rows of a run
that may be a continued one to those on the server.

A run that was logged to the server and interrupted is continued by wandb's own client instead,
with the rows of its log that come after the last one there: `wandb sync` would append them all.
"""

from __future__ import annotations

import fcntl
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import TypeAdapter

from moist.disk import sha256, write_atomically, writing
from moist.errors import StoreError, first_line, masked
from moist.results.report import Record
from moist.store.objects import now
from moist.tracking.client import RunInfo, independent_environment
from moist.tracking.files import OPEN, LoggedRun, Row, Warn, history, is_open, read
from moist.tracking.journal import ENDS, STUDY, TRIAL
from moist.tracking.mode import Mode
from moist.tracking.tracker import Tracker

if TYPE_CHECKING:
    import wandb

MANIFEST, LOCK = "sent.json", "sync.lock"
SENDING, OUTPUT = "sending.log", "sync.log"
"""The output of `wandb sync`, until it was examined and after."""
WAITS = (5.0, 30.0)
"""Seconds before the second and the third attempt."""
BATCH = 20
"""Runs a call of `wandb sync`, which takes a second to start."""
BOUNDS = {
    "WANDB_X_GRAPHQL_RETRY_MAX": "3",
    "WANDB_X_FILE_STREAM_RETRY_MAX": "3",
    "WANDB_X_FILE_TRANSFER_RETRY_MAX": "3",
}
"""Retries before a server that does not answer is given up: wandb would go on for a day."""


class Sent(Record):
    """A log as it was when it was uploaded, when, and where to."""

    bytes: int
    sha256: str
    at: str
    to: str


State = Literal["due", "sent", "running", "failed"]
SENT = TypeAdapter(dict[str, Sent])


@dataclass(frozen=True)
class Destination:
    """A server, and the project and entity to use instead of those that runs were logged for."""

    host: str
    project: str | None = None
    entity: str | None = None

    def __str__(self) -> str:
        return "/".join(part for part in (self.host, self.entity, self.project) if part)

    @property
    def flags(self) -> list[str]:
        named = {"-p": self.project, "-e": self.entity}
        return [word for flag, name in named.items() if name for word in (flag, name)]


class UploadResult(Record):
    """A run that is to be uploaded ("due"), was "sent", is still "running", or "failed"."""

    id: str
    name: str
    state: State
    reason: str | None = None

    @classmethod
    def of(cls, run: LoggedRun, state: State, reason: str = "") -> UploadResult:
        return cls(id=run.id, name=run.name, state=state, reason=reason or None)


class Outbox:
    """The runs of a home folder that are not on the server yet."""

    def __init__(self, home: Path, warn: Warn) -> None:
        self.folder = home / "wandb"
        self.warn = warn
        self.runs = read(self.folder, warn)

    def due(self) -> list[LoggedRun]:
        """List the runs to upload now, in order of start, each with its logs that are not sent."""
        return [run for run in self._unsent() if not _is_running(run)]

    def running(self) -> list[LoggedRun]:
        """List the runs that are still being written, which a later upload takes."""
        return [run for run in self._unsent() if _is_running(run)]

    def _unsent(self) -> list[LoggedRun]:
        sent, output, found = self.sent(), "", []
        with suppress(FileNotFoundError):
            output = (self.folder / SENDING).read_text(errors="replace")
        for run in self.runs:
            rejected = bool(errors_of(output, run))
            paths = tuple(path for path in run.paths if self._is_due(path, sent, rejected))
            found += [run.model_copy(update={"paths": paths})] if paths else []
        return found

    def _is_due(self, path: Path, sent: Mapping[str, Sent], rejected: bool) -> bool:
        """Return whether a log's present content was not sent.

        Of a run that was logged to the server, only its lock file shows that it was interrupted.
        """
        if is_online(path) and not (path.parent / OPEN).exists():
            return False
        before = sent.get(self._name(path))
        if before is None:
            return rejected or not marker(path).exists()
        return before.bytes != path.stat().st_size or before.sha256 != sha256(path)

    def sent(self) -> dict[str, Sent]:
        """Return what was sent, by log. Raises StoreError if the record of it can't be read."""
        path = self.folder / MANIFEST
        try:
            return SENT.validate_json(path.read_bytes()) if path.exists() else {}
        except (OSError, ValueError) as error:
            raise StoreError(
                f"can't read the record of uploads `{path}`: {first_line(error)}",
                "delete it: runs that wandb marked as synced still count as uploaded",
            ) from None

    def record(self, logs: Mapping[Path, Sent]) -> None:
        """Record logs as sent: all of them, or none."""
        recorded = self.sent() | {self._name(path): one for path, one in logs.items()}
        with writing(self.folder):
            write_atomically(self.folder / MANIFEST, SENT.dump_json(recorded, indent=1))

    def _name(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()

    def upload(
        self,
        runs: Sequence[LoggedRun],
        to: Destination,
        report: Callable[[UploadResult], None],
        waits: Sequence[float] = WAITS,
    ) -> None:
        """Upload runs, and report the result of each once.

        Tries what failed again after each of the `waits`, in seconds. Raises StoreError while
        another process uploads from this folder.
        """
        with self._locked() as lock:
            unsent = {run.id: run for run in self._unsent()}  # others may have sent meanwhile
            _unmark(unsent.values())  # the output that contradicts the marks is replaced below
            for run in runs:
                if run.id not in unsent:
                    report(UploadResult.of(run, "sent"))
            remaining = [unsent[run.id] for run in runs if run.id in unsent]
            for attempt, wait in enumerate((0.0, *waits)):
                time.sleep(wait if remaining else 0)
                failed: list[LoggedRun] = []
                for start in range(0, len(remaining), BATCH):
                    batch = remaining[start : start + BATCH]
                    reasons = self._upload(batch, to, lock)
                    failed += [run for run in batch if reasons[run.id]]
                    for run in batch:
                        if not reasons[run.id]:
                            report(UploadResult.of(run, "sent"))
                        elif attempt == len(waits):
                            report(UploadResult.of(run, "failed", reasons[run.id]))
                remaining = failed

    def _upload(self, runs: Sequence[LoggedRun], to: Destination, lock: int) -> dict[str, str]:
        """Upload a batch of runs; return why each failed, by id, empty if it did not."""
        logs = {
            path: Sent(bytes=path.stat().st_size, sha256=sha256(path), at=now(), to=str(to))
            for run in runs
            for path in run.paths
        }
        reasons: dict[str, str] = {}
        for run in runs:
            if is_online(run.paths[0]) and run.job_type != STUDY:
                reason = complete(run, self.folder.parent, to, self.warn)
                reasons |= {} if reason is None else {run.id: masked(reason)}
        rest = [run for run in runs if run.id not in reasons]
        paths = [path for run in rest for path in run.paths]
        output = _wandb_sync(paths, to, self.folder / SENDING, lock) if paths else ""
        reasons |= {run.id: _failure(output, run) for run in rest}
        self.record(
            {path: logs[path] for run in runs if not reasons[run.id] for path in run.paths}
        )
        _unmark(run for run in runs if reasons[run.id])
        with suppress(FileNotFoundError):  # `wandb sync` was not needed
            os.replace(self.folder / SENDING, self.folder / OUTPUT)
        return reasons

    @contextmanager
    def _locked(self) -> Iterator[int]:
        """Hold the lock of this outbox; `wandb sync` inherits it, and may outlive this process."""
        with (self.folder / LOCK).open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise StoreError(
                    f"another process is uploading the runs of `{self.folder}`", "wait for it"
                ) from None
            yield file.fileno()


def is_online(path: Path) -> bool:
    """Return whether a log is of a run that was logged to a server."""
    return not path.parent.name.startswith("offline-")


def _is_running(run: LoggedRun) -> bool:
    """Return whether a process writes to one of a run's logs: they are sent in order."""
    return any(is_open(path.parent) for path in run.paths)


def marker(path: Path) -> Path:
    """Return the path of the file by which wandb marks a log as synced."""
    return path.with_suffix(".wandb.synced")


def _unmark(runs: Iterable[LoggedRun]) -> None:
    for path in (path for run in runs for path in run.paths):
        marker(path).unlink(missing_ok=True)


def _wandb_sync(paths: Sequence[Path], to: Destination, output: Path, lock: int) -> str:
    """Run `wandb sync` on logs, those of one run in order; return its output.

    The output goes to a file: the command continues when this process is killed, and a pipe
    would break.
    """
    flags = ["--include-online", "--include-synced", *to.flags]
    command = [sys.executable, "-m", "wandb", "sync", *flags, *map(str, paths)]
    env = {**BOUNDS, **independent_environment(), "WANDB_MODE": "online"}
    with output.open("wb") as file:
        subprocess.run(
            command, env=env, pass_fds=[lock],
            stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
        )  # fmt: skip
    return output.read_text(errors="replace")


def _failure(output: str, run: LoggedRun) -> str:
    """Return why `wandb sync` failed to upload a run; empty if it did not fail."""
    marked = all(marker(path).exists() for path in run.paths)
    return "" if marked and not errors_of(output, run) else reason_for(output, run)


def reason_for(output: str, run: LoggedRun) -> str:
    """Return the first error about a run, else the first error, else the first line."""
    lines = errors_of(output, run) or _errors(output) or output.split("\n")
    return masked(lines[0]) or "wandb gave no reason"


def errors_of(output: str, run: LoggedRun) -> list[str]:
    """Find the errors that name a run, by its id or by the folder of a log."""
    names = [f"(?<![\\w-]){re.escape(run.id)}", *(re.escape(p.parent.name) for p in run.paths)]
    named = re.compile(f"({'|'.join(names)})(?![\\w-])")
    return [line for line in _errors(output) if named.search(line)]


def _errors(output: str) -> list[str]:
    lines = [line.removeprefix("wandb: ") for line in output.splitlines()]
    return [line.removeprefix("ERROR ") for line in lines if line.startswith("ERROR ")]


def complete(run: LoggedRun, home: Path, to: Destination, warn: Warn) -> str | None:
    """Upload the rows that the server lacks of a run that it knows.

    Returns why that failed, empty if it did not, or None if the server does not know the run.
    """
    import wandb
    from wandb.sdk.lib.service.service_connection import WandbApiFailedError

    api = wandb.Api()
    problems: list[str] = []
    try:
        project, entity = to.project or run.project, to.entity or run.entity or api.default_entity
        found = api.runs(f"{entity}/{project}", filters={"name": run.id}, per_page=1, lazy=False)
        there = next(iter(found), None)
        last = there.lastHistoryStep if there is not None else None
    except (wandb.Error, WandbApiFailedError, ValueError) as error:
        reason = first_line(error)
        return None if "not find" in reason or "not found" in reason else reason
    if last is None:
        return None
    rows = [row for row in history(run.paths, warn) if row["_step"] > last]
    kind = run.job_type or "run"
    info = RunInfo(run.id, run.name, kind, run.config, group=run.group, tags=run.tags)
    online = Mode("online", "to complete a run")
    with Tracker(
        online, home, problems.append, project=project, entity=entity, strict=True
    ) as tracker:
        journal = tracker.open(info)
        journal.submit(lambda opened: _log_rows(opened, rows))
        journal.update_summary(_without_internals(run.summary))
        journal.end(_end(run))
    return problems[0] if problems else ""


def _end(run: LoggedRun) -> str:
    """Return the end state that was logged; `killed` if none was."""
    logged = run.summary.get(f"{TRIAL}state")
    return next((end for end, word in ENDS.items() if word == logged), "killed")


def _log_rows(run: wandb.Run, rows: Sequence[Row]) -> None:
    for row in rows:
        run.log(_without_internals(row), step=row["_step"], commit=True)


def _without_internals(values: Row) -> Row:
    """Return the values that moist logged, without those that wandb adds."""
    return {name: value for name, value in values.items() if not name.startswith("_")}
