"""What stages computed, on disk: one folder a key, whole or not there, and checked when read.

    HOME/objects/ab/ab12../   artifact.json, tensors.safetensors, manifest.json
         locks/KEY.lock       held while KEY is computed; never deleted, as that splits waiters
         partial/KEY/         checkpoints of a stage that has not finished
         tmp/                 objects being written or deleted
         quarantine/          damaged objects, each with its reason.txt

Knows files only, never what is in them: no torch here, as run records need none.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from moist.errors import StoreError
from moist.results.report import Record
from moist.store.keys import canonical, key_of

MANIFEST = "manifest.json"
ELSEWHERE = "choose another folder with `--home DIR` or MOIST_HOME"
SPACE = f"make room (`moist cache gc` drops what was used least recently), or {ELSEWHERE}"


class Damaged(StoreError):
    """An object is not what was stored; the message says which file and why."""


class File(Record):
    """One file of an object, as it was stored."""

    bytes: int
    sha256: str


class Signed(Record):
    """A record that proves itself: the one text that it is ends in a checksum over the rest."""

    checksum: str = ""

    def text(self) -> bytes:
        """The only bytes that are this record; a field it was written without stays out."""
        body = self.model_dump(mode="json", exclude={"checksum"}, exclude_unset=True)
        checksum = hashlib.sha256(canonical(body)).hexdigest()
        signed = {**body, "checksum": checksum}
        return json.dumps(signed, sort_keys=True, allow_nan=False, indent=1).encode()


class Manifest(Signed):
    """What an object is, and the checksums that prove it; `recipe` is its stage's inputs."""

    key: str
    stage: str
    version: int
    recipe: dict[str, Any]
    files: dict[str, File]
    seconds: float
    created: str
    machine: dict[str, Any]
    moist: str
    commit: str | None


def folder_of(home: Path, key: str) -> Path:
    return home / "objects" / key[:2] / key


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Wait until a file or a folder has reached the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def now() -> str:
    return utc(time.time())


