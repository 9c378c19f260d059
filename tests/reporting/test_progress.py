"""The progress of a search on stderr."""

import pytest

from moist.reporting.progress import SearchProgress
from moist.study.events import Warned


def test_a_warning_that_every_trial_repeats_is_printed_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with SearchProgress(quiet=True) as progress:
        for event in (Warned(0, "of the data"), Warned(1, "of the data"), Warned(1, "other"),
                      Warned(None, "a worker died"), Warned(None, "a worker died")):  # fmt: skip
            progress.observe(event)
    assert [line.removeprefix("warning: ") for line in capsys.readouterr().err.splitlines()] == [
        "trial 0: of the data", "trial 1: other", "a worker died", "a worker died",
    ]  # fmt: skip
