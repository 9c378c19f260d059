"""When a study is given up: its time is over, its draws come to nothing, its trials fail alike."""

from __future__ import annotations

import math
import time

from moist.results.trials import Trial

FRUITLESS = 200
"""Draws in a row that were told without training, after which a study is given up."""

ALIKE = 5
"""Trials in a row that may fail on an error of the same class, until the study is given up."""


class Patience:
    """Counts what comes to nothing, in a row; the clock starts with it."""

    def __init__(self, timeout: float | None) -> None:
        self.timeout = timeout
        self.deadline = time.monotonic() + (timeout or math.inf)
        self.draws = 0
        self.failures: list[str] = []

    def drew(self) -> None:
        """Another trial was drawn."""
        self.draws += 1

    def told(self, how: str) -> None:
        """A trial came to something, or to nothing."""
        if how in {"trained", "known"}:
            self.draws = 0

    def learn(self, trial: Trial) -> None:
        """Take in what ended, of earlier starts too."""
        if trial.state == "complete":
            self.failures.clear()
        elif trial.state == "failed" and trial.reason:
            self.failures.append(trial.reason.splitlines()[0].partition(":")[0])

    @property
    def over(self) -> str:
        """That the time is over; empty before."""
        late = time.monotonic() > self.deadline
        return f"the {self.timeout:g} seconds are over" if late else ""

    @property
    def fruitless(self) -> str:
        """That drawing on makes no sense; empty while it does."""
        many = self.draws >= FRUITLESS
        return f"the last {FRUITLESS} draws were not worth training" if many else ""

    @property
    def alike(self) -> bool:
        """Whether trials fail of one cause, which no further trial would mend."""
        last = self.failures[-ALIKE:]
        return len(last) == ALIKE and len(set(last)) == 1
