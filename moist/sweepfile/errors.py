"""All mistakes of a file in one ConfigError, a line each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from moist.errors import ConfigError


@contextmanager
def raised_together() -> Iterator[list[str]]:
    """Raise the mistakes that are put into the list as one ConfigError, a line each."""
    mistakes: list[str] = []
    yield mistakes
    if mistakes:
        raise ConfigError("\n".join(mistakes))


@contextmanager
def noted(mistakes: list[str], where: str = "") -> Iterator[None]:
    """Put the mistakes of a ConfigError that is raised inside into the list, after `where`."""
    try:
        yield
    except ConfigError as error:
        lines = [f"{where}{line}" for line in str(error.args[0]).splitlines()]
        mistakes += [f"{line}; {error.hint}" for line in lines] if error.hint else lines
