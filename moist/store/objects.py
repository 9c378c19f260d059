"""Stage outputs on disk: one folder per key, whole or not there, and verified when it is read.

    HOME/objects/ab/ab12../   artifact.json, tensors.safetensors, manifest.json
         locks/KEY.lock       locked while KEY is computed; never deleted, as that splits waiters
         partial/KEY/         checkpoints of a stage that has not finished
         tmp/                 objects being written or deleted
         quarantine/          damaged objects, each with its reason.txt

Knows files only, never their content: no torch here, as run records need none.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

from moist import disk
from moist.disk import ELSEWHERE, writing
from moist.errors import StoreError, first_line
from moist.results.report import Record
from moist.store.keys import canonical, key_of

MANIFEST = "manifest.json"


class Damaged(StoreError):
    """An object that differs from the one stored; the message says which file and why."""


class File(Record):
    """One file of an object, as it was stored."""

    bytes: int
    sha256: str


class ChecksummedRecord(Record):
    """A record whose JSON text ends in a checksum of the rest.

    The text is verified as it was written, before it is parsed: a record stays valid when a
    field is added or renamed (with its old name as an alias).
    """

    def to_bytes(self) -> bytes:
        """Return the only valid text of this record; fields that were not set stay out.

        Raises StoreError, before anything is replaced, for a record that could not be read back.
        """
        body = self.model_dump(mode="json", exclude_unset=True, by_alias=True)
        try:
            self.from_bytes(data := _checksummed(body))
        except ValueError as error:
            raise StoreError(f"can't record this result: {first_line(error)}") from error
        return data

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Parse a verified text. Raises ValueError unless it is, byte by byte, as written.

        `errors.first_line` says what is wrong.
        """
        constants: list[str] = []
        try:
            body = json.loads(data, parse_constant=constants.append)
            del body["checksum"]
            intact = data == _checksummed(body)
        except (ValueError, KeyError, TypeError, RecursionError):
            raise ValueError("not readable") from None
        if constants:
            raise ValueError(f"it has {constants[0]} where a number must be")
        if not intact:
            raise ValueError("checksum differs")
        return cls.model_validate(body)


def _checksummed(body: dict[str, Any]) -> bytes:
    checksum = hashlib.sha256(canonical(body)).hexdigest()
    complete = {**body, "checksum": checksum}
    return json.dumps(complete, sort_keys=True, allow_nan=False, indent=1).encode()


class Manifest(ChecksummedRecord):
    """The origin of an object and the checksums of its files; `recipe` is its stage's inputs."""

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


def now() -> str:
    return utc(time.time())


