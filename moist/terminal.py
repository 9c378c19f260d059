"""What a person sees: progress on stderr, tables on stdout. Never imports torch."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

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
from moist.report import Doubt, Measures, Report

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
    """Progress of a run: a bar a stage on a terminal, else a line a stage.

    `quiet` tells nothing but warnings.
    """

    def __init__(self, quiet: bool = False) -> None:
        self.console = Console(stderr=True, highlight=False)
        self.quiet = quiet
        self.bars: Progress | None = None
        self.task: TaskID | None = None

    def started(self, stage: str, key: str) -> None:
        """Show a bar, on a terminal."""
        if self.quiet or not self.console.is_terminal:
            return
        self.bars = Progress(
            TextColumn("{task.description:<18}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[said]}"),
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
        self.said(f"{stage:<18} {key[:SHORT]}  computed in {duration(seconds)}")

    def reused(self, stage: str, key: str, seconds: float) -> None:
        self.said(f"{stage:<18} {key[:SHORT]}  reused, {duration(seconds)} saved")

    def warned(self, message: str) -> None:
        self.console.print(f"warning: {message}", style="yellow", markup=False, soft_wrap=True)

    def said(self, text: str) -> None:
        """A line of progress."""
        if not self.quiet:
            self.console.print(text, markup=False, soft_wrap=True)

    def _stop(self) -> None:
        if self.bars is not None:
            self.bars.stop()
            self.bars = self.task = None

    def close(self) -> None:
        self._stop()


def console() -> Console:
    """Standard output; as wide as it takes when nobody's terminal limits it."""
    out = Console(highlight=False)
    return out if out.is_terminal else Console(highlight=False, width=400)


