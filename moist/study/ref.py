"""A reference to a study: name, database, home of its runs, and commands that find it again."""

from __future__ import annotations

import os
import re
import shlex
import sqlite3
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from moist.errors import QUERY, ConfigError, MoistError, StoreError, masked_word

if TYPE_CHECKING:
    from sqlalchemy import URL

LONGEST = 200
"""Bytes of a study's name; a file's name has at most 255, and a suffix follows."""
PACKAGES = {
    "psycopg": "moist[postgres]",
    "psycopg2": "psycopg2-binary",
    "mysqldb": "mysqlclient",
    "mysqlconnector": "mysql-connector-python",
}
"""What to install for a database's client, where it has another name."""

NEWER = "a newer Optuna has made or upgraded it: `pip install -U moist optuna`"
"""What to do about tables that are not known here."""


@dataclass(frozen=True)
class StudyRef:
    """A study by its name, in `database`: a file of SQLite's, or the URL of a server.

    Its runs are in the folder `home`.

    `options` are the `--home` and `--storage` of the command line, and only those: what an
    environment variable sets, it sets for the next command, too. Passwords are masked in them.
    """

    name: str
    database: Path | URL
    home: Path
    options: Mapping[str, str] = field(default_factory=dict)
    store: str | None = None
    """URL of the store that the home shares its stage outputs with."""

    @property
    def file(self) -> Path | None:
        """Return the file of SQLite's; None if the database is on a server."""
        return self.database if isinstance(self.database, Path) else None

    @property
    def url(self) -> URL:
        """Return the URL of the server."""
        assert not isinstance(self.database, Path), "an SQLite file has no server"
        return self.database

    @property
    def is_postgres(self) -> bool:
        """Return whether the database is on a PostgreSQL server."""
        return not self.file and self.url.get_backend_name() == "postgresql"

    @property
    def shown(self) -> str:
        """Return the database's URL, its passwords masked."""
        if self.file:
            return masked_word(f"sqlite:///{self.file}")
        return masked_word(self.url.render_as_string())

    @property
    def store_shown(self) -> str:
        """Return the shared store's URL, its passwords masked; empty if there is none."""
        return masked_word(self.store or "")

    def command(self, words: str, *arguments: str) -> str:
        """Write `moist WORDS NAME ARGUMENTS`, such that it finds this study again."""
        return self.locate(shlex.join(["moist", *words.split(), self.name, *arguments]))

    def locate(self, command: str, storage: bool = True) -> str:
        """Add the `options` to a command that lacks them.

        `storage` is False for a command that reads no study.
        """
        words = shlex.split(command)
        for option, value in self.options.items():
            if option == "--storage" and not storage:
                continue
            if not any(word == option or word.startswith(f"{option}=") for word in words):
                command += f" {option} {shlex.quote(value)}"
        return command

    @contextmanager
    def translated_errors(self, *also: type[Exception]) -> Iterator[None]:
        """Raise a StoreError for whatever the database refuses, and for the errors in `also`."""
        try:
            yield
        except MoistError:
            raise
        except Exception as error:
            from optuna.exceptions import StorageInternalError
            from sqlalchemy.exc import SQLAlchemyError

            refusals = sqlite3.Error, SQLAlchemyError, StorageInternalError, *also
            if not isinstance(error, refusals):
                raise
            root = _root(error)
            raise StoreError(
                f"the database `{self.shown}` failed: {root}", self._remedy(error, root)
            ) from error

    def _remedy(self, error: Exception, root: str) -> str:
        """Return what to do about an error of the database, whose first line is `root`."""
        if isinstance(error, ImportError):
            return self._client()
        if "storage upgrade" in root:
            return self.upgrade
        if "install -U optuna" in root:
            return NEWER
        if not self.file:
            return (
                "is the server running, are you allowed to log in (`PGPASSWORD` or `~/.pgpass`"
                " keep the password out of the URL)?"
            )
        if "locked" in root:
            return "another process has locked it for too long: end that, or wait for its end"
        return "it must be a SQLite file that you may read (a search: write), on a disk with space"

    @property
    def upgrade(self) -> str:
        """Return what to do about tables of an older Optuna."""
        return (
            "upgrade it, once no older program uses it (keep a copy):"
            f" `optuna storage upgrade --storage {shlex.quote(self.shown)}`"
        )

    def _client(self) -> str:
        """Return how to install the database's client, which can't be imported."""
        driver = self.url.get_dialect().driver
        other = ", or write `mysql+pymysql://` and install pymysql" if driver == "mysqldb" else ""
        return f"its client is not installed: `pip install {PACKAGES.get(driver, driver)}`{other}"


