"""What a person sees: progress on stderr, tables on stdout. Never imports torch."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from moist.errors import ConfigError
from moist.report import Measures, Report

SHORT = 8
"""Characters of a key that people see; commands take any unique prefix."""


def duration(seconds: float) -> str:
    """`0.42 s`, `38 s`, `14 min`, `2.5 h`."""
    if seconds < 10:
        return f"{seconds:.2g} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def size(count: float) -> str:
    """Bytes in the largest unit that leaves a number of at least 1."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError


class Watcher:
    """Progress of a run: a bar a stage on a terminal, else a line a stage."""

    def __init__(self, quiet: bool = False) -> None:
        self.console = Console(stderr=True, quiet=quiet, highlight=False)
        self.bars: Progress | None = None
        self.task: TaskID | None = None
        self.saved = 0.0
        self.reused_stages = 0

    def started(self, stage: str, key: str) -> None:
        if not self.console.is_terminal:
            return
        self.bars = Progress(
            TextColumn("{task.description:<18}"),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f} {task.fields[said]}"),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
        )
        self.task = self.bars.add_task(stage, total=None, said="")
        self.bars.start()

    def advanced(self, stage: str, done: int, total: int, metrics: Mapping[str, float]) -> None:
        if self.bars is not None and self.task is not None:
            shown = {name: metrics[name] for name in ("loss", "val_accuracy") if name in metrics}
            said = "  ".join(f"{name} {value:.4f}" for name, value in shown.items())
            self.bars.update(self.task, completed=done, total=total, said=said)

    def finished(self, stage: str, key: str, seconds: float) -> None:
        self._stop()
        self.console.print(f"{stage:<18} {key[:SHORT]}  computed in {duration(seconds)}")

    def reused(self, stage: str, key: str, seconds: float) -> None:
        self.saved += seconds
        self.reused_stages += 1
        self.console.print(f"{stage:<18} {key[:SHORT]}  reused, {duration(seconds)} saved")

    def warned(self, message: str) -> None:
        self.console.print(f"warning: {message}", style="yellow", markup=False)

    def _stop(self) -> None:
        if self.bars is not None:
            self.bars.stop()
            self.bars = self.task = None

    def close(self) -> None:
        self._stop()


def print_report(report: Report, config: Mapping[str, Any], command: str) -> None:
    """The run's table with what it has to beat, its clusters, and the command that repeats it."""
    out = Console(highlight=False)
    out.print(models_table(report, config))
    out.print(clusters_table(report))
    upper = report.baselines.oracle.accuracy
    out.print(
        f"routing accuracy {report.routing_accuracy:.2%}; with a perfect router (told the class:"
        f" an upper bound) these students reach {upper:.2%}"
    )
    out.print(
        f"n = {report.n_test} test images, {report.n_val} validation; {report.machine.device},"
        f" {report.machine.threads} threads, torch {report.machine.torch}"
    )
    print(f"run {report.key[:SHORT]}  repeat it with: {command}")


def models_table(report: Report, config: Mapping[str, Any]) -> Table:
    table = Table(
        title=f"{config['data.name']}: MoIST beside what it is made of", title_justify="left"
    )
    table.add_column("model")
    for head in (
        "accuracy\n% test", "accuracy\n% val", "loss\nnats", "ECE\n%", "MFLOPs\nan image",
        "MMACs\nan image", "params\nM", "ms a call\nbatch 1 (p95)", "ms a call\nbatch 256 (p95)",
    ):  # fmt: skip
        table.add_column(head, justify="right")
    name = f"MoIST k={report.k}, {config['router']} router"
    if config["router"] == "oracle":
        name += " (upper bound)"
    for label, row in (
        (name, report),
        ("single student", report.baselines.student),
        (f"teacher {config['teacher.arch']}", report.baselines.teacher),
    ):
        table.add_row(label, *_cells(row))
    return table


def _cells(row: Measures) -> list[str]:
    def milliseconds(batch: str) -> str:
        if row.latency_ms is None or row.latency_p95_ms is None:
            return "-"
        return f"{row.latency_ms[batch]:.3g} ({row.latency_p95_ms[batch]:.3g})"

    return [
        f"{row.accuracy:.2%}".rstrip("%"),
        "-" if row.val_accuracy is None else f"{row.val_accuracy:.2%}".rstrip("%"),
        f"{row.loss:.4f}",
        f"{row.ece * 100:.2f}",
        f"{row.mflops:.2f}",
        f"{row.mmacs:.2f}",
        f"{row.params / 1e6:.3f}",
        milliseconds("batch_1"),
        milliseconds("batch_256"),
    ]


def clusters_table(report: Report) -> Table:
    """Which classes each student gets, and how it fares with them (the paper's Fig. 2)."""
    table = Table(title="students", title_justify="left")
    table.add_column("student")
    table.add_column("its classes")
    for head in ("test images\nreceived", "of its own\n%", "routed here\n%", "accuracy\n%"):
        table.add_column(head, justify="right")
    for j, classes in enumerate(report.clusters):
        got = sum(counts[j] for counts in report.sent.values())
        own = sum(report.sent[name][j] for name in classes)
        table.add_row(
            str(j),
            ", ".join(classes),
            str(got),
            f"{100 * own / got:.2f}" if got else "-",
            f"{100 * report.per_cluster_routing_accuracy[j]:.2f}",
            f"{100 * report.per_cluster_accuracy[j]:.2f}",
        )
    return table


def print_table(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A plain table; heads that end in a unit or a count are right-aligned."""
    table = Table(title=title or None, title_justify="left")
    for index, head in enumerate(heads):
        numeric = index > 0 and all(_number(row[index]) for row in rows)
        table.add_column(head, justify="right" if numeric else "left")
    for row in rows:
        table.add_row(*row)
    Console(highlight=False).print(table)


def _number(text: str) -> bool:
    return text[:1].isdigit() or text[:1] in "-"


def fail(message: str) -> None:
    Console(stderr=True, highlight=False).print(f"error: {message}", style="red", markup=False)


def note(message: str) -> None:
    print(message, file=sys.stderr)


def parse_size(text: str) -> int:
    """Bytes from `500MB`, `10 GB` or a plain number. Raises ConfigError for anything else."""
    units = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", text.lower())
    if not found or found[2] not in units:
        raise ConfigError(f"`{text}` is no size", "for example: 500MB or 10GB")
    return int(float(found[1]) * units[found[2]])
