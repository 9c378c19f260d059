"""Terminal output: a run's progress on stderr, tables on stdout. Never imports torch."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console, JustifyMethod
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from moist.errors import ConfigError, as_typed, masked
from moist.store.keys import SHORT

EVERY = 50.0
"""Seconds between two lines about a stage or a search: at least one a minute."""


def duration(seconds: float) -> str:
    """Format a time as `0.42 s`, `38 s`, `14 min` or `2.5 h`."""
    if seconds < 10:
        return f"{seconds:.2g} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def counted(count: int, what: str, plural: str = "") -> str:
    """Format a number of things: `1 trial`, `2 trials`."""
    return f"{count} {what if count == 1 else plural or what + 's'}"


def between(low: float, high: float) -> str:
    """Format a range of times as `3 to 6 min`, `40 s to 2 min` or `under 1 s`."""
    if high < 1:
        return "under 1 s"
    first, last = (duration(max(one, 1) if one < 1 else round(one)) for one in (low, high))
    if first == last:
        return last
    number, unit = first.split(" ")
    return f"{number} to {last}" if unit == last.split(" ")[1] else f"{first} to {last}"


def size(count: float) -> str:
    """Format bytes in the largest unit that leaves a number of at least 1."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError


def describe(metrics: Mapping[str, float], best: float | None) -> str:
    """Format what an epoch gave as `loss 0.432, val 85.1 %, best 87.0 %`, or less of it."""
    parts = [f"loss {metrics['loss']:.3g}"] if "loss" in metrics else []
    if "val_accuracy" in metrics:
        parts.append(f"val {100 * metrics['val_accuracy']:.1f} %")
    if best is not None:
        parts.append(f"best {100 * best:.1f} %")
    return ", ".join(parts)


@dataclass
class Running:
    """A stage that is being computed: how far it is, its last metrics and its best accuracy."""

    stage: str
    done: int = 0
    total: int | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    best: float | None = None
    began: float = field(default_factory=time.monotonic)

    def advance(self, done: int, total: int, metrics: Mapping[str, float]) -> None:
        """Take in how far it is."""
        self.done, self.total, self.metrics = done, total, metrics
        if "val_accuracy" in metrics:
            self.best = max(metrics["val_accuracy"], self.best or 0.0)

    def __str__(self) -> str:
        """Describe it as `distill_student 3 of 20, loss 0.432, val 85.1 %, best 87.0 %`."""
        at = f"{self.stage} {self.done} of {self.total}" if self.total else self.stage
        return ", ".join(filter(None, (at, describe(self.metrics, self.best))))


class Heartbeat:
    """A thread that prints how far the work is, at least once a minute where no display does.

    `line` returns what to print; nothing is printed while it returns an empty text.
    """

    def __init__(self, line: Callable[[], str], out: Callable[[str], None]) -> None:
        self.line, self.out = line, out
        self.ended: threading.Event | None = None

    def start(self) -> None:
        """Print from now on."""
        self.ended = threading.Event()
        threading.Thread(target=self._run, args=(self.ended,), daemon=True).start()

    def stop(self) -> None:
        """Print no more."""
        if self.ended is not None:
            self.ended.set()
            self.ended = None

    def _run(self, ended: threading.Event) -> None:
        while not ended.wait(EVERY):
            if (text := self.line()) and not ended.is_set():
                self.out(text)