def utc(seconds: float) -> str:
    """Format a time since the epoch as ISO 8601 in UTC."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds")


class ObjectStore:
    """The objects in one home folder, by key."""

    def __init__(self, home: Path) -> None:
        self.home = home

    def folder(self, key: str) -> Path:
        return self.home / "objects" / key[:2] / key

    def checkpoints(self, key: str) -> Path:
        """Return the folder in which the stage that computes `key` keeps its checkpoints."""
        return self.home / "partial" / key

    def keys(self) -> list[str]:
        return sorted(path.name for path in (self.home / "objects").glob("??/*"))

    def __contains__(self, key: str) -> bool:
        """Return whether an object is stored, damaged or not."""
        return self.folder(key).is_dir()

    def prepare(self) -> None:
        """Create the home folder. Raises StoreError if it can't be created or written to."""
        with writing(self.home, ELSEWHERE):
            for name in ("objects", "locks", "partial", "tmp"):
                (self.home / name).mkdir(parents=True, exist_ok=True)
                if not os.access(self.home / name, os.W_OK | os.X_OK):
                    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    def locked(
        self, key: str, what: str = "another process", warn: Callable[[str], None] = disk.warn
    ) -> AbstractContextManager[None]:
        """Hold a key's lock, as writing its object requires; see `disk.locked`."""
        return disk.locked(self._lock(key), what, warn)

    def locked_if_free(self, key: str) -> AbstractContextManager[bool]:
        """Hold a key's lock, or yield False if another process does."""
        return disk.locked_if_free(self._lock(key))

    def computed_by(self, key: str) -> str | None:
        """Return the process that holds a key's lock now; None if none does. Takes no lock."""
        path = self._lock(key)
        return disk.holder(path) if disk.is_locked(path) else None

    def _lock(self, key: str) -> Path:
        return self.home / "locks" / f"{key}.lock"

    def publish(self, fill: Callable[[Path], None], **origin: Any) -> Manifest:
        """Store the files that `fill` writes to a folder: all of them, or nothing.

        `origin` has the other fields of the manifest. An object of the same key is replaced.
        Raises StoreError when the disk can't be written to.
        """
        with self._incoming() as tmp:
            fill(tmp)
            files = {
                path.name: File(bytes=path.stat().st_size, sha256=disk.sha256(path))
                for path in tmp.iterdir()
            }
            manifest = Manifest(files=files, created=now(), **origin)
            self._finish(tmp, manifest)
        return manifest

    def adopt(self, manifest: Manifest, fill: Callable[[Path], None]) -> None:
        """Store an object of another machine, whose files `fill` writes to a folder.

        Raises Damaged, and stores nothing, unless they are those of the manifest.
        """
        with self._incoming() as tmp:
            fill(tmp)
            _check_files(tmp, manifest)
            self._finish(tmp, manifest)

    @contextmanager
    def _incoming(self) -> Iterator[Path]:
        """Yield a folder to write an object to; delete it unless it is moved."""
        tmp = self.home / "tmp" / uuid4().hex
        try:
            with writing(self.home):
                tmp.mkdir(parents=True)
                yield tmp
        finally:
            shutil.rmtree(tmp, ignore_errors=True)

    def _finish(self, tmp: Path, manifest: Manifest) -> None:
        (tmp / MANIFEST).write_bytes(manifest.to_bytes())
        self._install(tmp, manifest.key)

    def _install(self, tmp: Path, key: str) -> None:
        self.folder(key).parent.mkdir(parents=True, exist_ok=True)
        disk.flush(tmp)  # before the older object is gone: a disk that fails here keeps it
        if key in self:
            self.discard(key)
        try:
            disk.install(tmp, self.folder(key))
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            # Where locks don't reach, another machine may be first; its object has the same key.

    def check(self, key: str) -> Manifest | None:
        """Verify every byte of an object; return its manifest, or None if nothing is stored.

        Raises Damaged when a file is missing, added, or differs from the one stored.
        """
        manifest = self.manifest(key)
        if manifest is None:
            return None
        folder = self.folder(key)
        with _reading(MANIFEST):
            found = {path.name for path in folder.iterdir()}
        if added := sorted(found - {MANIFEST, *manifest.files}):
            raise Damaged(f"{added[0]}: not part of it")
        _check_files(folder, manifest)
        return manifest

    def manifest(self, key: str) -> Manifest | None:
        """Read an object's manifest, not its other files; None if nothing is stored.

        Raises Damaged unless the manifest is, byte by byte, the one written.
        """
        if key not in self:
            return None
        with _reading(MANIFEST):
            data = (self.folder(key) / MANIFEST).read_bytes()
        return parsed(key, data)

    def quarantine(self, key: str, reason: str) -> Path:
        """Move an object aside, its reason beside it; return where. Needs the key's lock."""
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
        moved = self.home / "quarantine" / f"{key}-{stamp}"
        with writing(self.home):
            moved.parent.mkdir(parents=True, exist_ok=True)
            os.rename(self.folder(key), moved)
            (moved / "reason.txt").write_text(f"{reason}\n")
        return moved

    def discard(self, key: str) -> None:
        """Delete an object: at once for every reader, even if the process is killed halfway."""
        grave = self.home / "tmp" / uuid4().hex
        grave.parent.mkdir(parents=True, exist_ok=True)
        os.rename(self.folder(key), grave)
        shutil.rmtree(grave, ignore_errors=True)

    def touch(self, key: str) -> None:
        """Update an object's last-used time; in a read-only home it stays as it is."""
        with suppress(OSError):
            os.utime(self.folder(key) / MANIFEST)


def parsed(key: str, data: bytes) -> Manifest:
    """Parse the manifest of a key. Raises Damaged unless it is, byte by byte, the one written."""
    try:
        manifest = Manifest.from_bytes(data)
    except ValueError as error:
        raise Damaged(f"{MANIFEST}: {first_line(error)}") from None
    if key != key_of(manifest.stage, manifest.version, manifest.recipe):
        raise Damaged(f"{MANIFEST}: belongs to another key")
    return manifest


def _check_files(folder: Path, manifest: Manifest) -> None:
    """Raise Damaged unless each file of an object is, byte by byte, the one stored."""
    for name, file in manifest.files.items():
        with _reading(name):
            if (size := (folder / name).stat().st_size) != file.bytes:
                raise Damaged(f"{name}: {size} bytes, {file.bytes} were stored")
            if disk.sha256(folder / name) != file.sha256:
                raise Damaged(f"{name}: checksum differs")


@contextmanager
def _reading(name: str) -> Iterator[None]:
    """Raise Damaged for a missing or unreadable file, StoreError where access is denied."""
    try:
        yield
    except PermissionError as error:
        raise StoreError(f"can't read `{error.filename}`: {error.strerror}", ELSEWHERE) from error
    except FileNotFoundError:
        raise Damaged(f"{name}: missing") from None
    except OSError as error:
        raise Damaged(f"{name}: {error.strerror}") from error
