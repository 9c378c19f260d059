"""Problems of a study that no driver repairs by itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from moist.results.report import Record
from moist.results.trials import Trial
from moist.store.keys import SHORT
from moist.store.runs import RunRecords
from moist.study.leases import driver_of
from moist.study.reader import tables
from moist.study.ref import StudyRef
from moist.study.spec import StudySpec

SHARED = {"nfs", "nfs4", "cifs", "smb3", "fuse.sshfs", "9p"}
"""File systems whose locks SQLite can't rely on."""


class Finding(Record):
    """A problem and its remedy."""

    problem: str
    remedy: str


def examine(ref: StudyRef, spec: StudySpec, trials: Sequence[Trial]) -> list[Finding]:
    """List all problems of a study, the worst first."""
    found = [*_database(ref), *_disk(ref)]
    if driver_of(ref) is None:
        found += _abandoned(ref, spec, trials)
    return [*found, *_records(ref, spec, trials)]


def _database(ref: StudyRef) -> Iterator[Finding]:
    if not ref.file:
        return
    with tables(ref) as select:
        (answer,) = select("PRAGMA integrity_check").fetchone()
    if answer != "ok":
        yield Finding(
            problem=f"the database `{ref.file}` is damaged: {answer}",
            remedy="restore a copy of it; the runs themselves have records (`moist runs`)",
        )


def _disk(ref: StudyRef) -> Iterator[Finding]:
    mounts = Path("/proc/mounts")
    if not ref.file or not mounts.exists():
        return
    path = ref.file.resolve()
    rows = [line.split() for line in mounts.read_text().splitlines()]
    kinds = {row[1]: row[2] for row in rows if path.is_relative_to(row[1])}
    kind = kinds[max(kinds, key=len)] if kinds else ""
    if kind in SHARED:
        yield Finding(
            problem=f"`{path}` lies on a network disk ({kind}), where SQLite's locks may fail",
            remedy="keep it on a local disk, or use `--storage postgresql://...`",
        )


def _abandoned(ref: StudyRef, spec: StudySpec, trials: Sequence[Trial]) -> Iterator[Finding]:
    for trial in trials:
        if trial.state == "running":
            yield Finding(
                problem=f"trial {trial.number} is unfinished, and no driver is running",
                remedy=f"continue with `{ref.locate(spec.command)}`",
            )


def _records(ref: StudyRef, spec: StudySpec, trials: Sequence[Trial]) -> Iterator[Finding]:
    for trial in trials:
        if trial.state == "failed" and not trial.reason:
            yield Finding(
                problem=f"trial {trial.number} failed without a reason",
                remedy=f"`{ref.command('sweep retry')}` requeues it",
            )
        if trial.state == "complete" and trial.key and not RunRecords(ref.home).get(trial.key):
            again = ref.locate(spec.command)
            if trial.command:
                again = ref.locate(trial.command, storage=False)
            yield Finding(
                problem=f"trial {trial.number} has no valid run record `{trial.key[:SHORT]}` here",
                remedy=f"run it again: `{again}`",
            )
