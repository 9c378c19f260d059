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
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from moist.disk import ELSEWHERE, locked, locked_if_free, writing
from moist.errors import StoreError
from moist.study.ref import StudyRef

if TYPE_CHECKING:
    from sqlalchemy import Engine

PATIENCE = 1.0
"""Seconds in which a lock can be somebody's who only looks whether it is held, and in which its
new holder says who it is."""


class Held(StoreError):
    """Another process drives the study."""


def me() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}"


@contextmanager
def lease(ref: StudyRef) -> Iterator[None]:
    """Be the only driver of a study. Raises Held, naming the driver."""
    with _advisory(ref) if ref.is_postgres else _locked(ref):
        yield


def holder(ref: StudyRef) -> str | None:
    """Return the process that drives a study now; None if there is none."""
    if ref.is_postgres:
        return _advisor(ref)
    path = lock_file(ref)
    if not path.exists():
        return None
    with locked_if_free(path) as free:
        return None if free else _owner(path)


def lock_file(ref: StudyRef) -> Path:
    """Return the path of a study's lock; with an empty name, of the whole database's."""
    path = Path(ref.url.database or "").resolve() if ref.is_file else None
    named = f"{path.name if path else ref.url.render_as_string()}\n{ref.name}"
    stem = f"study-{hashlib.sha256(named.encode()).hexdigest()[:16]}.lock"
    return path.with_name(f".{stem}") if path else ref.home / "locks" / stem


@contextmanager
def turn(ref: StudyRef) -> Iterator[None]:
    """Wait until no other process creates tables or studies in the database."""
    database = replace(ref, name="")
    if ref.is_postgres:
        with _advisory(database, wait=True):
            yield
    else:
        with locked(lock_file(database)):
            yield


@contextmanager
def _locked(ref: StudyRef) -> Iterator[None]:
    path = lock_file(ref)
    with locked_if_free(path, timeout=PATIENCE) as free:
        if not free:
            raise _held(ref, _owner(path))
        with writing(path.parent, ELSEWHERE):
            path.with_suffix(".owner").write_text(me())
        yield


def _owner(path: Path) -> str:
    """What the holder wrote; it may be about to."""
    with suppress(FileNotFoundError):
        return path.with_suffix(".owner").read_text() or "another process"
    return "another process"


def _held(ref: StudyRef, driver: str) -> Held:
    return Held(
        f"study `{ref.name}` is driven by {driver}",
        f"wait for it, watch it with `{ref.command('sweep status')}`, or choose another `--study`",
    )


@contextmanager
def _advisory(ref: StudyRef, wait: bool = False) -> Iterator[None]:
    """A lock of the server's, as long as this connection lives; its name says who holds it."""
    from sqlalchemy import text

    asked = "pg_advisory_lock" if wait else "pg_try_advisory_lock"
    with _engine(ref) as engine, engine.connect() as connection:
        answer = connection.execute(text(f"SELECT {asked}(:key)"), {"key": _number(ref.name)})
        if answer.scalar() is False:
            raise _held(ref, _advisor(ref) or "another process")
        yield


def _advisor(ref: StudyRef) -> str | None:
    from sqlalchemy import text

    asked = text(
        "SELECT application_name FROM pg_locks JOIN pg_stat_activity USING (pid)"
        " WHERE locktype = 'advisory' AND granted AND datname = current_database()"
        " AND ((classid::bigint << 32) | objid::bigint) = :key"
    )
    with _engine(ref) as engine, engine.connect() as connection:
        name = connection.execute(asked, {"key": _number(ref.name)}).scalar()
    return None if name is None else str(name).removeprefix("moist ")


@contextmanager
def _engine(ref: StudyRef) -> Iterator[Engine]:
    """Connections that say whose they are. Raises StoreError for what the server refuses."""
    from sqlalchemy import create_engine

    name = f"moist {me()}"[:63]  # what PostgreSQL keeps of it
    with ref.translated_errors():
        with ref.translated_errors(ImportError):
            engine = create_engine(
                ref.url, isolation_level="AUTOCOMMIT", connect_args={"application_name": name}
            )
        try:
            yield engine
        finally:
            engine.dispose()


def _number(study: str) -> int:
    """63 bits of the study's name, which is what an advisory lock is called by."""
    digest = hashlib.sha256(f"moist study {study}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
