"""Runs read back from the logs that wandb wrote on this machine: one `.wandb` file a process.

    HOME/wandb/offline-run-DATE-ID/run-ID.wandb     of a run that no server was told of
               run-DATE-ID/run-ID.wandb             of one that a server was told of
               */open.lock                          locked while its run is being written, and
                                                    deleted when it has ended well

A run that was killed and continued has several logs. `wandb leet inspect` reads them; a killed
process leaves a log without an exit record.
"""

from __future__ import annotations

import fcntl
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

from moist.disk import locked
from moist.errors import StoreError
from moist.results.report import Record

State = Literal["finished", "failed", "killed", "running"]
Row = dict[str, Any]
Say = Callable[[str], None]
Way = Callable[[Path], list[str]]

OPEN = "open.lock"
NUMBERS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
"""How wandb writes what JSON has no number for."""


class Unreadable(StoreError):
    """A log is no log, or says nothing of a run."""


class Logged(Record):
    """One run, from all its logs; `paths` has them in order of start.

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
    """Whether a living process writes the run of a folder. Never makes the file: that it is there
    says that a run was broken off."""
    try:
        with (folder / OPEN).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # several may look at once
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def logs(folder: Path) -> list[Path]:
    """The logs in a home folder, in its `wandb` folder, or in one run's folder."""
    inner = folder / "wandb" if (folder / "wandb").is_dir() else folder
    return sorted([*inner.glob("run-*.wandb"), *inner.glob("*run-*/run-*.wandb")])


def read(folder: Path, warned: Say) -> list[Logged]:
    """All runs of a folder, in order of start; a log that can't be read is told and skipped."""
    return read_logs(logs(folder), warned)


def read_logs(paths: Iterable[Path], warned: Say) -> list[Logged]:
    """The same, of given logs."""
    fragments = defaultdict(list)
    for path, found in _all(list(paths), warned):
        fragments[found["id"]].append((found["started"], path, found))
    runs = [_merged(sorted(every, key=lambda one: one[:2])) for every in fragments.values()]
    return sorted(runs, key=lambda run: (run.started, run.id))


def history(paths: Iterable[Path], warned: Say) -> list[Row]:
    """The rows of one run by `_step`, from its logs in order of start: the last one told wins."""
    rows: dict[int, Row] = {}
    for path in paths:
        for record in records(path, warned):
            if record["type"] == "history":
                row = _plain(record["history"]["item"])
                rows[row["_step"]] = row
    return [rows[step] for step in sorted(rows)]


def _all(paths: Sequence[Path], warned: Say) -> list[tuple[Path, Row]]:
    """What each log says of its run; a program is called for each, several at a time."""

    def one(path: Path) -> Row | str:
        said: list[str] = []
        try:
            found = _fragment(records(path, said.append), path)
        except Unreadable as error:
            return str(error)
        return {**found, "warnings": said}

    with ThreadPoolExecutor(4) as pool:
        every = list(zip(paths, pool.map(one, paths), strict=True))
    for path, found in every:
        for said in [found] if isinstance(found, str) else found["warnings"]:
            warned(f"{'skipped ' if isinstance(found, str) else ''}`{path}`: {said}")
    return [(path, found) for path, found in every if not isinstance(found, str)]


def _fragment(every: Iterable[Row], path: Path) -> Row:
    """One log's run, what it was told, and its exit code. Raises Unreadable without a run."""
    run: Row = {}
    told: dict[str, Row] = {"config": {}, "summary": {}}
    code = None
    for record in every:
        kind, said = record["type"], record[record["type"]]
        if kind == "run":
            run |= said
            _told(told["config"], said.get("config", {}))
        elif kind in told:
            _told(told[kind], said)
        elif kind == "exit":
            code = said.get("exit_code", 0)
    if "run_id" not in run:
        raise Unreadable("it says nothing of a run")
    started = run.get("start_time", "")
    running = code is None and is_open(path.parent)
    return {"id": run["run_id"], "started": started, "run": run, "code": code, **told,
            "running": running}  # fmt: skip


def _told(values: Row, said: Mapping[str, Any]) -> None:
    """Take in what a record changes."""
    values |= _plain(said.get("update", {}))
    for removed in said.get("remove", ()):
        values.pop(removed.get("key"), None)


def _plain(item: Mapping[str, Any]) -> Row:
    return {
        key: NUMBERS.get(value, value) if isinstance(value, str) else value
        for key, value in item.items()
    }


def _merged(fragments: Sequence[tuple[str, Path, Row]]) -> Logged:
    """One run of its logs in order of start: the later ones say how it is."""
    told: dict[str, Row] = {"run": {}, "config": {}, "summary": {}}
    for _, _, found in fragments:
        for kind in told:
            told[kind] |= found[kind]
    run, last = told["run"], fragments[-1][2]
    told["config"].pop("_wandb", None)
    return Logged(
        id=last["id"], name=run.get("display_name", last["id"]), project=run.get("project"),
        entity=run.get("entity") or None,
        group=run.get("run_group"), job_type=run.get("job_type"), sweep=run.get("sweep_id"),
        tags=tuple(run.get("tags", ())), config=told["config"], summary=told["summary"],
        state=_state(last), exit_code=last["code"], started=fragments[0][0],
        paths=tuple(path for _, path, _ in fragments),
    )  # fmt: skip


def _state(last: Mapping[str, Any]) -> State:
    if last["code"] is None:
        return "running" if last["running"] else "killed"
    return "failed" if last["code"] else "finished"


def binary(path: Path) -> list[str]:
    """wandb's own program: 20 ms, by flags that are nowhere documented."""
    from wandb.util import get_core_path

    flags = ["--no-observability", "--json", "--run-file", str(path), str(path.parents[1])]
    return [get_core_path(), "leet", "inspect", *flags]


def command(path: Path) -> list[str]:
    """The documented command: over a second."""
    return [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(path)]


def records(path: Path, warned: Say, ways: Sequence[Way] = (binary, command)) -> list[Row]:
    """A log's records, in order; `warned` is told of parts that are damaged.

    Tries one way after the other. Raises Unreadable when none can read it.
    """
    reason = ""
    for way in ways:
        found = subprocess.run(way(path), capture_output=True, text=True)
        if found.returncode == 0:
            damage = [line for line in found.stderr.splitlines() if "corrupt" in line]
            for line in damage:
                warned(line.removeprefix("wandb leet inspect: "))
            return [json.loads(line) for line in found.stdout.splitlines()]
        reason = (found.stderr.strip().splitlines() or ["no reason given"])[-1]
    raise Unreadable(reason.removeprefix("Error: "))
