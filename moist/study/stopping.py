"""Reasons to stop a study early: its time limit, useless draws, equal failures."""

from __future__ import annotations

import math
import time

from moist.results.trials import Trial

USELESS_DRAWS = 200
"""Draws in a row that were not worth training, after which a study stops."""

EQUAL_FAILURES = 5
"""Trials in a row that failed with an error of one class, after which a study stops."""


class Stopping:
    """Counts useless draws and equal failures in a row; its clock starts when it is made."""

    def __init__(self, timeout: float | None) -> None:
        self.timeout = timeout
        self.deadline = time.monotonic() + (timeout or math.inf)
        self.draws = 0
        self.failures: list[str] = []

    def drew(self) -> None:
        """Count another draw."""
        self.draws += 1

    def ended(self, outcome: str) -> None:
        """Reset the counts after a trial with results."""
        if outcome in {"trained", "reused"}:
            self.draws = 0

    def learn(self, trial: Trial) -> None:
        """Add a trial that ended, now or before an earlier driver stopped."""
        if trial.state == "complete":
            self.failures.clear()
        elif trial.state == "failed" and trial.reason:
            self.failures.append(trial.reason.splitlines()[0].partition(":")[0])

    @property
    def timed_out(self) -> str:
        """Return a message once the time limit is reached; empty before."""
        late = time.monotonic() > self.deadline
        return f"the time limit of {self.timeout:g} seconds is reached" if late else ""

    @property
    def draws_are_useless(self) -> str:
        """Return a message once further draws make no sense; empty before."""
        many = self.draws >= USELESS_DRAWS
        return f"the last {USELESS_DRAWS} draws were not worth training" if many else ""

    @property
    def failures_are_equal(self) -> bool:
        """Return whether the last trials failed with one class of error."""
        last = self.failures[-EQUAL_FAILURES:]
        return len(last) == EQUAL_FAILURES and len(set(last)) == 1
