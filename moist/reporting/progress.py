"""The progress of a sweep on stderr: a live board on a terminal, else one line a trial."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from moist.reporting.study_tables import format_params, trial_line
from moist.reporting.terminal import SHORT, duration
from moist.results.objectives import Objective
from moist.results.trials import Trial
from moist.study.schedule import Entry
from moist.study.workers import Message


class Board:
    """What a driver tells, as people read it; `quiet` shows warnings only. Use as a context."""

    def __init__(
        self, name: str, objectives: Sequence[Objective], requested: int, quiet: bool = False
    ) -> None:
        self.name, self.objectives, self.requested, self.quiet = name, objectives, requested, quiet
        self.console = Console(stderr=True, highlight=False)
        self.begun = time.monotonic()
        self.complete = self.fresh = 0
        self.own = ""
        self.running: dict[int, tuple[Entry, str]] = {}
        self.live = Live(get_renderable=self._board, console=self.console, transient=True)

    def __enter__(self) -> Board:
        if self.console.is_terminal and not self.quiet:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.live.stop()

    def resumed(self, complete: int) -> None:
        """Say what an earlier start of the study has done already."""
        self.complete = complete
        if complete:
            self.said(f"{self.name}: {complete} of {self.requested} trials were complete before")

    def started(self, entry: Entry) -> None:
        self.running[entry.number] = (entry, "")

    def heard(self, entry: Entry, message: Message) -> None:
        """Show the stage and epoch that a trial is at."""
        about = message.about
        if message.kind == "epoch":
            said = f"{about['stage']}  {about['done']} of {about['total']}"
            self.running[entry.number] = (entry, said)
        elif message.kind == "stage" and about["state"] == "started":
            self.running[entry.number] = (entry, about["stage"])
        elif message.kind == "warned":
            self.warned(f"trial {entry.number}: {about['text']}")
        elif message.kind in {"held", "lost"}:
            self.running.pop(entry.number, None)

    def told(self, trial: Trial, how: str) -> None:
        self.running.pop(trial.number, None)
        if trial.state == "complete":
            self.complete += 1
            self.fresh += 1
        self.said(trial_line(trial, self.objectives))

    def warned(self, text: str) -> None:
        self.console.print(f"warning: {text}", style="yellow", markup=False, soft_wrap=True)

    def unwanted(self) -> Collection[int]:
        """None: a terminal stops nothing but all."""
        return ()

    def said(self, text: str) -> None:
        """A line of progress."""
        if not self.quiet:
            self.console.print(text, markup=False, soft_wrap=True)

    def _board(self) -> RenderableType:
        """Counts and time, and a line for each trial at work."""
        gone = time.monotonic() - self.begun
        head = f"{self.name}: {self.complete} of {self.requested} trials, {duration(gone)}"
        if self.fresh and self.complete < self.requested:
            left = gone / self.fresh * (self.requested - self.complete)
            head += f", about {duration(left)} left"
        lines = [
            Text(f"  trial {number:>3}  {said:<28}  {format_params(entry.params)}", no_wrap=True)
            for number, (entry, said) in sorted(self.running.items())
        ]
        return Group(Text(f"{head}  {self.own}"), *lines)


class Aside:
    """The driver's own stages (data, latencies) on the board: what they took, and warnings."""

    def __init__(self, board: Board) -> None:
        self.board = board

    def started(self, stage: str, key: str) -> None:
        self.board.own = stage

    def advanced(
        self, stage: str, done: int, total: int, metrics: Mapping[str, float]
    ) -> None: ...
    def reused(self, stage: str, key: str, seconds: float) -> None: ...

    def finished(self, stage: str, key: str, seconds: float) -> None:
        self.board.own = ""
        self.board.said(f"{stage:<18} {key[:SHORT]}  computed in {duration(seconds)}")

    def warned(self, message: str) -> None:
        self.board.warned(message)
