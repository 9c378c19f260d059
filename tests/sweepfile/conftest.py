"""Fixtures that write a sweep file and read it."""

import pytest
from sweep_texts import HEAD, written

from moist.sweepfile import problems, read_sweep


@pytest.fixture
def read(tmp_path):
    """Return a function that reads entries, with overrides, as a sweep."""
    return lambda entries, *overrides, head=HEAD: read_sweep(
        written(tmp_path, entries, head), overrides
    )


@pytest.fixture
def refused(tmp_path):
    """Return a function that gives the only mistake of some entries."""

    def message(entries: str, head: str = HEAD) -> str:
        (line,) = problems(written(tmp_path, entries, head))
        return line

    return message