def utc(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds")


@contextmanager
def writing(home: Path, hint: str = SPACE) -> Iterator[None]:
    """Turn what the disk refuses into a StoreError that says what to do."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise StoreError(f"can't write in `{home}`: {reason}", hint) from error


@contextmanager
def scratch(folder: Path) -> Iterator[Path]:
    """A name in `folder` to write a file under, before it is renamed; gone afterwards."""
    tmp = folder / f".{uuid4().hex}.tmp"
    with writing(folder):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            yield tmp
        finally:
            with suppress(OSError):
                tmp.unlink()


def prepare(home: Path) -> None:
    """Create the home folder. Raises StoreError if it can't be created or written in."""
    with writing(home, ELSEWHERE):
        for name in ("objects", "locks", "partial", "tmp"):
            (home / name).mkdir(parents=True, exist_ok=True)
            if not os.access(home / name, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


@contextmanager
def alone(home: Path, key: str, waiting: Callable[[], None]) -> Iterator[None]:
    """Hold `key` against all other processes; calls `waiting` once if one of them holds it.

    The kernel frees the lock when its holder dies, however it dies.
    """
    lock = FileLock(home / "locks" / f"{key}.lock")
    with writing(home, ELSEWHERE):
        try:
            lock.acquire(blocking=False)
        except Timeout:
            waiting()
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def unless_held(home: Path, key: str) -> Iterator[bool]:
    """Hold `key` if nobody does: True; otherwise False, without waiting."""
    with writing(home, ELSEWHERE):
        (home / "locks").mkdir(parents=True, exist_ok=True)
        lock = FileLock(home / "locks" / f"{key}.lock")
        with suppress(Timeout):
            lock.acquire(blocking=False)
    try:
        yield lock.is_locked
    finally:
        lock.release()


def publish(home: Path, fill: Callable[[Path], None], **facts: Any) -> Manifest:
    """Store the files that `fill` writes: all of them, or nothing.

    An object that is already there is replaced. Raises StoreError when the disk refuses.
    """
    tmp = home / "tmp" / uuid4().hex
    try:
        with writing(home):
            tmp.mkdir(parents=True)
            fill(tmp)
            files = {
                path.name: File(bytes=path.stat().st_size, sha256=digest(path))
                for path in tmp.iterdir()
            }
            manifest = Manifest(files=files, created=now(), **facts)
            (tmp / MANIFEST).write_bytes(manifest.text())
            for path in (*tmp.iterdir(), tmp):
                sync(path)
            _install(home, tmp, folder_of(home, manifest.key))
        return manifest
    finally:
        shutil.rmtree(tmp, ignore_errors=True)


def _install(home: Path, tmp: Path, folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    if folder.exists():
        discard(home, folder)
    try:
        os.rename(tmp, folder)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        # Where locks don't reach, another machine may be first; its object has the same key.
    sync(folder.parent)


def check(home: Path, key: str) -> Manifest | None:
    """The manifest of a stored object, every byte of which was verified; None if there is none.

    Raises Damaged when a file is missing, added, or not what was stored.
    """
    folder = folder_of(home, key)
    if not folder.is_dir():
        return None
    manifest = read(folder)
    with _reading(MANIFEST):
        found = {path.name for path in folder.iterdir()}
    for name in sorted(found ^ {MANIFEST, *manifest.files}):
        raise Damaged(f"{name}: {'not part of it' if name in found else 'missing'}")
    for name, file in manifest.files.items():
        with _reading(name):
            if (size := (folder / name).stat().st_size) != file.bytes:
                raise Damaged(f"{name}: {size} bytes, {file.bytes} were stored")
            if digest(folder / name) != file.sha256:
                raise Damaged(f"{name}: checksum differs")
    return manifest


def read(folder: Path) -> Manifest:
    """The manifest in a folder. Raises Damaged unless it is, byte by byte, what was written."""
    with _reading(MANIFEST):
        data = (folder / MANIFEST).read_bytes()
    try:
        manifest = Manifest.model_validate(json.loads(data))
        sound = data == manifest.text()
    except (ValueError, RecursionError):
        raise Damaged(f"{MANIFEST}: not readable") from None
    if not sound:
        raise Damaged(f"{MANIFEST}: checksum differs")
    if folder.name != key_of(manifest.stage, manifest.version, manifest.recipe):
        raise Damaged(f"{MANIFEST}: belongs to another key")
    return manifest


@contextmanager
def _reading(name: str) -> Iterator[None]:
    """A file that is gone or that the disk can't read is damage; one we may not read isn't."""
    try:
        yield
    except PermissionError as error:
        raise StoreError(f"can't read `{error.filename}`: {error.strerror}", ELSEWHERE) from error
    except FileNotFoundError:
        raise Damaged(f"{name}: missing") from None
    except OSError as error:
        raise Damaged(f"{name}: {error.strerror}") from error


def quarantine(home: Path, key: str, reason: str) -> Path:
    """Move an object to where nobody reads it, and say why beside it. Needs the key's lock."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
    moved = home / "quarantine" / f"{key}-{stamp}"
    with writing(home):
        moved.parent.mkdir(parents=True, exist_ok=True)
        os.rename(folder_of(home, key), moved)
        (moved / "reason.txt").write_text(f"{reason}\n")
    return moved


def discard(home: Path, folder: Path) -> None:
    """Delete a folder: at once for every reader, even if we are killed halfway."""
    grave = home / "tmp" / uuid4().hex
    grave.parent.mkdir(parents=True, exist_ok=True)
    os.rename(folder, grave)
    shutil.rmtree(grave, ignore_errors=True)


def used(home: Path, key: str) -> None:
    """Note that an object was of use now; a home we may only read stays as it is."""
    with suppress(OSError):
        os.utime(folder_of(home, key) / MANIFEST)
