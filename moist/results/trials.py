"""A trial as a record, independent of the study's database."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from moist.results.report import Record

State = Literal["complete", "pruned", "failed", "running", "waiting"]


class Trial(Record):
    """One trial of a study.

    `values`, by objective, are the study's (validation accuracy); `quantities` has every number
    of the run that a query may use, by the same names; `reported` accuracies on the test split,
    which is never used for selection. All three are empty unless the trial is complete.
    `constraints` has how far each limit is exceeded (at most 0: kept). `reason` is why it was
    pruned or failed, or which run's record answered it. `curves` is the validation accuracy of
    each epoch, by stage. It is not `drawn` while its parameters are incomplete. Seconds: spent
    here, and saved by reuse.
    """

    number: int
    state: State
    params: dict[str, Any]
    values: dict[str, float] = Field(default_factory=dict)
    quantities: dict[str, float] = Field(default_factory=dict)
    reported: dict[str, float] = Field(default_factory=dict)
    constraints: dict[str, float] = Field(default_factory=dict)
    key: str | None = None
    reason: str | None = None
    command: str | None = None
    seconds: float = 0.0
    saved: float = 0.0
    curves: dict[str, tuple[float, ...]] = Field(default_factory=dict)
    attempts: tuple[str, ...] = ()
    retry_of: int | None = None
    drawn: bool = True

    @property
    def feasible(self) -> bool:
        """Return whether it is complete and keeps every limit."""
        return self.state == "complete" and all(v <= 0 for v in self.constraints.values())
