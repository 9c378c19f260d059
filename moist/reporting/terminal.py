"""Terminal output: a run's progress on stderr, tables on stdout. Never imports torch."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from moist.errors import ConfigError

SHORT = 8
"""Characters of a key that are printed; commands accept any unique prefix."""


def duration(seconds: float) -> str:
    """Format a time as `0.42 s`, `38 s`, `14 min` or `2.5 h`."""
    if seconds < 10:
        return f"{seconds:.2g} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def size(count: float) -> str:
    """Format bytes in the largest unit that leaves a number of at least 1."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError


class TerminalProgress:
    """The progress of a run on stderr: a bar for each stage on a terminal, else a line.

    With `quiet` only warnings are printed.
    """

    def __init__(self, quiet: bool = False) -> None:
        self.console = Console(stderr=True, highlight=False)
        self.quiet = quiet
        self.bars: Progress | None = None
        self.task: TaskID | None = None

    def started(self, stage: str, key: str) -> None:
        """Show a bar if stderr is a terminal."""
        if self.quiet or not self.console.is_terminal:
            return
        self.bars = Progress(
            TextColumn("{task.description:<18}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[metrics]}"),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
        )
        self.task = self.bars.add_task(stage, total=None, metrics="")
        self.bars.start()

    def advanced(self, stage: str, done: int, total: int, metrics: Mapping[str, float]) -> None:
        if self.bars is not None and self.task is not None:
            shown = {name: metrics[name] for name in ("loss", "val_accuracy") if name in metrics}
            text = "  ".join(f"{name} {value:.4f}" for name, value in shown.items())
            self.bars.update(self.task, completed=done, total=total, metrics=text)

    def finished(self, stage: str, key: str, seconds: float) -> None:
        self.close()
        self.noted(f"{stage:<18} {key[:SHORT]}  computed in {duration(seconds)}")

    def reused(self, stage: str, key: str, seconds: float) -> None:
        self.noted(f"{stage:<18} {key[:SHORT]}  reused, {duration(seconds)} saved")

    def warned(self, message: str) -> None:
        self.console.print(f"warning: {message}", style="yellow", markup=False, soft_wrap=True)

    def noted(self, text: str) -> None:
        """Print a line of progress."""
        if not self.quiet:
            self.console.print(text, markup=False, soft_wrap=True)

    def close(self) -> None:
        """Remove the bar of a stage that has ended."""
        if self.bars is not None:
            self.bars.stop()
            self.bars = self.task = None


def console() -> Console:
    """Return standard output, with wide lines unless it is a terminal."""
    out = Console(highlight=False)
    return out if out.is_terminal else Console(highlight=False, width=400)


def print_table(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table; columns of numbers are right-aligned."""
    table = Table(title=title or None, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for index, head in enumerate(heads):
        numeric = all(row[index][:1].isdigit() or row[index] == "-" for row in rows)
        table.add_column(head, justify="right" if numeric and index else "left")
    for row in rows:
        table.add_row(*map(escape, row))
    console().print(table)


def fail(message: str) -> None:
    """Print an error on stderr."""
    err = Console(stderr=True, highlight=False)
    err.print(f"error: {message}", style="red", markup=False, soft_wrap=True)


def parse_size(text: str) -> int:
    """Parse bytes from `500MB`, `10 GB` or a plain number. Raises ConfigError."""
    units = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", text.lower())
    if not found or found[2] not in units:
        raise ConfigError(f"`{text}` is not a size", "for example: 500MB or 10GB")
    return int(float(found[1]) * units[found[2]])
