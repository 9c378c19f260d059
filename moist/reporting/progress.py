"""The progress of a search on stderr: a live display on a terminal, else lines."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from moist.reporting.study_tables import format_objective, format_params, trial_line
from moist.reporting.terminal import (
    Heartbeat,
    Running,
    TerminalProgress,
    between,
    counted,
    duration,
)
from moist.results.objectives import losses
from moist.results.trials import Trial
from moist.store.keys import SHORT
from moist.study import events
from moist.study.time_left import TimeLeft


class SearchProgress:
    """An observer that shows a study on stderr; `quiet` shows warnings only. A context."""

    def __init__(self, quiet: bool = False) -> None:
        self.lines = TerminalProgress(quiet)
        self.opened: events.StudyOpened | None = None
        self.began = time.monotonic()
        self.complete = 0
        self.time_left = TimeLeft()
        self.best: Trial | None = None
        self.own_stage = ""
        self.params: dict[int, Mapping[str, Any]] = {}
        self.at: dict[int, Running | None] = {}
        """The stage of each running trial."""
        self.warned = set[str]()
        self.live = Live(get_renderable=self._display, console=self.lines.console, transient=True)
        self.heartbeat = Heartbeat(self._line, self.lines.noted)

    def __enter__(self) -> SearchProgress:
        return self

    def __exit__(self, *_: object) -> None:
        self.heartbeat.stop()
        self.live.stop()

    def observe(self, event: events.Event) -> None:
        """Update the display, or print a line."""
        self.time_left.observe(event)
        match event:
            case events.StudyOpened():
                self._open(event)
            case events.TrialStarted():
                self.params[event.number] = event.params
                self.at[event.number] = None
            case events.StageStarted(number=None):
                self.own_stage = event.stage
            case events.StageFinished(number=None, reused=False):
                self.own_stage = ""
                took = f"computed in {duration(event.seconds)}"
                self.lines.noted(f"{event.stage:<18} {event.key[:SHORT]}  {took}")
            case events.StageFinished(number=None, origin=str(origin)) if origin:
                self.lines.reused(event.stage, event.key, event.seconds, origin)
            case events.StageStarted(number=int(number)):
                self.at[number] = Running(event.stage)
            case events.EpochDone(number=int(number)):
                if running := self.at.get(number):
                    running.advance(event.done, event.total, event.metrics)
            case events.StageFinished(number=int(number)) if number in self.at:
                self.at[number] = None
            case events.Warned(int(), text) if text in self.warned:
                pass  # each trial repeats the warnings of its data
            case events.Warned():
                self.warned.add(event.text)
                where = "" if event.number is None else f"trial {event.number}: "
                self.lines.warned(f"{where}{event.text}")
            case events.Deferred() | events.Lost():
                self.at.pop(event.number, None)
            case events.TrialEnded():
                self._end(event.trial)
            case events.Noted():
                self.lines.noted(event.text)

    def _open(self, event: events.StudyOpened) -> None:
        self.opened, self.complete = event, len(event.trials)
        for trial in event.trials:
            self._compare(trial)
        if not self.lines.quiet:
            (self.live if self.lines.console.is_terminal else self.heartbeat).start()
        if event.trials:
            done = f"{self.complete} of {counted(event.requested, 'trial')} complete before"
            self.lines.noted(f"{event.name}: {done}")

    def _end(self, trial: Trial) -> None:
        self.at.pop(trial.number, None)
        if trial.state == "complete":
            self.complete += 1
            self._compare(trial)
        if self.opened is not None:
            self.lines.noted(trial_line(trial, self.opened.spec.objectives))

    def _compare(self, trial: Trial) -> None:
        """Keep the trial that is best in the first objective."""
        if self.opened is None or not trial.feasible:
            return
        first = self.opened.spec.objectives[:1]
        if self.best is None or losses(trial.values, first) < losses(self.best.values, first):
            self.best = trial

    def _head(self) -> str:
        """Say how many trials are complete, the best so far, and the time."""
        if self.opened is None:
            return ""
        seconds, requested = time.monotonic() - self.began, self.opened.requested
        parts = [f"{self.opened.name}: {self.complete} of {counted(requested, 'trial')}"]
        if self.best is not None:
            value = format_objective(self.opened.spec.objectives[0], self.best)
            parts.append(f"best {value} (trial {self.best.number})")
        parts.append(duration(seconds))
        if self.complete < requested and (left := self.time_left.left()):
            some = duration(left.seconds) if left.records else between(left.low, left.high)
            parts.append(f"about {some} left")
        return ", ".join(parts)

    def _line(self) -> str:
        """Say it all in one line."""
        running = [f"trial {n} {at}" for n, at in sorted(self.at.items()) if at]
        return "; ".join(filter(None, (self._head(), self.own_stage, *running)))

    def _display(self) -> RenderableType:
        """Render counts and time, and a line for each running trial."""
        lines = [
            Text(
                f"  trial {n:>3}  {at or ''!s:<28}  {format_params(self.params[n])}",
                overflow="fold",
            )
            for n, at in sorted(self.at.items())
        ]
        return Group(Text(f"{self._head()}  {self.own_stage}"), *lines)
