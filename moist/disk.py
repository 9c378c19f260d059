"""Files that appear whole or not at all, their checksums, and locks between processes."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from filelock import FileLock, SoftFileLock, Timeout
from safetensors import SafetensorError

from moist.errors import ConfigError, StoreError, as_typed

ELSEWHERE = "choose another folder with `--home DIR` or MOIST_HOME"
SPACE = f"free some space (`moist cache gc` deletes the least recently used), or {ELSEWHERE}"
UNFINISHED = ".downloading-"
"""Prefix of the folder that a download is written to until it is complete."""
HOME = "~/.moist"
"""The home folder, unless `--home` or MOIST_HOME names another."""
NOTICE = 2.0
"""Seconds after which a wait for another process is reported."""
URL = re.compile(r"[a-z][a-z0-9+.-]+:/+", re.I)
"""How URLs begin, also as a `Path`, which has lost the second slash."""


def expanded(path: Path, option: str = "") -> Path:
    """Expand the `~` of a path; `option` is what was written before it, as `data.root=`.

    Raises ConfigError for a user without a home folder, and for a path that can't be one: a URL,
    too long, a loop of links, or no text. A file that is missing or forbidden is its reader's
    error.
    """
    if url := URL.match(str(path)):
        raise ConfigError(
            f"`{option}{url[0]}...` is a URL", "name a file or folder of this machine: download it"
        )
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


def home_of(home: str | Path | None) -> Path:
    """Return `home`, or MOIST_HOME, or ~/.moist. Raises ConfigError for what can't be a path."""
    return expanded(Path(home or os.environ.get("MOIST_HOME") or HOME))


def store_url(store: str | None) -> str | None:
    """Return the URL of the store to share: `store`, or MOIST_STORE; of a folder its whole path.

    None if there is none. Raises ConfigError for what can't be a path.
    """
    url = store or os.environ.get("MOIST_STORE") or None
    return str(expanded(Path(url)).absolute()) if url and "://" not in url else url


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


def warn(message: str) -> None:
    """Print a warning on stderr."""
    print(f"warning: {as_typed(message)}", file=sys.stderr)


class Wait:
    """A wait for another process, which is reported once it has taken `notice` seconds."""

    def __init__(
        self,
        describe: Callable[[], str],
        warn: Callable[[str], None] = warn,
        notice: float = NOTICE,
    ) -> None:
        self.describe, self.warn, self.notice = describe, warn, notice
        self.began = time.monotonic()
        self.reported = False

    def seconds(self) -> float:
        """Return how long it has taken; call this several times a second."""
        waited = time.monotonic() - self.began
        if waited >= self.notice and not self.reported:
            self.reported = True
            self.warn(self.describe())
        return waited


@contextmanager
def locked(
    path: Path,
    what: str = "another process",
    warn: Callable[[str], None] = warn,
    notice: float = NOTICE,
) -> Iterator[None]:
    """Hold the lock of a file; wait while another process holds it, and report a long wait.

    The kernel frees the lock when its holder dies, however it dies. Raises StoreError where the
    file can't be created.
    """
    wait = Wait(lambda: f"waiting for {what}: {_obstacle(path)}", warn, notice)
    while True:
        with locked_if_free(path, timeout=0.2) as free:
            if free:
                yield
                return
        wait.seconds()


@contextmanager
def locked_if_free(path: Path, timeout: float = 0.0) -> Iterator[bool]:
    """Hold the lock of a file unless another process has it for `timeout` seconds.

    Yields whether it is held. Raises StoreError where the file can't be created.
    """
    lock = FileLock(path)
    with writing(path.parent, ELSEWHERE):
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(Timeout):
            lock.acquire(timeout=timeout)
    try:
        if lock.is_locked and not isinstance(lock, SoftFileLock):  # which has such a record
            with suppress(OSError):  # a full disk; it is only for messages
                path.write_text(f"{os.getpid()}\n{socket.gethostname()}\n")
        yield lock.is_locked
    finally:
        lock.release()


def is_locked(path: Path) -> bool:
    """Return whether a process holds the lock of a file; takes no lock, and creates no file.

    Raises StoreError where the file can't be read.
    """
    held = _probe(path)
    if held is None:  # a file is a lock by being there, and has a record while it is held
        import psutil

        pid, host = _record(path)
        return bool(pid) and (host != socket.gethostname() or psutil.pid_exists(pid))
    return held


def this_process() -> str:
    """Name this process to users of other machines."""
    return f"process {os.getpid()} on {socket.gethostname()}"


def holder(path: Path) -> str:
    """Name the process that holds the lock of a file."""
    pid, host = _record(path)
    return f"process {pid} on {host}" if pid else "another process"


def _record(path: Path) -> tuple[int, str]:
    """Read who holds a lock, as it wrote when it took it; 0 if there is no such record."""
    try:
        pid, host, *_ = path.read_text().splitlines()
        return int(pid), host
    except (OSError, ValueError):
        return 0, ""


def _obstacle(path: Path) -> str:
    """Say who holds the lock of a file."""
    held = f"{holder(path)} holds `{path}`"
    if _probe(path) is None:
        held += ", which may be left over, as this file system has no locks: delete it if it is"
    return held


def _probe(path: Path) -> bool | None:
    """Return whether the kernel knows a holder of a file's lock; None where it has no locks."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: several may check at once
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    except OSError as error:
        if error.errno == errno.ENOSYS:
            return None
        raise StoreError(f"can't read `{path}`: {error.strerror}", ELSEWHERE) from error
    return False
