"""Terminal output: a run's progress on stderr, tables on stdout. Never imports torch."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

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

from moist.errors import ConfigError, masked

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
        self.console = console(stderr=True)
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
        text = f"warning: {masked(message)}"
        self.console.print(text, style="yellow", soft_wrap=True)

    def noted(self, text: str) -> None:
        """Print a line of progress."""
        if not self.quiet:
            self.console.print(masked(text), soft_wrap=True)

    def close(self) -> None:
        """Remove the bar of a stage that has ended."""
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


def fail(message: str) -> None:
    """Print an error on stderr."""
    console(stderr=True).print(f"error: {masked(message)}", style="red", soft_wrap=True)


def parse_size(text: str) -> int:
    """Parse bytes from `500MB`, `10 GB` or a plain number. Raises ConfigError."""
    units = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", text.lower())
    if not found or found[2] not in units:
        raise ConfigError(f"`{text}` is not a size", "for example: 500MB or 10GB")
    return int(float(found[1]) * units[found[2]])
