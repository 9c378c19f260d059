"""The progress of one run, in a terminal and in W&B."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from moist.tracking.journal import Journal

if TYPE_CHECKING:
    from moist.env import Progress


class WandbProgress:
    """Progress that is passed on to another, and logged to the journal of a W&B run."""

    def __init__(self, inner: Progress, journal: Journal) -> None:
        self.inner, self.journal = inner, journal

    def started(self, stage: str, key: str) -> None:
        self.inner.started(stage, key)

    def advanced(self, stage: str, done: int, total: int, metrics: Mapping[str, float]) -> None:
        self.inner.advanced(stage, done, total, metrics)
        self.journal.log_epoch(stage, done, metrics)

    def finished(self, stage: str, key: str, seconds: float) -> None:
        self.inner.finished(stage, key, seconds)
        self.journal.log_stage(stage, seconds, reused=False)

    def reused(self, stage: str, key: str, seconds: float, origin: str = "") -> None:
        self.inner.reused(stage, key, seconds, origin)
        self.journal.log_stage(stage, seconds, reused=True)

    def warned(self, message: str) -> None:
        self.inner.warned(message)

    def noted(self, text: str) -> None:
        self.inner.noted(text)
