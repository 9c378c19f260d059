"""What can be wrong with a study that no driver mends by itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from moist.results.report import Record
from moist.results.trials import Trial
from moist.store import runs
from moist.study.commands import placed
from moist.study.leases import holder
from moist.study.storage import Described, open_storage

if TYPE_CHECKING:
    from sqlalchemy import URL

SHARED = {"nfs", "nfs4", "cifs", "smb3", "fuse.sshfs", "9p"}
"""File systems whose locks SQLite can't rely on."""


class Finding(Record):
    """Something wrong, and what mends it."""

    problem: str
    remedy: str


def examine(
    study: str, url: URL, home: Path, described: Described, trials: Sequence[Trial]
) -> list[Finding]:
    """All findings on a study, the gravest first."""
    found = [*_database(url, home), *_disk(url)]
    if holder(url, study, home) is None:
        found += _abandoned(described, trials)
    return [*found, *_records(study, home, described, trials)]


def _database(url: URL, home: Path) -> Iterator[Finding]:
    from sqlalchemy import text

    if url.get_backend_name() != "sqlite":
        return
    with open_storage(url, home).engine.connect() as connection:
        said = connection.execute(text("PRAGMA integrity_check")).scalar()
    if said != "ok":
        yield Finding(
            problem=f"the database `{url.database}` is damaged: {said}",
            remedy="restore a copy of it; the runs themselves are on record (`moist runs`)",
        )


def _disk(url: URL) -> Iterator[Finding]:
    mounts = Path("/proc/mounts")
    if url.get_backend_name() != "sqlite" or not url.database or not mounts.exists():
        return
    path = Path(url.database).resolve()
    rows = [line.split() for line in mounts.read_text().splitlines()]
    kinds = {row[1]: row[2] for row in rows if path.is_relative_to(row[1])}
    kind = kinds[max(kinds, key=len)] if kinds else ""
    if kind in SHARED:
        yield Finding(
            problem=f"`{path}` lies on a network disk ({kind}), where SQLite's locks may fail",
            remedy="keep it on a local disk, or use `--storage postgresql://...`",
        )


def _abandoned(described: Described, trials: Sequence[Trial]) -> Iterator[Finding]:
    for trial in trials:
        if trial.state == "running":
            yield Finding(
                problem=f"trial {trial.number} is unfinished and nobody drives the study",
                remedy=f"continue with `{placed(described.command)}`",
            )


def _records(
    study: str, home: Path, described: Described, trials: Sequence[Trial]
) -> Iterator[Finding]:
    for trial in trials:
        if trial.state == "failed" and not trial.reason:
            yield Finding(
                problem=f"trial {trial.number} failed without a reason",
                remedy=f"`{placed(f'moist sweep retry {study}')}` puts it in line again",
            )
        if trial.state == "complete" and trial.key and not runs.recorded(home, trial.key):
            again = placed(described.command)
            if trial.command:
                again = placed(trial.command, storage=False)
            yield Finding(
                problem=f"trial {trial.number} has no sound run record `{trial.key[:8]}` here",
                remedy=f"run it again: `{again}`",
            )
