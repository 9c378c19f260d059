"""A run's progress, told to a terminal and to W&B."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from moist.tracking.journal import Journal

if TYPE_CHECKING:
    from moist.env import Progress


class Tracked:
    """Passes all that a run tells on to who watches it, and what W&B shows to a journal."""

    def __init__(self, watcher: Progress, journal: Journal) -> None:
        self.watcher, self.journal = watcher, journal

    def started(self, stage: str, key: str) -> None:
        self.watcher.started(stage, key)

    def advanced(self, stage: str, done: int, total: int, metrics: Mapping[str, float]) -> None:
        self.watcher.advanced(stage, done, total, metrics)
        self.journal.log_epoch(stage, done, metrics)

    def finished(self, stage: str, key: str, seconds: float) -> None:
        self.watcher.finished(stage, key, seconds)
        self.journal.log_stage(stage, seconds, reused=False)

    def reused(self, stage: str, key: str, seconds: float) -> None:
        self.watcher.reused(stage, key, seconds)
        self.journal.log_stage(stage, seconds, reused=True)

    def warned(self, message: str) -> None:
        self.watcher.warned(message)
