"""All mistakes of a file at once: a ConfigError of a line each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from moist.errors import ConfigError


@contextmanager
def together() -> Iterator[list[str]]:
    """Raise as one ConfigError the mistakes that are put into the list, a line each."""
    wrong: list[str] = []
    yield wrong
    if wrong:
        raise ConfigError("\n".join(wrong))


@contextmanager
def noted(wrong: list[str], where: str = "") -> Iterator[None]:
    """Put the mistakes of a ConfigError that is raised within into the list, after `where`."""
    try:
        yield
    except ConfigError as error:
        lines = [f"{where}{line}" for line in str(error.args[0]).splitlines()]
        wrong += [f"{line}; {error.hint}" for line in lines] if error.hint else lines
