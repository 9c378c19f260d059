"""Connections to a database server: one that does not answer is reported, and given up."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Timer
from typing import TYPE_CHECKING, Any

from moist.disk import NOTICE, warn
from moist.study.ref import StudyRef

if TYPE_CHECKING:
    from sqlalchemy import Engine

GIVE_UP = 15
"""Seconds for which a server may take to answer, unless the URL has a `connect_timeout`."""
TIMED = {"psycopg", "psycopg2", "pymysql", "mysqldb"}
"""Clients that take a `connect_timeout`; without one PostgreSQL's wait for two minutes."""


@contextmanager
def connections(ref: StudyRef, **options: Any) -> Iterator[Engine]:
    """Create an engine that reports a wait for its server; dispose of it in the end.

    Raises StoreError for a client that is not installed.
    """
    from sqlalchemy import create_engine, event

    with ref.translated_errors(ImportError):
        engine = create_engine(ref.url, **options)

    @event.listens_for(engine, "do_connect")
    def connect(dialect: Any, _record: Any, words: Any, named: Any) -> Any:
        slow = Timer(NOTICE, warn, [f"waiting for the server of `{ref.shown}` to answer"])
        slow.daemon = True
        slow.start()
        try:
            return dialect.connect(*words, **named)
        finally:
            slow.cancel()

    try:
        yield engine
    finally:
        engine.dispose()


def timeout(ref: StudyRef) -> dict[str, Any]:
    """Return the argument of a connection that ends a wait for a server; none for a file."""
    timed = ref.url.get_dialect().driver in TIMED and "connect_timeout" not in ref.url.query
    return {"connect_timeout": GIVE_UP} if timed else {}