def print_table(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table; columns of numbers are right-aligned."""
    table = Table(title=title or None, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for index, head in enumerate(heads):
        numeric = all(row[index][:1].isdigit() or row[index] == "-" for row in rows)
        table.add_column(head, justify="right" if numeric and index else "left")
    for row in rows:
        table.add_row(*map(escape, row))
    console().print(table)


def print_report(report: Report, config: Mapping[str, Any], command: str) -> None:
    """The run beside what it has to beat, its students, and the command that repeats it."""
    print_models(report, config)
    print_times(report, config)
    print_students(report)
    print_classes(report)
    print_routing(report)
    print_doubt(report)
    machine = report.machine
    print(f"n = {report.n_test} test and {report.n_val} validation images")
    if config["teacher.weights"] and report.n_val:
        print("the teacher was brought along: it may have been trained on the validation images")
    stages = ", ".join(f"{name} {duration(s)}" for name, s in report.stage_seconds.items())
    print(f"{duration(report.seconds)} to compute: {stages}")
    print(f"{machine.device}; {machine.threads} threads, torch {machine.torch}")
    print(f"run {report.key[:SHORT]}; repeat it with\n  {command}")


def print_routing(report: Report) -> None:
    """How often the router finds the cluster, and what the students could reach at most."""
    if report.routing_accuracy is not None and report.baselines.oracle is not None:
        print(
            f"routing accuracy {report.routing_accuracy:.2%}; told each image's cluster (an upper"
            f" bound), the students reach {report.baselines.oracle.accuracy:.2%}"
        )


def print_doubt(report: Report) -> None:
    """How often a second opinion was asked for, and how to see the other thresholds."""
    if report.doubt is not None:
        chosen = report.doubt.chosen
        print(
            f"asked for a second opinion on {chosen.asked:.2%} of the test images (threshold"
            f" {chosen.threshold:.4g}, chosen on the validation images: {chosen.val_asked:.2%});"
            f"\nother thresholds: moist curve {report.key[:SHORT]}"
        )


def print_curve(doubt: Doubt) -> None:
    """Every threshold of a second opinion, the chosen one marked."""
    rows = [
        [
            ("> " if point.threshold == doubt.chosen.threshold else "") + f"{point.threshold:.4g}",
            f"{100 * point.val_asked:.1f}",
            f"{100 * point.val_accuracy:.2f}",
            f"{100 * point.asked:.1f}",
            f"{100 * point.accuracy:.2f}",
            f"{point.mflops:.2f}",
            f"{point.mmacs:.2f}",
        ]
        for point in doubt.curve
    ]
    heads = ["threshold", "val asked %", "val %", "asked %", "test %", "MFLOPs", "MMACs"]
    print_table("second opinions: what each threshold gives", heads, rows)


def name_of(config: Mapping[str, Any], k: int) -> str:
    """What a config's model is called, its second opinion aside."""
    match config.get("system", "moist"):  # records of before there were others don't say
        case "ones":
            return f"OneS of k={k}, {config['merge.method']}"
        case "ensemble":
            return f"ensemble of {k}, {config['ensemble.views']} views"
        case "student":
            return f"single student {config['student.arch']}"
    bound = " (told the class)" if config["router"] == "oracle" else ""
    return f"MoIST k={k}, {config['router']} router{bound}"


def models(report: Report, config: Mapping[str, Any]) -> dict[str, Measures]:
    """The rows of the tables, by name."""
    name, beside = name_of(config, report.k), report.baselines
    asks = ""
    if report.doubt is not None:
        second = config["cascade.fallback"]
        asks = f", in doubt {'two experts' if second == 'none' else second}"
    found = {
        f"{name}{asks}": report,
        **({name: beside.first} if beside.first else {}),
        "the mixture merged": beside.mixture,
        "merged, not refined": beside.gathered,
        "single student": None if config.get("system") == "student" else beside.student,
        f"teacher {config['teacher.arch']}": beside.teacher,
    }
    return {name: row for name, row in found.items() if row is not None}


def print_models(report: Report, config: Mapping[str, Any]) -> None:
    """What each model gets right, and what an image costs it."""
    heads = [
        config["data.name"], "test %", "val %", "loss", "ECE %",
        "MFLOPs", "MMACs", "params M", "MB",
    ]  # fmt: skip
    rows = [
        [
            name,
            f"{100 * row.accuracy:.2f}",
            "-" if row.val_accuracy is None else f"{100 * row.val_accuracy:.2f}",
            f"{row.loss:.4f}",
            f"{100 * row.ece:.2f}",
            f"{row.mflops:.2f}",
            f"{row.mmacs:.2f}",
            f"{row.params / 1e6:.3f}",
            f"{row.bytes / 1e6:.2f}",
        ]
        for name, row in models(report, config).items()
    ]
    print_table("accuracy, and cost an image (a multiply-add is one)", heads, rows)


def print_times(report: Report, config: Mapping[str, Any]) -> None:
    """Milliseconds a call, and how many times faster than the teacher in the same call."""
    teacher = report.baselines.teacher.latency_ms or {}
    rows = []
    for name, row in models(report, config).items():
        cells = [name]
        for batch in teacher if row.latency_ms else ():
            if (median := (row.latency_ms or {}).get(batch)) is None:
                cells += ["-"] * 4
                continue
            p95 = (row.latency_p95_ms or {})[batch]
            count = (row.latency_n or {})[batch]
            cells += [f"{median:.3g}", f"{p95:.3g}", f"{teacher[batch] / median:.1f}", str(count)]
        rows += [cells] if row.latency_ms else []
    heads = [
        f"{head}{size}" for size in (1, 256) for head in ("batch ", "p95 ", "x teacher ", "n ")
    ]
    print_table("milliseconds a call (median), beside the teacher", ["", *heads], rows)


def print_students(report: Report) -> None:
    """Which classes each student gets, and how it fares with them (the paper's Fig. 2)."""
    rows = []
    for j, classes in enumerate(report.clusters if report.sent else ()):
        got = sum(counts[j] for counts in report.sent.values())
        own = sum(report.sent[name][j] for name in classes)
        rows.append(
            [
                f"{j}: {', '.join(classes)}",
                str(got),
                f"{100 * own / got:.2f}" if got else "-",
                f"{100 * report.per_cluster_routing_accuracy[j]:.2f}",
                f"{100 * report.per_cluster_accuracy[j]:.2f}",
            ]
        )
    heads = ["student and its classes", "images got", "own %", "found %", "accuracy %"]
    if rows:
        print_table("students on the test images", heads, rows)


MOST_CLASSES = 20
"""More classes than this are left to `--json`."""


def print_classes(report: Report) -> None:
    """Accuracy on each class, and how many of its test images each student got."""
    if len(report.per_class_accuracy) > MOST_CLASSES:
        print(f"({len(report.per_class_accuracy)} classes: each one's figures are in --json)")
        return
    rows = [
        [
            f"{name}",
            f"{100 * accuracy:.2f}",
            f"{100 * report.baselines.student.per_class_accuracy[name]:.2f}",
            f"{100 * report.baselines.teacher.per_class_accuracy[name]:.2f}",
            *map(str, report.sent.get(name, ())),
        ]
        for name, accuracy in report.per_class_accuracy.items()
    ]
    heads = ["class", "model %", "single student %", "teacher %"]
    heads += [f"to student {j}" for j in range(report.k if report.sent else 0)]
    print_table("classes of the test images, and the students that got them", heads, rows)


def fail(message: str) -> None:
    err = Console(stderr=True, highlight=False)
    err.print(f"error: {message}", style="red", markup=False, soft_wrap=True)


def parse_size(text: str) -> int:
    """Bytes from `500MB`, `10 GB` or a plain number. Raises ConfigError for anything else."""
    units = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", text.lower())
    if not found or found[2] not in units:
        raise ConfigError(f"`{text}` is no size", "for example: 500MB or 10GB")
    return int(float(found[1]) * units[found[2]])
