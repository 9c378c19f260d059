"""A database by its URL: named without its password, and what it refuses said in our words."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from moist.errors import ConfigError, StoreError

if TYPE_CHECKING:
    from sqlalchemy import URL

SECRET = re.compile(r"(://[^:/@\s]*):\S*@")
ASKED = re.compile(r"([?&]\w*(?:password|passwd|pwd)=)[^&\s'\"]+", re.IGNORECASE)


def masked(text: str) -> str:
    """The same without the passwords of the URLs in it, to be kept and shown."""
    return ASKED.sub(r"\1***", SECRET.sub(r"\1:***@", text))


def url_of(storage: str | None, home: Path) -> URL:
    """The database: `storage`, or one SQLite file under the home folder. Raises ConfigError."""
    from sqlalchemy import URL, make_url
    from sqlalchemy.exc import ArgumentError

    if not storage:
        return URL.create("sqlite", database=str(home / "studies.db"))
    try:
        url = make_url(storage)
        url.get_dialect()
    except (ArgumentError, ValueError):
        # Where it goes wrong isn't known, nor where in it a password may be.
        shown = re.sub(r":.*@", ":***@", storage)
        raise ConfigError(
            f"`--storage {shown}` is no database URL",
            "for example: sqlite:///studies.db or postgresql://USER@HOST/NAME",
        ) from None
    if is_file(url) and url.database in {None, "", ":memory:"}:
        raise ConfigError(
            f"`--storage {storage}` is SQLite in memory: nothing of it could be resumed",
            "name a file: sqlite:///studies.db",
        )
    return url


def is_file(url: URL) -> bool:
    """Whether the database is a file of SQLite's."""
    return url.get_backend_name() == "sqlite"


@contextmanager
def reaching(url: URL, *also: type[Exception]) -> Iterator[None]:
    """Turn what a database refuses, and the errors named, into a StoreError."""
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import SQLAlchemyError

    refusals: tuple[type[Exception], ...] = (SQLAlchemyError, StorageInternalError, *also)
    try:
        yield
    except refusals as error:
        raise StoreError(
            f"the database `{url.render_as_string()}` failed: {_root(error)}", _remedy(url)
        ) from error


def _root(error: BaseException) -> str:
    """The first line of what the database's own client said."""
    while error.__cause__ is not None:
        error = error.__cause__
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _remedy(url: URL) -> str:
    if is_file(url):
        return "it must be a SQLite file that you may write, on a disk with room"
    return (
        "does the server run, may you log in (`PGPASSWORD` or `~/.pgpass` keep the password out"
        " of the URL), is its client installed (PostgreSQL's: `pip install moist[postgres]`)?"
    )
