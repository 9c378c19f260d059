"""A reference to a study: name, database, home of its runs, and commands that find it again."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from moist.errors import ConfigError, StoreError

if TYPE_CHECKING:
    from sqlalchemy import URL

CREDENTIALS = re.compile(r"(://[^:/@\s]*):\S*@")
QUERY_PASSWORD = re.compile(r"([?&]\w*(?:password|passwd|pwd)=)[^&\s'\"]+", re.IGNORECASE)
LONGEST = 200
"""Bytes of a study's name; a file's name has at most 255, and a suffix follows."""


@dataclass(frozen=True)
class StudyRef:
    """A study by its name, in the database at `url`; its runs are in the folder `home`.

    `options` are the `--home` and `--storage` of the command line, and only those: what an
    environment variable sets, it sets for the next command, too.
    """

    name: str
    url: URL
    home: Path
    options: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_file(self) -> bool:
        """Return whether the database is one file of SQLite's."""
        return self.url.get_backend_name() == "sqlite"

    @property
    def is_postgres(self) -> bool:
        """Return whether the database is on a PostgreSQL server."""
        return self.url.get_backend_name() == "postgresql"

    def command(self, words: str, *arguments: str) -> str:
        """Write `moist WORDS NAME ARGUMENTS`, such that it finds this study again."""
        return self.locate(shlex.join(["moist", *words.split(), self.name, *arguments]))

    def locate(self, command: str, storage: bool = True) -> str:
        """Add the `options` to a command that lacks them, passwords masked.

        `storage` is False for a command that reads no study.
        """
        words = shlex.split(command)
        for option, value in self.options.items():
            if option == "--storage" and not storage:
                continue
            if not any(word == option or word.startswith(f"{option}=") for word in words):
                command += f" {option} {shlex.quote(masked(value))}"
        return command

    @contextmanager
    def translated_errors(self, *also: type[Exception]) -> Iterator[None]:
        """Raise a StoreError for whatever the database refuses, and for the errors in `also`."""
        from optuna.exceptions import StorageInternalError
        from sqlalchemy.exc import SQLAlchemyError

        refusals: tuple[type[Exception], ...] = (SQLAlchemyError, StorageInternalError, *also)
        try:
            yield
        except refusals as error:
            raise StoreError(
                f"the database `{self.url.render_as_string()}` failed: {_root(error)}",
                self._remedy(),
            ) from error

    def _remedy(self) -> str:
        if self.is_file:
            return "it must be a SQLite file that you may write, on a disk with free space"
        return (
            "is the server running, are you allowed to log in (`PGPASSWORD` or `~/.pgpass` keep"
            " the password out of the URL), is its client installed (for PostgreSQL:"
            " `pip install moist[postgres]`)?"
        )


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


def masked(text: str) -> str:
    """Mask the passwords of all URLs in a text, so that it can be stored and shown."""
    return QUERY_PASSWORD.sub(r"\1***", CREDENTIALS.sub(r"\1:***@", text))


def url_of(storage: str | None, home: Path) -> URL:
    """Parse `storage`; None is one SQLite file in the home folder. Raises ConfigError."""
    from sqlalchemy import URL, make_url
    from sqlalchemy.exc import ArgumentError

    if not storage:
        return URL.create("sqlite", database=str(home / "studies.db"))
    try:
        url = make_url(storage)
        url.get_dialect()
    except (ArgumentError, ValueError):
        # The parser does not say where it failed, so anything before an `@` may be a password.
        shown = re.sub(r":.*@", ":***@", storage)
        raise ConfigError(
            f"`--storage {shown}` is not a database URL",
            "for example: sqlite:///studies.db or postgresql://USER@HOST/NAME",
        ) from None
    if url.get_backend_name() == "sqlite" and url.database in {None, "", ":memory:"}:
        raise ConfigError(
            f"`--storage {storage}` is SQLite in memory, which can't be resumed",
            "name a file: sqlite:///studies.db",
        )
    return url
