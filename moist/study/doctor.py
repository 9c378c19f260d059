"""What can be wrong with a study that no driver mends by itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from moist.results.report import Record
from moist.results.trials import Trial
from moist.store.runs import RunRecords
from moist.study.leases import holder
from moist.study.ref import StudyRef
from moist.study.storage import Described, open_storage

SHARED = {"nfs", "nfs4", "cifs", "smb3", "fuse.sshfs", "9p"}
"""File systems whose locks SQLite can't rely on."""


class Finding(Record):
    """Something wrong, and what mends it."""

    problem: str
    remedy: str


def examine(ref: StudyRef, described: Described, trials: Sequence[Trial]) -> list[Finding]:
    """All findings on a study, the gravest first."""
    found = [*_database(ref), *_disk(ref)]
    if holder(ref) is None:
        found += _abandoned(ref, described, trials)
    return [*found, *_records(ref, described, trials)]


def _database(ref: StudyRef) -> Iterator[Finding]:
    from sqlalchemy import text

    if not ref.is_file:
        return
    with open_storage(ref).engine.connect() as connection:
        said = connection.execute(text("PRAGMA integrity_check")).scalar()
    if said != "ok":
        yield Finding(
            problem=f"the database `{ref.url.database}` is damaged: {said}",
            remedy="restore a copy of it; the runs themselves are on record (`moist runs`)",
        )


def _disk(ref: StudyRef) -> Iterator[Finding]:
    mounts = Path("/proc/mounts")
    if not ref.is_file or not ref.url.database or not mounts.exists():
        return
    path = Path(ref.url.database).resolve()
    rows = [line.split() for line in mounts.read_text().splitlines()]
    kinds = {row[1]: row[2] for row in rows if path.is_relative_to(row[1])}
    kind = kinds[max(kinds, key=len)] if kinds else ""
    if kind in SHARED:
        yield Finding(
            problem=f"`{path}` lies on a network disk ({kind}), where SQLite's locks may fail",
            remedy="keep it on a local disk, or use `--storage postgresql://...`",
        )


def _abandoned(ref: StudyRef, described: Described, trials: Sequence[Trial]) -> Iterator[Finding]:
    for trial in trials:
        if trial.state == "running":
            yield Finding(
                problem=f"trial {trial.number} is unfinished and nobody drives the study",
                remedy=f"continue with `{ref.locate(described.command)}`",
            )


def _records(ref: StudyRef, described: Described, trials: Sequence[Trial]) -> Iterator[Finding]:
    for trial in trials:
        if trial.state == "failed" and not trial.reason:
            yield Finding(
                problem=f"trial {trial.number} failed without a reason",
                remedy=f"`{ref.command('sweep retry')}` puts it in line again",
            )
        if trial.state == "complete" and trial.key and not RunRecords(ref.home).get(trial.key):
            again = ref.locate(described.command)
            if trial.command:
                again = ref.locate(trial.command, storage=False)
            yield Finding(
                problem=f"trial {trial.number} has no sound run record `{trial.key[:8]}` here",
                remedy=f"run it again: `{again}`",
            )
