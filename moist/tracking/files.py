"""Runs read back from the logs that wandb wrote on this machine: one `.wandb` file a process.

    HOME/wandb/offline-run-DATE-ID/run-ID.wandb     of a run that was logged to files only
               run-DATE-ID/run-ID.wandb             of a run that was logged to a server
               */open.lock                          locked while the run is being written, and
                                                    deleted when it has ended properly

A run that was killed and continued has several logs. `wandb leet inspect` reads them; a killed
process leaves a log without an exit record.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from moist.disk import is_locked, locked
from moist.errors import StoreError
from moist.results.report import Record

State = Literal["finished", "failed", "killed", "running"]
Row = dict[str, Any]
Warn = Callable[[str], None]
Reader = Callable[[Path], list[str]]
"""Gives the command that prints the records of a log as JSON lines."""

OPEN = "open.lock"
NUMBERS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
"""Floats that wandb writes as text, as JSON has no such numbers."""


class Unreadable(StoreError):
    """A file is not a log of wandb's, or has no record of a run."""


class LoggedRun(Record):
    """A run, read back from all its logs; `paths` has them in order of start.

    `state`: "finished" with exit code 0 and "failed" with another, "killed" without one unless it
    is still "running". Keys of nested summaries are joined by dots.
    """

    id: str
    name: str
    project: str | None
    entity: str | None
    group: str | None
    job_type: str | None
    sweep: str | None
    tags: tuple[str, ...]
    config: dict[str, Any]
    summary: dict[str, Any]
    state: State
    exit_code: int | None
    started: str
    paths: tuple[Path, ...]


@contextmanager
def marked_open(folder: Path) -> Iterator[None]:
    """Mark the run of a folder as being written, until the process ends or is killed."""
    with locked(folder / OPEN):
        yield
    (folder / OPEN).unlink(missing_ok=True)  # where it stays, the run was interrupted


def is_open(folder: Path) -> bool:
    """Return whether a living process writes the run of a folder.

    Never creates the lock file, as its presence marks a run as interrupted.
    """
    return is_locked(folder / OPEN)


def logs(folder: Path) -> list[Path]:
    """List the logs in a home folder, in its `wandb` folder, or in one run's folder."""
    inner = folder / "wandb" if (folder / "wandb").is_dir() else folder
    return sorted([*inner.glob("run-*.wandb"), *inner.glob("*run-*/run-*.wandb")])


def read(folder: Path, warn: Warn) -> list[LoggedRun]:
    """Read all runs of a folder, in order of start; skip unreadable logs with a warning."""
    fragments = defaultdict(list)
    for path, found in _all(logs(folder), warn):
        fragments[found["id"]].append((found["started"], path, found))
    runs = [_merged(sorted(every, key=lambda one: one[:2])) for every in fragments.values()]
    return sorted(runs, key=lambda run: (run.started, run.id))


def history(paths: Iterable[Path], warn: Warn) -> list[Row]:
    """Return the rows of a run, in order of `_step`, from its logs in order of start.

    Of rows with the same step the last one counts.
    """
    rows: dict[int, Row] = {}
    for path in paths:
        for record in records(path, warn):
            if record["type"] == "history":
                row = _plain(record["history"]["item"])
                rows[row["_step"]] = row
    return [rows[step] for step in sorted(rows)]


def _all(paths: Sequence[Path], warn: Warn) -> list[tuple[Path, Row]]:
    """Read each log, several at a time, by a process each."""

    def one(path: Path) -> Row | str:
        warnings: list[str] = []
        try:
            found = _fragment(records(path, warnings.append), path)
        except Unreadable as error:
            return str(error)
        return {**found, "warnings": warnings}

    with ThreadPoolExecutor(4) as pool:
        every = list(zip(paths, pool.map(one, paths), strict=True))
    for path, found in every:
        for warning in [found] if isinstance(found, str) else found["warnings"]:
            warn(f"{'skipped ' if isinstance(found, str) else ''}`{path}`: {warning}")
    return [(path, found) for path, found in every if not isinstance(found, str)]


def _fragment(every: Iterable[Row], path: Path) -> Row:
    """Return the run of one log, its values and its exit code. Raises Unreadable."""
    run: Row = {}
    values: dict[str, Row] = {"config": {}, "summary": {}}
    code = None
    for record in every:
        kind, content = record["type"], record[record["type"]]
        if kind == "run":
            run |= content
            _update(values["config"], content.get("config", {}))
        elif kind in values:
            _update(values[kind], content)
        elif kind == "exit":
            code = content.get("exit_code", 0)
    if "run_id" not in run:
        raise Unreadable("it has no record of a run")
    started = run.get("start_time", "")
    running = code is None and is_open(path.parent)
    return {"id": run["run_id"], "started": started, "run": run, "code": code, **values,
            "running": running}  # fmt: skip


def _update(values: Row, change: Mapping[str, Any]) -> None:
    """Apply the changes of a record."""
    values |= _plain(change.get("update", {}))
    for removed in change.get("remove", ()):
        values.pop(removed.get("key"), None)


def _plain(item: Mapping[str, Any]) -> Row:
    return {
        key: NUMBERS.get(value, value) if isinstance(value, str) else value
        for key, value in item.items()
    }


def _merged(fragments: Sequence[tuple[str, Path, Row]]) -> LoggedRun:
    """Merge a run's logs, in order of start: later values replace earlier ones."""
    values: dict[str, Row] = {"run": {}, "config": {}, "summary": {}}
    for _, _, found in fragments:
        for kind in values:
            values[kind] |= found[kind]
    run, last = values["run"], fragments[-1][2]
    values["config"].pop("_wandb", None)
    return LoggedRun(
        id=last["id"], name=run.get("display_name", last["id"]), project=run.get("project"),
        entity=run.get("entity") or None,
        group=run.get("run_group"), job_type=run.get("job_type"), sweep=run.get("sweep_id"),
        tags=tuple(run.get("tags", ())), config=values["config"], summary=values["summary"],
        state=_state(last), exit_code=last["code"], started=fragments[0][0],
        paths=tuple(path for _, path, _ in fragments),
    )  # fmt: skip


def _state(last: Mapping[str, Any]) -> State:
    if last["code"] is None:
        return "running" if last["running"] else "killed"
    return "failed" if last["code"] else "finished"


def binary(path: Path) -> list[str]:
    """Return a command of wandb's own program: 20 ms, by undocumented flags."""
    from wandb.util import get_core_path

    flags = ["--no-observability", "--json", "--run-file", str(path), str(path.parents[1])]
    return [get_core_path(), "leet", "inspect", *flags]


def command(path: Path) -> list[str]:
    """Return the documented command: over a second."""
    return [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(path)]


def records(path: Path, warn: Warn, readers: Sequence[Reader] = (binary, command)) -> list[Row]:
    """Return a log's records, in order; warn of damaged parts.

    Tries one reader after the other. Raises Unreadable if none can read it.
    """
    reason = ""
    for reader in readers:
        found = subprocess.run(reader(path), capture_output=True, text=True)
        if found.returncode == 0:
            damage = [line for line in found.stderr.splitlines() if "corrupt" in line]
            for line in damage:
                warn(line.removeprefix("wandb leet inspect: "))
            return [json.loads(line) for line in found.stdout.splitlines()]
        reason = (found.stderr.strip().splitlines() or ["no reason given"])[-1]
    raise Unreadable(reason.removeprefix("Error: "))