def check_name(name: str) -> None:
    """Raise ConfigError for a study's name that can't be the name of its plot and log folder."""
    if not re.fullmatch(r"\w[\w.+-]*", name):
        raise ConfigError(
            f"`{name}` can't be a study's name", "use letters, digits and any of `_ . + -`"
        )
    if len(os.fsencode(name)) > LONGEST:
        raise ConfigError(
            f"`{name[:20]}...` is too long for a study's name: {len(os.fsencode(name))} bytes",
            f"a name has at most {LONGEST}: files are named after it",
        )


def _root(error: BaseException) -> str:
    """Return the first line of the database client's own message."""
    while error.__cause__ is not None:
        error = error.__cause__
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def this_command() -> str:
    """Return this process's command, passwords masked."""
    words, after = ["moist"], ""
    for word in sys.argv[1:]:
        option, equals, value = word.partition("=")
        if after == "--storage":
            words.append(storage_shown(word))
        elif option == "--storage" and equals:
            words.append(f"{option}={storage_shown(value)}")
        else:
            words.append(masked_word(word))
        after = word
    return shlex.join(words)


def storage_shown(storage: str) -> str:
    """Mask the passwords in a database's URL; if it is none, all that may be one."""
    try:
        _parsed(storage)
        return masked_word(storage)
    except ValueError:
        head = re.match(r"[\w+]*(?::|//)[:/]*", storage)
        return f"{head[0]}***" if head else masked_word(storage)


def database_of(storage: str | None, home: Path) -> Path | URL:
    """Parse a database's URL: that of an SQLite file is its path, in `home` by default.

    Raises ConfigError.
    """
    if not storage:
        return home / "studies.db"
    try:
        url = _parsed(storage)
    except ValueError:
        raise ConfigError(
            f"`--storage {storage_shown(storage)}` is not a database URL",
            "for example: sqlite:///studies.db or postgresql://USER@HOST/NAME; in a password,"
            " write `%40` for `@`, or leave it to `PGPASSWORD` or `~/.pgpass`",
        ) from None
    if url.get_backend_name() != "sqlite":
        return url
    if url.database in {None, "", ":memory:"}:
        raise ConfigError(
            f"`--storage {storage_shown(storage)}` is SQLite in memory, which can't be resumed",
            "name a file: sqlite:///studies.db",
        )
    if url.query or str(url.database).startswith("file:"):
        raise ConfigError(
            f"`--storage {storage_shown(storage)}` has parameters, and SQLite files take none",
            f"sqlite:///{str(url.database).removeprefix('file:')}",
        )
    return Path(str(url.database))


def _parsed(storage: str) -> URL:
    """Parse a database's URL. Raises ValueError if it is none, or with an unclear password.

    SQLAlchemy takes what follows an `@` in a password for the host.
    """
    from sqlalchemy import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        url = make_url(storage)
        url.get_dialect()
    except ArgumentError as error:
        raise ValueError(str(error)) from None
    credentials = storage.partition("://")[2].rpartition("@")[0]
    clear = re.fullmatch(r"[^:/@]*(:[^@]*)?", credentials) and not QUERY.search(credentials)
    if url.get_backend_name() != "sqlite" and not clear:
        raise ValueError("it has an `@` that does not end the credentials")
    return url
