"""What a sweep file is read as, or rejected for."""

import pytest
from sweep_texts import HEAD, written

from moist.sweepfile import problems, read_sweep


@pytest.fixture
def read(tmp_path):
    """From entries (and overrides) to the sweep."""
    return lambda entries, *overrides, head=HEAD: read_sweep(
        written(tmp_path, entries, head), overrides
    )


@pytest.fixture
def refused(tmp_path):
    """From entries to the one thing that is wrong with them."""

    def said(entries: str, head: str = HEAD) -> str:
        (line,) = problems(written(tmp_path, entries, head))
        return line

    return said
