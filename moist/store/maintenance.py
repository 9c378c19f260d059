"""List, check and clean up stage outputs: everything that `moist cache` does.

Knows files only, as `objects.py` does: no torch here, so that the commands answer at once.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Collection, Iterable
from pathlib import Path

from moist.disk import UNFINISHED, writing
from moist.results.report import Record
from moist.store.objects import MANIFEST, Damaged, ObjectStore, utc

DAY = 86_400.0
"""Seconds after which files without a lock are taken to be left by a killed process."""


class Entry(Record):
    """One stored object; times are UTC in ISO format, `seconds` the time it took to compute."""

    key: str
    stage: str
    bytes: int
    seconds: float
    created: str
    last_used: str


def entries(objects: ObjectStore) -> list[Entry]:
    """List the stored objects, least recently used first; an unreadable one is `(damaged)`."""
    found = [entry for key in objects.keys() if (entry := _entry(objects, key))]
    return sorted(found, key=lambda entry: entry.last_used)


def _entry(objects: ObjectStore, key: str) -> Entry | None:
    folder = objects.folder(key)
    try:
        manifest = objects.manifest(key)
    except Damaged:
        manifest = None
    try:
        used_at = (folder / MANIFEST if manifest else folder).stat().st_mtime
        size = bytes_of(folder)
    except FileNotFoundError:  # deleted by another process
        return None
    if manifest is None:
        stage, seconds, created = "(damaged)", 0.0, ""
    else:
        stage, seconds, created = manifest.stage, manifest.seconds, manifest.created
    return Entry(
        key=key, stage=stage, bytes=size, seconds=seconds, created=created, last_used=utc(used_at)
    )


def verify(objects: ObjectStore) -> list[tuple[str, str]]:
    """Move each damaged object to quarantine; return their keys and problems.

    Skips keys that another process is computing: its object can look damaged while it replaces
    it. In a home that can't be written to, damaged objects stay.
    """
    problems: list[tuple[str, str]] = []
    for entry in entries(objects):
        try:
            objects.check(entry.key)
        except Damaged as damage:
            if os.access(objects.home, os.W_OK):
                problems += _moved_aside(objects, entry.key)
            else:
                problems.append((entry.key, str(damage)))
    return problems


def _moved_aside(objects: ObjectStore, key: str) -> list[tuple[str, str]]:
    """Move an object to quarantine if it is damaged and no other process is computing it."""
    with objects.locked_if_free(key) as free:
        try:
            if free:
                objects.check(key)
        except Damaged as damage:
            objects.quarantine(key, str(damage))
            return [(key, str(damage))]
    return []


def gc(objects: ObjectStore, max_bytes: int, pinned: Collection[str] = ()) -> int:
    """Delete the least recently used until `max_bytes` are left; return the bytes freed.

    Keeps pinned keys and those being computed. Deletes files of killed processes after a day.
    """
    stored = entries(objects)
    total = sum(entry.bytes for entry in stored)
    freed = _delete_leftovers(objects, older_than=DAY)
    for entry in stored:
        if total > max_bytes and entry.key not in pinned and _delete(objects, entry.key):
            total -= entry.bytes
            freed += entry.bytes
    return freed


def clear(objects: ObjectStore, stage: str | None = None) -> int:
    """Delete the outputs of one stage, or everything; return the bytes freed.

    Keeps what is being computed.
    """
    chosen = [entry for entry in entries(objects) if stage in (None, entry.stage)]
    freed = delete(objects, chosen)
    return freed + (_delete_leftovers(objects, older_than=0.0) if stage is None else 0)


def delete(objects: ObjectStore, chosen: Iterable[Entry]) -> int:
    """Delete objects, except what is being computed; return the bytes freed."""
    return sum(entry.bytes for entry in chosen if _delete(objects, entry.key))


def _delete(objects: ObjectStore, key: str) -> bool:
    """Delete an object; return False if another process has its lock or has deleted it."""
    with objects.locked_if_free(key) as free, writing(objects.home):
        if free and key in objects:
            objects.discard(key)
            return True
    return False


def _delete_leftovers(objects: ObjectStore, older_than: float) -> int:
    """Delete quarantined objects and files of killed processes; return the bytes freed.

    Files that no lock protects may belong to a living process, so they stay for a day.
    """
    home, freed = objects.home, 0
    for folder in home.glob("partial/*"):
        with objects.locked_if_free(folder.name) as free:
            freed += _expire(folder, older_than) if free else 0
    freed += sum(_expire(folder, older_than) for folder in home.glob("quarantine/*"))
    unlocked = [*home.glob("tmp/*"), *home.glob(f"data/downloads/*/{UNFINISHED}*")]
    return freed + sum(_expire(folder, DAY) for folder in unlocked)


def _expire(folder: Path, older_than: float) -> int:
    """Delete a folder last written to more than `older_than` seconds ago; return its bytes."""
    try:
        last = max(path.stat().st_mtime for path in (folder, *folder.rglob("*")))
        size = bytes_of(folder)
    except FileNotFoundError:  # its process is writing
        return 0
    if time.time() - last < older_than:
        return 0
    shutil.rmtree(folder, ignore_errors=True)
    return size


def bytes_of(path: Path) -> int:
    """Return the size of a file, or of all files in a folder."""
    return sum(one.stat().st_size for one in (path, *path.rglob("*")) if one.is_file())
