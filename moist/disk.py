"""Files that appear whole or not at all, their checksums, and locks between processes."""

from __future__ import annotations

import errno
import hashlib
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from moist.errors import ConfigError, StoreError

ELSEWHERE = "choose another folder with `--home DIR` or MOIST_HOME"
SPACE = f"free some space (`moist cache gc` deletes the least recently used), or {ELSEWHERE}"
UNFINISHED = ".downloading-"
"""Prefix of the folder that a download is written to until it is complete."""


def expanded(path: Path, option: str = "") -> Path:
    """Expand the `~` of a path; `option` is what was written before it, as `data.root=`.

    Raises ConfigError for a user without a home folder, and for a path that can't be one: too
    long, a loop of links, or no text. A file that is missing or forbidden is its reader's error.
    """
    check_text(given := f"{option}{path}")
    try:
        expanded = path.expanduser()
        os.stat(expanded)
    except RuntimeError:
        user = path.parts[0].removeprefix("~")
        raise ConfigError(
            f"`{given}`: "
            + (f"there is no user `{user}`" if user else "HOME is not set, nor has the user one"),
            "write the whole path" if user else "set HOME, or write the whole path",
        ) from None
    except OSError as error:
        if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
            raise ConfigError(f"`{given}`: {error.strerror}", "name another path") from None
    return expanded


def check_text(text: str) -> None:
    """Raise ConfigError for bytes that are no text: records and W&B could not hold them."""
    if "\0" in text:
        shown = text.replace("\0", "\\0")
        raise ConfigError(f"`{shown}` has a zero byte", "no file's name can have one")
    try:
        text.encode()
    except UnicodeEncodeError:
        encoding = sys.getfilesystemencoding()
        raise ConfigError(
            f"`{text}` has bytes that are not {encoding.upper()}",
            "rename the file or folder"
            if encoding == "utf-8"
            else "set PYTHONUTF8=1, or rename the file or folder",
        ) from None


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def writing(folder: Path, hint: str = SPACE) -> Iterator[None]:
    """Turn the errors of a disk that can't be written to into a StoreError with a hint."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise StoreError(f"can't write in `{folder}`: {reason}", hint) from error


@contextmanager
def scratch(folder: Path) -> Iterator[Path]:
    """Yield an unused name in `folder` to write a file under; delete the file unless renamed."""
    tmp = folder / f".{uuid4().hex}.tmp"
    try:
        yield tmp
    finally:
        with suppress(OSError):
            tmp.unlink()


def install(tmp: Path, path: Path) -> None:
    """Rename a finished file or folder, so that after a power failure it is whole or not there."""
    flush(tmp)
    os.rename(tmp, path)
    _fsync(path.parent)


def flush(path: Path) -> None:
    """Wait until a file, or a folder with its files, has reached the disk."""
    for part in (*path.iterdir(), path) if path.is_dir() else (path,):
        _fsync(part)


def write_atomically(path: Path, data: bytes, durable: bool = True) -> None:
    """Write a file in place of an older one: a reader finds the old or the new one, whole.

    With `durable=False` a power failure may lose it. Raises OSError, and then changes nothing.
    """
    with scratch(path.parent) as tmp:
        tmp.write_bytes(data)
        install(tmp, path) if durable else os.rename(tmp, path)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def locked(path: Path, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold the lock of a file; call `waiting` once if another process holds it, then wait for it.

    The kernel frees the lock when its holder dies, however it dies. Raises StoreError where the
    file can't be created.
    """
    with locked_if_free(path) as free:
        if free:
            yield
            return
    waiting()
    with locked_if_free(path, timeout=-1):
        yield


@contextmanager
def locked_if_free(path: Path, timeout: float = 0.0) -> Iterator[bool]:
    """Hold the lock of a file unless another process has it for `timeout` seconds (-1: forever).

    Yields whether it is held. Raises StoreError where the file can't be created.
    """
    lock = FileLock(path)
    with writing(path.parent, ELSEWHERE):
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(Timeout):
            lock.acquire(timeout=timeout)
    try:
        yield lock.is_locked
    finally:
        lock.release()
