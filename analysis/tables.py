"""Write analysis/TABLES.md: each experiment as a table, from the runs in analysis/results.

    uv run python -m analysis.tables

A row is a setting with all its seeds: means, and ± the standard deviation over seeds. It names its
runs by the beginnings of their keys, and the commits and machines that they ran on.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from analysis import paper
from analysis.experiments import PLAN, ROOT, Experiment
from analysis.rows import Rows, difference, distinct, mean, settings
from moist.disk import write_atomically
from moist.store.keys import SHORT

TABLES = ROOT / "analysis" / "TABLES.md"
HEAD = """# Tables

Written by `uv run python -m analysis.tables` from the runs in `analysis/results`; [LOG.md](LOG.md)
says what they mean. Accuracies are per cents of CIFAR-10's 10,000 test images, means over n seeds
± the standard deviation. `MFLOPs` are fvcore's count per image, a multiply-add being one, and
`MMACs` its part in convolutions and linear layers. Of a model that defers they are means over the
test images, and the worst case is an image that is deferred. `ms`: median latency at batch 1.
"""


def worst(rows: Rows) -> str:
    """Return the multiply-adds of an image that is deferred, in millions; else empty."""
    curves = [json.loads(row["deferral.curve"]) for row in rows if row.get("deferral.curve")]
    return f"{max(point['mmacs'] for curve in curves for point in curve):.2f}" if curves else ""


COLUMNS: dict[str, Callable[[Rows], str]] = {
    "n": lambda rows: str(len(rows)),
    "test %": mean("accuracy", 100),
    "val %": mean("val_accuracy", 100),
    "MMACs": mean("mmacs"),
    "worst": worst,
    "MFLOPs": mean("mflops"),
    "params M": mean("params", 1e-6, 3),
    "ms": mean("latency_ms.batch_1"),
    "routed right %": mean("routing_accuracy", 100),
    "student alone %": mean("baselines.student.accuracy", 100),
    "teacher %": mean("baselines.teacher.accuracy", 100),
    "runs": lambda rows: " ".join(row["key"][:SHORT] for row in rows),
    "commit": lambda rows: distinct(row["commit"][:SHORT] for row in rows),
}
"""Columns of every table, in order; those without a value in any row are left out."""
MACHINE = ("machine.device", "machine.threads", "machine.torch", "machine.system")


def table(experiment: Experiment) -> str:
    """Return an experiment's table as Markdown; empty before its first run."""
    rows = experiment.done()
    groups = settings(rows)
    if not groups:
        return ""
    cells = {
        head: [text([*runs.values()]) for runs in groups.values()]
        for head, text in COLUMNS.items()
    }
    if control := groups.get(experiment.control):
        against = f"against {experiment.control}, points ± SE"
        cells[against] = [
            "" if runs is control else difference(runs, control) for runs in groups.values()
        ]
    cells = {head: column for head, column in cells.items() if any(column)}
    names = [name or "-" for name in groups]
    lines = [["setting", *cells], *zip(names, *cells.values(), strict=True)]
    body = [f"| {' | '.join(line)} |" for line in lines]
    body.insert(1, "|---" * len(lines[0]) + "|")
    missing = len(experiment.missing())
    machines = distinct(", ".join(row[name] for name in MACHINE) for row in rows)
    return "\n".join(
        [
            f"## {experiment.name}",
            "",
            f"`sweeps/{experiment.sweep}.yaml` with `{' '.join(experiment.settings)}`"
            + (f"; {missing} runs are missing." if missing else "."),
            "",
            *body,
            "",
            f"Machine: {machines} (device, threads, torch, system).",
            "",
        ]
    )


def write(plan: Sequence[Experiment] = PLAN, path: Path = TABLES) -> None:
    """Write the tables of all experiments that have runs."""
    parts = [HEAD, *filter(None, [*map(table, plan), paper.section(plan)])]
    write_atomically(path, "\n".join(parts).encode())


if __name__ == "__main__":
    write()
