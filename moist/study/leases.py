"""One driver for each study: a lock that is released when its process dies, and its owner.

For PostgreSQL it is an advisory lock of the server; else a lock on a file, beside an SQLite
database, or in the home folder (there it excludes only drivers with the same home).
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from moist.disk import Wait, holder, is_locked, locked, locked_if_free, this_process
from moist.errors import StoreError, first_line
from moist.study.ref import StudyRef
from moist.study.server import connections, timeout

if TYPE_CHECKING:
    from sqlalchemy import Engine

LOCK_TIMEOUT = 1.0
"""Seconds for which a process may hold a lock only to see whether it is free."""
POLL = 0.1
"""Seconds between attempts to get a lock of a server."""


class AlreadyDriven(StoreError):
    """Another process drives the study."""


class LeaseLost(StoreError):
    """The server has freed this driver's lock: another may drive the study from now on."""


@contextmanager
def lease(ref: StudyRef) -> Iterator[Callable[[], None]]:
    """Hold the lock of a study's only driver. Raises AlreadyDriven, naming the driver.

    Yields a check, to be called often: it raises LeaseLost once a server has cut the connection
    that has the lock. The lock of a file is held until its process ends.
    """
    if ref.is_postgres:
        with _advisory(ref) as held:
            yield held
    else:
        with _locked(ref):
            yield lambda: None


def driver_of(ref: StudyRef) -> str | None:
    """Return the process that drives a study now; None if there is none."""
    if ref.is_postgres:
        return _advisory_owner(ref)
    path = lock_file(ref)
    return holder(path) if is_locked(path) else None


def lock_file(ref: StudyRef) -> Path:
    """Return the path of a study's lock; with an empty name, of the whole database's."""
    path = ref.file and ref.file.resolve()
    named = f"{path.name if path else ref.url.render_as_string()}\n{ref.name}"
    stem = f"study-{hashlib.sha256(named.encode()).hexdigest()[:16]}.lock"
    return path.with_name(f".{stem}") if path else ref.home / "locks" / stem


@contextmanager
def turn(ref: StudyRef) -> Iterator[None]:
    """Wait until no other process creates tables or studies in the database."""
    database, what = replace(ref, name=""), f"another process to prepare `{ref.shown}`"
    if ref.is_postgres:
        with _advisory(database, what):
            yield
    else:
        with locked(lock_file(database), what):
            yield


@contextmanager
def _locked(ref: StudyRef) -> Iterator[None]:
    path = lock_file(ref)
    with locked_if_free(path, timeout=LOCK_TIMEOUT) as free:
        if not free:
            raise _already_driven(ref, holder(path))
        yield


def _already_driven(ref: StudyRef, driver: str) -> AlreadyDriven:
    return AlreadyDriven(
        f"study `{ref.name}` is driven by {driver}",
        f"wait for it, watch it with `{ref.command('sweep status')}`, or choose another `--study`",
    )


@contextmanager
def _advisory(ref: StudyRef, what: str = "") -> Iterator[Callable[[], None]]:
    """Hold a lock of the server, as long as this connection lives; the connection names us.

    Waits for the lock if the wait has a name, else raises AlreadyDriven. Yields a check that
    raises LeaseLost once the connection is lost.
    """
    from sqlalchemy import text
    from sqlalchemy.exc import SQLAlchemyError

    causes: list[str] = []

    def held() -> None:
        try:
            if not causes:  # a lost connection would be replaced by one without the lock
                connection.execute(text("SELECT 1"))
                return
        except SQLAlchemyError as error:
            causes.append(first_line(getattr(error, "orig", None) or error))
        raise LeaseLost(
            f"the connection that holds the lock of study `{ref.name}` was cut: {causes[0]}",
            "another driver may go on with it; if none does, the same command continues",
        )

    def owner() -> str:
        return _advisory_owner(ref) or "another process"

    query, key = text("SELECT pg_try_advisory_lock(:key)"), {"key": _number(ref.name)}
    wait = Wait(lambda: f"waiting for {what}: {owner()} holds its lock")
    with _engine(ref) as engine, engine.connect() as connection:
        while not connection.execute(query, key).scalar():
            if not what:
                raise _already_driven(ref, owner())
            wait.seconds()
            time.sleep(POLL)
        yield held


def _advisory_owner(ref: StudyRef) -> str | None:
    from sqlalchemy import text

    query = text(
        "SELECT application_name FROM pg_locks JOIN pg_stat_activity USING (pid)"
        " WHERE locktype = 'advisory' AND granted AND datname = current_database()"
        " AND ((classid::bigint << 32) | objid::bigint) = :key"
    )
    with _engine(ref) as engine, engine.connect() as connection:
        name = connection.execute(query, {"key": _number(ref.name)}).scalar()
    return None if name is None else str(name).removeprefix("moist ")


@contextmanager
def _engine(ref: StudyRef) -> Iterator[Engine]:
    """Connect under this process's name. Raises StoreError for what the server refuses."""
    name = f"moist {this_process()}"[:63]  # PostgreSQL stores no more
    arguments = {"application_name": name, **timeout(ref)}
    options = {"isolation_level": "AUTOCOMMIT", "connect_args": arguments}
    with ref.translated_errors(), connections(ref, **options) as engine:
        yield engine


def _number(study: str) -> int:
    """Hash a study's name to 63 bits: advisory locks are named by integers."""
    digest = hashlib.sha256(f"moist study {study}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
