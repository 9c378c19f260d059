"""What limits a sweep of many workers? A model from constants that were measured.

    python -m analysis.scaling [WORKERS]     the table of analysis/scaling.md (1000 workers)
    python -m analysis.scaling --home HOME   bytes and database rows a trial, of a home's studies;
                                             ms of a trial that trains nothing, `local` and `ray`

Each trial takes its share of what all share. Workers wait for a part once their trials take more
of it than it grants, that is when a trial is shorter than WORKERS times its share.
"""

from __future__ import annotations

import sqlite3
import statistics
import tempfile
import time
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import click

from moist.config import Config
from moist.store.runs import RunRecords
from moist.study.events import Completed
from moist.study.executor import Executor, Task
from moist.study.workers import Pool, Slot


@dataclass(frozen=True)
class Part:
    """Something that trials share: what one takes of it, and what it grants a second."""

    name: str
    taken: float
    granted: float
    unit: str

    @property
    def seconds(self) -> float:
        """Return how long a trial occupies it."""
        return self.taken / self.granted


PARTS = (
    Part("driver: ask, plan, tell", 0.106, 1, "s of a core"),
    Part("Ray: start and hand on", 0.0025, 1, "s"),
    Part("store, one shared home: read and written", 265, 125, "MB"),
    Part("store, a home on each node: written", 20, 125, "MB"),
    Part("database: rows written", 21, 350, "rows"),
    Part("W&B: file stream", 1.75, 500, "requests"),
    Part("W&B: runs created", 1, 80, "runs"),
)
"""The origin of each figure is in analysis/scaling.md."""


@click.command()
@click.argument("workers", default=1000, type=click.IntRange(1))
@click.option("--home", type=click.Path(path_type=Path, exists=True, file_okay=False))
def main(workers: int, home: Path | None) -> None:
    """Print the table, or what the trials in a home took."""
    if home:
        for name, value in {**taken(home), **overheads(home)}.items():
            click.echo(f"{value:,.0f} {name}")
        return
    click.echo("| part | a trial takes | granted a second | trials a minute | shortest trial, s |")
    click.echo("|---|---|---|---|---|")
    for part in sorted(PARTS, key=lambda part: -part.seconds):
        click.echo(
            f"| {part.name} | {part.taken:,g} {part.unit} | {part.granted:,g} |"
            f" {60 / part.seconds:,.0f} | {workers * part.seconds:,.0f} |"
        )


def taken(home: Path) -> dict[str, float]:
    """Return the bytes of stored outputs and the database rows for each trial in a home."""
    size = sum(path.stat().st_size for path in (home / "objects").rglob("*") if path.is_file())
    tables = "trials trial_params trial_values trial_user_attributes trial_system_attributes"
    count = "select " + ", ".join(
        f"(select count(*) from {name})"
        for name in [*tables.split(), "trial_intermediate_values", "study_system_attributes"]
    )
    database = sqlite3.connect(f"file:{home / 'studies.db'}?mode=ro", uri=True)
    try:
        rows = database.execute(count).fetchone()
    finally:
        database.close()
    return {"bytes a trial": size / rows[0], "rows a trial": sum(rows) / rows[0]}


def overheads(home: Path, rounds: int = 20) -> dict[str, float]:
    """Time trials that train nothing, one at a time, with two executors in turn: medians."""
    from moist.bench.sweep import NoPipeline
    from moist.study.cluster import Ray, connect

    run, times = RunRecords(home).all()[0], {"local": list[float](), "ray": list[float]()}
    connect(None)
    with tempfile.TemporaryDirectory() as folder:
        work, slots = NoPipeline(Path(folder), run.report), [Slot("cpu", 1)]
        with (
            Pool(work, slots, Path(folder, "local")) as local,
            Ray(work, slots, Path(folder, "ray")) as ray,
        ):
            executors: dict[str, Executor] = {"local": local, "ray": ray}
            for number, (_, name) in enumerate(product(range(rounds + 2), executors)):
                begin = time.perf_counter()
                executors[name].submit(Task(number, Config(hidden_width=number + 1), "moist run"))
                while not any(isinstance(e, Completed) for e in executors[name].wait(0.5)):
                    continue
                times[name].append(1e3 * (time.perf_counter() - begin))
    return {f"ms with {name}": statistics.median(taken[2:]) for name, taken in times.items()}


if __name__ == "__main__":
    main()
