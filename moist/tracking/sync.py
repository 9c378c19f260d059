"""Runs that are in files here, sent to W&B's server: each once, whatever is killed meanwhile.

`wandb sync` sends them. It leaves `run-ID.wandb.synced` beside a log that it is done with, also
when the server refused the rows: then it says so in an error that names the run, and nothing else
does. HOME/wandb/sent.json notes what has arrived, so that it stays sent when the marks are gone;
a log that has grown since is sent again.

When we are killed meanwhile, `wandb sync` goes on: what it says lies in HOME/wandb/sending.log
until it is judged, so that a mark beside an error is none. When it is killed itself there is
neither note nor mark, and the run is sent again: rows that the server got already are there twice
then, with the same steps and values, as wandb puts the rows of a run that may be a continued one
behind those that the server has. Of runs that a server was told of only the rest is sent
(`completing`).
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter

from moist.disk import sha256, write_atomically, writing
from moist.errors import StoreError, first_line
from moist.results.report import Record
from moist.store.objects import now
from moist.tracking.client import independent_environment
from moist.tracking.completing import complete, is_online
from moist.tracking.files import OPEN, Logged, Say, is_open, read
from moist.tracking.journal import STUDY
from moist.tracking.refusals import reason, refusals, without_key

MANIFEST, LOCK = "sent.json", "sync.lock"
SENDING, OUTPUT = "sending.log", "sync.log"
"""What `wandb sync` says, until it was judged and after."""
WAITS = (5.0, 30.0)
"""Seconds before the second and the third attempt."""
TOGETHER = 20
"""Runs a call of `wandb sync`: a second each is its start."""
BOUNDS = {
    "WANDB_X_GRAPHQL_RETRY_MAX": "3",
    "WANDB_X_FILE_STREAM_RETRY_MAX": "3",
    "WANDB_X_FILE_TRANSFER_RETRY_MAX": "3",
}
"""A server that has gone is given up soon: wandb would go on for a day."""


class Sent(Record):
    """A log as it was when it was sent, when, and where to."""

    bytes: int
    sha256: str
    at: str
    to: str


State = Literal["due", "sent", "running", "failed"]
Manifest = dict[str, Sent]
SENT = TypeAdapter(Manifest)


@dataclass(frozen=True)
class Place:
    """Where runs go: a server, and what overrides the project and entity they were logged for."""

    host: str
    project: str | None = None
    entity: str | None = None

    def __str__(self) -> str:
        return "/".join(part for part in (self.host, self.entity, self.project) if part)

    @property
    def flags(self) -> list[str]:
        named = {"-p": self.project, "-e": self.entity}
        return [word for flag, name in named.items() if name for word in (flag, name)]


class Told(Record):
    """What becomes of a run: to be sent ("due"), "sent", still "running", or "failed"."""

    id: str
    name: str
    state: State
    reason: str | None = None


def told(run: Logged, state: State, reason: str = "") -> Told:
    return Told(id=run.id, name=run.name, state=state, reason=reason or None)


class Outbox:
    """The runs of a home folder that the server has not got."""

    def __init__(self, home: Path, warned: Say) -> None:
        self.folder = home / "wandb"
        self.warned = warned
        self.runs = read(self.folder, warned)

    def due(self) -> list[Logged]:
        """What is to be sent now, in order of start: whole runs, each with its unsent logs."""
        return [run for run in self._unsent() if not self._open(run)]

    def running(self) -> list[Logged]:
        """What is still being written, and so left for later."""
        return [run for run in self._unsent() if self._open(run)]

    def _unsent(self) -> list[Logged]:
        sent, output, found = self.sent(), "", []
        with suppress(FileNotFoundError):
            output = (self.folder / SENDING).read_text(errors="replace")
        for run in self.runs:
            refused = bool(refusals(output, run))
            paths = tuple(path for path in run.paths if self._is_due(path, sent, refused))
            found += [run.model_copy(update={"paths": paths})] if paths else []
        return found

    def _is_due(self, path: Path, sent: Manifest, refused: bool) -> bool:
        """Not sent as it is now. A run on the server's own left its lock if it was broken off."""
        if is_online(path) and not (path.parent / OPEN).exists():
            return False
        before = sent.get(self._name(path))
        if before is None:
            return refused or not marker(path).exists()
        return before.bytes != path.stat().st_size or before.sha256 != sha256(path)

    def _open(self, run: Logged) -> bool:
        """Whether a process is at one of a run's logs: they are sent in order."""
        return any(is_open(path.parent) for path in run.paths)

    def sent(self) -> Manifest:
        """What was sent. Raises StoreError when that can't be read."""
        path = self.folder / MANIFEST
        try:
            return SENT.validate_json(path.read_bytes()) if path.exists() else {}
        except (OSError, ValueError) as error:
            reason = first_line(error)
            raise StoreError(
                f"can't read what was sent, `{path}`: {reason}",
                "delete it: what wandb marked as synced still counts as sent",
            ) from None

    def note(self, logs: Mapping[Path, Sent]) -> None:
        """Note logs as sent: all of them, or none."""
        noted = self.sent() | {self._name(path): one for path, one in logs.items()}
        with writing(self.folder):
            write_atomically(self.folder / MANIFEST, SENT.dump_json(noted, indent=1))

    def _name(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()

    def send(
        self,
        runs: Sequence[Logged],
        place: Place,
        said: Callable[[Told], None],
        waits: Sequence[float] = WAITS,
    ) -> None:
        """Send runs, and say of each what became of it, once.

        What fails is tried again after each of the `waits`, in seconds. Raises StoreError while
        another process sends from here.
        """
        with self._alone() as lock:
            unsent = {run.id: run for run in self._unsent()}  # others may have sent meanwhile
            _unmark(unsent.values())  # what denies their marks is about to be replaced
            for run in runs:
                if run.id not in unsent:
                    said(told(run, "sent"))
            left = [unsent[run.id] for run in runs if run.id in unsent]
            for attempt, wait in enumerate((0.0, *waits)):
                time.sleep(wait if left else 0)
                last = attempt == len(waits)
                left = [
                    run for some in _batched(left, TOGETHER)
                    for run in self._send(some, place, said, last, lock)
                ]  # fmt: skip

    def _send(
        self,
        runs: Sequence[Logged],
        place: Place,
        said: Callable[[Told], None],
        last: bool,
        lock: int,
    ) -> list[Logged]:
        """Send some at once; gives those to be tried again."""
        logs = {path: _as_is(path, place) for run in runs for path in run.paths}
        reasons = self._complete(
            [run for run in runs if is_online(run.paths[0]) and run.job_type != STUDY], place
        )
        reasons |= self._sync([run for run in runs if run.id not in reasons], place, lock)
        arrived = [run for run in runs if not reasons[run.id]]
        failed = [run for run in runs if reasons[run.id]]
        self.note({path: logs[path] for run in arrived for path in run.paths})
        _unmark(failed)
        with suppress(FileNotFoundError):  # none was for `wandb sync`
            os.replace(self.folder / SENDING, self.folder / OUTPUT)
        for run in arrived:
            said(told(run, "sent"))
        for run in failed if last else ():
            said(told(run, "failed", reasons[run.id]))
        return failed

    def _complete(self, runs: Sequence[Logged], place: Place) -> dict[str, str]:
        """Send the rest of runs that the server knows; why not, by id, or an empty reason."""
        home, found = self.folder.parent, {}
        for run in runs:
            said = complete(run, home, place.project, place.entity, self.warned)
            if said is not None:
                found[run.id] = without_key(said)
        return found

    def _sync(self, runs: Sequence[Logged], place: Place, lock: int) -> dict[str, str]:
        """Send runs that it does not; the same."""
        paths = [path for run in runs for path in run.paths]
        output = _wandb_sync(paths, place, self.folder / SENDING, lock) if paths else ""
        return {run.id: reason(output, run) if _failed(output, run) else "" for run in runs}

    @contextmanager
    def _alone(self) -> Iterator[int]:
        """Be the only one that sends. `wandb sync` gets the lock too, and may outlive us."""
        with (self.folder / LOCK).open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise StoreError(
                    f"another process sends the runs of `{self.folder}`", "wait for it"
                ) from None
            yield file.fileno()


def marker(path: Path) -> Path:
    """The file by which wandb says that a log has arrived."""
    return path.with_suffix(".wandb.synced")


def _unmark(runs: Iterable[Logged]) -> None:
    for path in (path for run in runs for path in run.paths):
        marker(path).unlink(missing_ok=True)


def _as_is(path: Path, place: Place) -> Sent:
    return Sent(bytes=path.stat().st_size, sha256=sha256(path), at=now(), to=str(place))


def _batched(runs: Sequence[Logged], count: int) -> list[Sequence[Logged]]:
    return [runs[i : i + count] for i in range(0, len(runs), count)]


def _wandb_sync(paths: Sequence[Path], place: Place, output: Path, lock: int) -> str:
    """What `wandb sync` said, to a file: it goes on when we are killed, and a pipe would break.

    It sends the logs of one run one after the other.
    """
    flags = ["--include-online", "--include-synced", *place.flags]
    command = [sys.executable, "-m", "wandb", "sync", *flags, *map(str, paths)]
    env = {**BOUNDS, **independent_environment(), "WANDB_MODE": "online"}
    with output.open("wb") as file:
        subprocess.run(
            command, env=env, pass_fds=[lock],
            stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
        )  # fmt: skip
    return output.read_text(errors="replace")


def _failed(output: str, run: Logged) -> bool:
    return bool(refusals(output, run)) or not all(marker(path).exists() for path in run.paths)
