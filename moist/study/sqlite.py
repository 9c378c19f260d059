"""Connections to an SQLite file: that of its driver, and those of whoever only reads it."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from moist.disk import Wait

T = TypeVar("T")

PATIENCE = 60.0
"""Seconds for which a lock of another process is waited for."""
STEP = 0.1
"""Seconds that SQLite itself waits: no Ctrl-C reaches it meanwhile."""
WAL = b"\2\2"
"""Bytes 18 and 19 of a database in WAL mode."""


class Connection(sqlite3.Connection):
    """A connection that waits for locks of other processes, reports it, and can be interrupted."""

    path: Path

    def cursor(self, factory: Any = None) -> Any:
        return super().cursor(factory or Cursor)

    def execute(self, *statement: Any) -> Any:
        return self.cursor().execute(*statement)  # sqlite3's own takes no `Cursor`

    def commit(self) -> None:
        self.patiently(super().commit)

    def patiently(self, call: Callable[[], T]) -> T:
        """Repeat a call while another process's lock is in its way and it has changed nothing."""
        before, wait = self.total_changes, Wait(lambda: f"waiting for {_locked(self.path)}")
        while True:
            try:
                return call()
            except sqlite3.OperationalError as error:
                changed = self.total_changes != before
                if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or changed:
                    raise
                if wait.seconds() > PATIENCE:
                    raise sqlite3.OperationalError(f"{error}: {_locked(self.path)}") from None


class Cursor(sqlite3.Cursor):
    """A cursor of such a connection."""

    connection: Connection

    def execute(self, *statement: Any) -> Any:
        return self.connection.patiently(lambda: super(Cursor, self).execute(*statement))

    def executemany(self, *statement: Any) -> Any:
        return self.connection.patiently(lambda: super(Cursor, self).executemany(*statement))


def connect(path: Path, write: bool) -> Connection:
    """Connect to a database: to write, which creates it, or to read, which creates no file.

    Readers and the one writer do not block each other; a power failure may cost the last trial.
    """
    path = path.resolve()
    connection = sqlite3.connect(
        f"{path.as_uri()}?{'mode=rwc' if write else _reading(path)}",
        uri=True,
        timeout=STEP,
        factory=Connection,
        check_same_thread=False,
    )
    connection.path = path
    if write:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")
    return connection


def _reading(path: Path) -> str:
    """Choose how to open a database to read it.

    A reader of one in WAL mode has to write to files beside it. Where it may not, those of the
    process that writes the database serve, too. If there are none, no process writes it: then it
    can be read as a file that never changes, until the next connection.
    """
    if os.access(path, os.W_OK) and os.access(path.parent, os.W_OK):
        return "mode=rw"
    with suppress(OSError):  # SQLite reports it
        if not Path(f"{path}-wal").exists() and _header(path)[18:20] == WAL:
            return "mode=ro&immutable=1"
    return "mode=ro"


def _header(path: Path) -> bytes:
    """Read the first bytes of a file; of a database only while this process has no connection.

    Closing it would release the locks of this process on it.
    """
    with path.open("rb") as file:
        return file.read(20)


def _locked(path: Path) -> str:
    """Name a database and the processes that lock it, of those which the kernel lets us see."""
    inodes = set()
    for part in (path, Path(f"{path}-shm")):
        with suppress(OSError):
            inodes.add(str(part.stat().st_ino))
    pids = set()
    with suppress(OSError):  # only Linux has this list
        for line in Path("/proc/locks").read_text().splitlines():
            fields = line.replace("->", "").split()
            if fields[5].rpartition(":")[2] in inodes and fields[4] != str(os.getpid()):
                pids.add(fields[4])
    by = f"process {', '.join(sorted(pids))}" if pids else "another process"
    return f"`{path}`, locked by {by}"
