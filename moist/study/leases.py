"""One driver a study: a lock that its holder's death frees, and who holds it.

For PostgreSQL it is an advisory lock of the server's; for a file, and any other database, a lock
on a file (beside the database's, or in the home folder: there it keeps apart the drivers of one
home only).
"""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from moist.errors import StoreError
from moist.store.objects import ELSEWHERE, writing
from moist.study.commands import placed
from moist.study.database import is_file, reaching

if TYPE_CHECKING:
    from sqlalchemy import URL, Engine

PATIENCE = 1.0
"""Seconds in which a lock can be somebody's who only looks whether it is held, and in which its
new holder says who it is."""


class Held(StoreError):
    """Another process drives the study."""


def me() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}"


@contextmanager
def lease(url: URL, study: str, home: Path) -> Iterator[None]:
    """Be the only driver of a study. Raises Held, saying who is."""
    if url.get_backend_name() == "postgresql":
        with _advisory(url, study):
            yield
    else:
        with _locked(lock_file(url, study, home), study):
            yield


def holder(url: URL, study: str, home: Path) -> str | None:
    """Who drives a study now; None if nobody does."""
    if url.get_backend_name() == "postgresql":
        return _advisor(url, study)
    path = lock_file(url, study, home)
    if not path.exists():
        return None
    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        return _owner(path)
    lock.release()
    return None


def lock_file(url: URL, name: str, home: Path) -> Path:
    """Where the lock of that name lies."""
    path = Path(url.database or "").resolve() if is_file(url) else None
    whose = f"{path.name if path else url.render_as_string()}\n{name}"
    stem = f"study-{hashlib.sha256(whose.encode()).hexdigest()[:16]}.lock"
    return path.with_name(f".{stem}") if path else home / "locks" / stem


@contextmanager
def turn(url: URL, home: Path) -> Iterator[None]:
    """Wait until nobody else creates tables or studies in this database."""
    if url.get_backend_name() == "postgresql":
        with _advisory(url, "", wait=True):
            yield
        return
    path = lock_file(url, "", home)
    with writing(path.parent, ELSEWHERE):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _locked(path: Path, study: str) -> Iterator[None]:
    lock = FileLock(path)
    with writing(path.parent, ELSEWHERE):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=PATIENCE)
        except Timeout:
            raise _held(study, _owner(path)) from None
        path.with_suffix(".owner").write_text(me())
    try:
        yield
    finally:
        lock.release()


def _owner(path: Path) -> str:
    """What the holder wrote; it may be about to."""
    with suppress(FileNotFoundError):
        return path.with_suffix(".owner").read_text() or "another process"
    return "another process"


def _held(study: str, who: str) -> Held:
    return Held(
        f"study `{study}` is driven by {who}",
        f"wait for it, watch it with `{placed(f'moist sweep status {study}')}`,"
        " or choose another `--study`",
    )


@contextmanager
def _advisory(url: URL, study: str, wait: bool = False) -> Iterator[None]:
    """A lock of the server's, as long as this connection lives; its name says who holds it."""
    from sqlalchemy import text

    asked = "pg_advisory_lock" if wait else "pg_try_advisory_lock"
    with _engine(url) as engine, engine.connect() as connection:
        answer = connection.execute(text(f"SELECT {asked}(:key)"), {"key": _number(study)})
        if answer.scalar() is False:
            raise _held(study, _advisor(url, study) or "another process")
        yield


def _advisor(url: URL, study: str) -> str | None:
    from sqlalchemy import text

    asked = text(
        "SELECT application_name FROM pg_locks JOIN pg_stat_activity USING (pid)"
        " WHERE locktype = 'advisory' AND granted AND datname = current_database()"
        " AND ((classid::bigint << 32) | objid::bigint) = :key"
    )
    with _engine(url) as engine, engine.connect() as connection:
        name = connection.execute(asked, {"key": _number(study)}).scalar()
    return None if name is None else str(name).removeprefix("moist ")


@contextmanager
def _engine(url: URL) -> Iterator[Engine]:
    """Connections that say whose they are. Raises StoreError for what the server refuses."""
    from sqlalchemy import create_engine

    name = f"moist {me()}"[:63]  # what PostgreSQL keeps of it
    with reaching(url):
        with reaching(url, ImportError):
            engine = create_engine(
                url, isolation_level="AUTOCOMMIT", connect_args={"application_name": name}
            )
        try:
            yield engine
        finally:
            engine.dispose()


def _number(study: str) -> int:
    """63 bits of the study's name, which is what an advisory lock is called by."""
    digest = hashlib.sha256(f"moist study {study}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
