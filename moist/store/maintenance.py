"""What is stored, listed, checked and cleaned up: everything `moist cache` does.

Knows files only, as `objects.py` does: no torch here, so the commands answer at once.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Collection
from pathlib import Path

from moist.data.torchvision_sets import BESIDE
from moist.results.report import Record
from moist.store.objects import (
    MANIFEST,
    Damaged,
    check,
    discard,
    folder_of,
    quarantine,
    read,
    unless_held,
    utc,
    writing,
)

DAY = 86_400.0
"""Seconds after which what a dead process left is nobody's any more."""


class Entry(Record):
    """One stored object; times are UTC in ISO format, `seconds` what computing it took."""

    key: str
    stage: str
    bytes: int
    seconds: float
    created: str
    last_used: str


def entries(home: Path) -> list[Entry]:
    """Everything stored, least recently used first; what can't be read has stage `(damaged)`."""
    keys = sorted(path.name for path in (home / "objects").glob("??/*"))
    found = [entry for key in keys if (entry := _entry(folder_of(home, key)))]
    return sorted(found, key=lambda entry: entry.last_used)


def _entry(folder: Path) -> Entry | None:
    try:
        manifest = read(folder)
    except Damaged:
        manifest = None
    try:
        used_at = (folder / MANIFEST if manifest else folder).stat().st_mtime
        size = _bytes(folder)
    except FileNotFoundError:  # deleted by another process
        return None
    if manifest is None:
        stage, seconds, created = "(damaged)", 0.0, ""
    else:
        stage, seconds, created = manifest.stage, manifest.seconds, manifest.created
    return Entry(
        key=folder.name, stage=stage, bytes=size, seconds=seconds, created=created,
        last_used=utc(used_at),
    )  # fmt: skip


def verify(home: Path) -> list[tuple[str, str]]:
    """Key and problem of each damaged object, all of which are put into quarantine.

    What another process is computing is left to it.
    """
    problems: list[tuple[str, str]] = []
    for entry in entries(home):
        with unless_held(home, entry.key) as free:
            try:
                if free:
                    check(home, entry.key)
            except Damaged as damage:
                quarantine(home, entry.key, str(damage))
                problems.append((entry.key, str(damage)))
    return problems


def gc(home: Path, max_bytes: int, pinned: Collection[str] = ()) -> int:
    """Delete what was used least recently until `max_bytes` are left; returns the bytes freed.

    Pinned keys, and those being computed, stay. Leftovers of killed processes go after a day.
    """
    stored = entries(home)
    total = sum(entry.bytes for entry in stored)
    freed = _sweep(home, older_than=DAY)
    for entry in stored:
        if total > max_bytes and entry.key not in pinned and _remove(home, entry.key):
            total -= entry.bytes
            freed += entry.bytes
    return freed


def clear(home: Path, stage: str | None = None) -> int:
    """Delete what one stage computed, or everything; returns the bytes freed.

    What is being computed stays.
    """
    doomed = [entry for entry in entries(home) if stage in (None, entry.stage)]
    freed = sum(entry.bytes for entry in doomed if _remove(home, entry.key))
    return freed + (_sweep(home, older_than=0.0) if stage is None else 0)


def _remove(home: Path, key: str) -> bool:
    with unless_held(home, key) as free, writing(home):
        if free and (folder := folder_of(home, key)).exists():
            discard(home, folder)
            return True
    return False


def _sweep(home: Path, older_than: float) -> int:
    """Delete quarantined objects and what killed processes left; returns the bytes freed.

    What has no lock to ask for belongs to whoever wrote it, for a day.
    """
    freed = 0
    for folder in home.glob("partial/*"):
        with unless_held(home, folder.name) as free:
            freed += _expire(folder, older_than) if free else 0
    freed += sum(_expire(folder, older_than) for folder in home.glob("quarantine/*"))
    unlocked = [*home.glob("tmp/*"), *home.glob(f"data/downloads/*/{BESIDE}*")]
    return freed + sum(_expire(folder, DAY) for folder in unlocked)


def _expire(folder: Path, older_than: float) -> int:
    """Delete a folder that nothing was written to for so many seconds."""
    try:
        last = max(path.stat().st_mtime for path in (folder, *folder.rglob("*")))
        size = _bytes(folder)
    except FileNotFoundError:  # its owner is at work
        return 0
    if time.time() - last < older_than:
        return 0
    shutil.rmtree(folder, ignore_errors=True)
    return size


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