class TerminalProgress:
    """The progress of a run on stderr: a bar for each stage on a terminal, else lines.

    A line says that a stage has ended, and, once a minute, how far a long one is. With `quiet`
    only warnings are printed.
    """

    def __init__(self, quiet: bool = False) -> None:
        self.console = console(stderr=True)
        self.quiet = quiet
        self.running: Running | None = None
        self.bars: Progress | None = None
        self.task: TaskID | None = None
        self.heartbeat = Heartbeat(self._line, self.noted)

    def started(self, stage: str, key: str) -> None:
        """Show a bar if stderr is a terminal."""
        self.running = Running(stage)
        if self.quiet:
            return
        if not self.console.is_terminal:
            self.heartbeat.start()
            return
        self.bars = Progress(
            TextColumn("{task.description:<18}"),
            BarColumn(bar_width=8),
            MofNCompleteColumn(),
            TextColumn("{task.fields[metrics]}"),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
        )
        self.task = self.bars.add_task(stage, total=None, metrics="")
        self.bars.start()

    def advanced(self, stage: str, done: int, total: int, metrics: Mapping[str, float]) -> None:
        if self.running is None:
            return
        self.running.advance(done, total, metrics)
        if self.bars is not None and self.task is not None:
            text = describe(metrics, self.running.best)
            self.bars.update(self.task, completed=done, total=total, metrics=text)

    def _line(self) -> str:
        """Say how far the stage is, and how long it has taken."""
        running = self.running
        if running is None:
            return ""
        return f"{running}, {duration(time.monotonic() - running.began)} so far"

    def finished(self, stage: str, key: str, seconds: float) -> None:
        self.close()
        self.noted(f"{stage:<18} {key[:SHORT]}  computed in {duration(seconds)}")

    def reused(self, stage: str, key: str, seconds: float, origin: str = "") -> None:
        how = f"pulled from {origin}" if origin else "reused"
        self.noted(f"{stage:<18} {key[:SHORT]}  {how}, {duration(seconds)} saved")

    def warned(self, message: str) -> None:
        text = f"warning: {as_typed(masked(message))}"
        self.console.print(text, style="yellow", soft_wrap=True)

    def noted(self, text: str) -> None:
        """Print a line of progress."""
        if not self.quiet:
            self.console.print(as_typed(masked(text)), soft_wrap=True)

    def close(self) -> None:
        """Show a stage that has ended no more."""
        self.heartbeat.stop()
        self.running = None
        if self.bars is not None:
            self.bars.stop()
            self.bars = self.task = None


UNLIMITED = 1_000_000
"""Width of output that is no terminal: lines are as long as they need to be."""
GAP, EDGES = 3, 2
"""Columns of a terminal between two columns of a table, and for its two edges."""


def console(stderr: bool = False) -> Console:
    """Return standard output or error; what is printed stays as it is, `:cat:` and `[red]` too."""
    out = Console(stderr=stderr, highlight=False, emoji=False, markup=False)
    if not stderr and not out.is_terminal:
        out.width = UNLIMITED
    return out


def print_table(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table; columns of numbers are right-aligned.

    No value is cut. Where the terminal is narrow, cells are wrapped between words; where that is
    not enough, each row is printed as lines of head and value.
    """
    out = console()
    if title:
        out.print(title, style="table.title", soft_wrap=True)
    widths = _widths([heads, *rows], out.width - EDGES - GAP * (len(heads) - 1))
    if widths is None:
        for row in rows:
            pairs = zip(heads, row, strict=True)
            text = "\n".join(f"{head}: {cell}" if head else cell for head, cell in pairs)
            out.print(f"\n{text}", soft_wrap=True)
        return
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for index, head in enumerate(heads):
        numeric = all(row[index][:1].isdigit() or row[index] == "-" for row in rows)
        justify: JustifyMethod = "right" if numeric and index else "left"
        table.add_column(Text(head), justify=justify, width=widths[index], overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    out.print(table)


def _widths(lines: Sequence[Sequence[str]], available: int) -> list[int] | None:
    """Return the widths of columns, the widest wrapped first; None if words would be broken."""
    columns = list(zip(*lines, strict=True))
    widths = [max(map(cell_len, column)) for column in columns]
    least = [
        max(cell_len(word) for cell in column for word in cell.split() or [""])
        for column in columns
    ]
    while sum(widths) > available:
        spare = [width - low for width, low in zip(widths, least, strict=True)]
        if not any(spare):
            return None
        widest = max((width, index) for index, width in enumerate(widths) if spare[index])
        widths[widest[1]] -= 1
    return widths


def parse_size(text: str) -> int:
    """Parse bytes from `500MB`, `10 GB` or a plain number. Raises ConfigError."""
    units = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", text.lower())
    if not found or found[2] not in units:
        raise ConfigError(f"`{text}` is not a size", "for example: 500MB or 10GB")
    return int(float(found[1]) * units[found[2]])
