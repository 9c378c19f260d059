"""`moist bench`: measurements of moist's own speed on this machine."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from moist.api.compute import Compute
from moist.cli.options import (
    DEVICE,
    FILE,
    JSON,
    OVERRIDES,
    PATH,
    THREADS,
    WORKERS,
    Decorator,
    computing,
    print_json,
)
from moist.config.overrides import given, parse
from moist.disk import write_atomically, writing
from moist.reporting.terminal import counted, print_table
from moist.study.settings import ENGINES
from moist.sweepfile import read_sweep

if TYPE_CHECKING:
    from moist.bench.rows import Row
    from moist.env import Env
    from moist.results.report import Machine

SIMULATED = "simulated"


def _trials(default: int, least: int = 1) -> Decorator:
    return click.option(
        "--trials",
        default=default,
        show_default=True,
        type=click.IntRange(least),
        help="Number of trials.",
    )


def _rounds(default: int = 5) -> Decorator:
    return click.option(
        "--rounds",
        default=default,
        show_default=True,
        type=click.IntRange(1),
        help="Interleaved measurements; their median is printed.",
    )


def environment(device: str | None, threads: int | None) -> Env:
    """Return the environment of a benchmark, which reports no progress."""
    from moist.env import Silent, make_env

    return make_env(Silent(), device, threads)


def show(rows: Sequence[Row], machine: Machine, as_json: bool) -> None:
    """Print the rows of a benchmark: ratios, then the figures behind each."""
    if as_json:
        print_json([row.record(machine) for row in rows])
        return
    heads = ["time of", "ms", "ratio", "from", "to", "n", "to that of", "ms"]
    cells = [
        [
            row.measured,
            f"{row.ms:.3g}",
            *map(_times, (row.ratio, row.low, row.high)),
            str(row.n),
            row.baseline,
            f"{row.baseline_ms:.3g}",
        ]
        for row in rows
    ]
    print_table("", heads, cells)
    for row in rows:
        if row.details:
            figures = (f"{name} {value:.3g}" for name, value in row.details.items())
            click.echo(f"{row.measured}: {', '.join(figures)}")
    click.echo(f"{machine.device}, {counted(machine.threads, 'thread')}, torch {machine.torch}")


def _times(ratio: float) -> str:
    """Format a ratio; a small one as a fraction, `1/32`."""
    return f"{ratio:.3g}" if ratio > 0.2 else f"1/{1 / ratio:.3g}"


@click.group()
def bench() -> None:
    """Measure moist's own speed, overheads and savings.

    Each benchmark prints ratios to the time of a baseline, medians of interleaved measurements.

    \b
    moist bench all -o bench.csv
    moist bench overhead sweeps/quickstart.yaml
    """


@bench.command("all")
@click.option(
    "--output",
    "-o",
    "path",
    type=PATH,
    default=Path("bench.csv"),
    show_default="bench.csv",
    metavar="FILE.csv",
    help="The file to write.",
)
@_rounds()
@DEVICE
@THREADS
@JSON
def bench_all(
    path: Path, rounds: int, device: str | None, threads: int | None, as_json: bool
) -> None:
    """Run all benchmarks, and write a row of CSV for each ratio.

    About 15 minutes on two idle cores.

    \b
    moist bench all
    moist bench all --rounds 3 -o bench.csv
    """
    import pandas as pd

    from moist.bench.every import every

    env = environment(device, threads)
    records = list[dict[str, Any]]()
    for machine, rows in every(env, rounds=rounds, threads=threads):
        if not as_json:
            show(rows, machine, False)
        records += [row.record(machine) for row in rows]
        flat = [{**one, "details": json.dumps(one["details"])} for one in records]
        with writing(path.parent):
            write_atomically(path, pd.json_normalize(flat).to_csv(index=False).encode())
    if as_json:
        print_json(records)
    click.echo(f"{path}: {counted(len(records), 'row')}", err=True)


@bench.command()
@OVERRIDES
@_rounds()
@DEVICE
@THREADS
@JSON
def train(
    overrides: tuple[str, ...],
    rounds: int,
    device: str | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Time distillation against a plain script.

    The script decodes and augments each image again, and runs the teacher in every step. Times are
    ms an image, on drawn 32x32 JPEG images, by default of the student of `@sweeps/sound.yaml` and
    a ResNet-18.

    \b
    moist bench train
    moist bench train precision=float32 student.arch=residual_7mf
    """
    values = given(overrides)
    from moist.bench.training import train as measure

    env = environment(device, threads)
    show(measure(values, env, rounds=rounds), env.machine(), as_json)


@bench.command()
@_rounds()
@JSON
def start(rounds: int, as_json: bool) -> None:
    """Time the start of commands.

    Of those that only read, of a run with nothing to do, and until a run or a sweep with two
    workers has trained its first epoch; beside a Python that imports torch, which most of this is.

    \b
    moist bench start
    moist bench start --rounds 3 --json
    """
    from moist.bench.start import start as measure

    show(measure(rounds=rounds), environment("cpu", None).machine(), as_json)


@bench.command()
@OVERRIDES
@_rounds()
@THREADS
@JSON
def serve(overrides: tuple[str, ...], rounds: int, threads: int | None, as_json: bool) -> None:
    """Time exported models in onnxruntime.

    Against torch, and against the router and one student in onnxruntime, at batch sizes 1 and 256,
    on 32x32 pixels: of a CNN router, of a shared trunk, and of a cascade. Keys set the students'
    sizes.

    \b
    moist bench serve
    moist bench serve student.arch=residual student.channels=16,32 --threads 1
    """
    values = given(overrides)
    from moist.bench.serving import serve as measure

    env = environment("cpu", threads)
    show(measure(values, env, rounds=rounds), env.machine(), as_json)


@bench.command()
@OVERRIDES
@_rounds()
@JSON
@computing
def dispatch(overrides: tuple[str, ...], rounds: int, as_json: bool, compute: Compute) -> None:
    """Time routing in torch.

    Against the router and one student without a choice, and against a loop over images, with the
    models of `moist bench serve`.

    \b
    moist bench dispatch
    """
    values = given(overrides)
    from moist.bench.serving import dispatch as measure

    with compute.progress() as progress:
        env = compute.env(progress)
    show(measure(values, env, rounds=rounds), env.machine(), as_json)


@bench.command()
@OVERRIDES
@_rounds()
@click.option(
    "--epochs", default=2, show_default=True, type=click.IntRange(1), help="Epochs of each run."
)
@JSON
@computing
def distill(
    overrides: tuple[str, ...], rounds: int, epochs: int, as_json: bool, compute: Compute
) -> None:
    """Time distillation against training on labels.

    Of the same student, from stored logits; `ratio_with_logits` includes computing these for one
    student.

    \b
    moist bench distill @sweeps/paper.yaml data.name=folder data.root=IMAGES
    """
    config = parse(overrides)
    from moist.bench.distillation import distillation_cost

    with compute.store() as store:
        rows = distillation_cost(config, store, rounds=rounds, epochs=epochs)
    show(rows, store.env.machine(), as_json)


@bench.command()
@OVERRIDES
@_trials(20)
@_rounds()
@JSON
@computing
def tracking(
    overrides: tuple[str, ...], trials: int, rounds: int, as_json: bool, compute: Compute
) -> None:
    """Time offline logging to W&B, against the training of a trial.

    \b
    moist bench tracking
    """
    config = parse(overrides)
    from moist.bench.tracking import tracking_cost

    with compute.store() as store:
        rows = tracking_cost(config, store, rounds=rounds, trials=trials)
    show(rows, store.env.machine(), as_json)


@bench.command("sweep")
@FILE
@OVERRIDES
@_trials(24)
@WORKERS
@THREADS
@JSON
def bench_sweep(
    file: Path,
    overrides: tuple[str, ...],
    trials: int,
    workers: int,
    threads: int | None,
    as_json: bool,
) -> None:
    """Measure the compute saved by shared stages.

    Runs the same trials with and without sharing.

    \b
    moist bench sweep sweeps/quickstart.yaml
    """
    from moist.bench.sweep import sharing

    sweep = read_sweep(file, overrides)
    rows = sharing(sweep, trials=trials, workers=workers, threads=threads)
    show(rows, environment("cpu", threads).machine(), as_json)


@bench.command()
@FILE
@OVERRIDES
@_trials(500, least=2)
@click.option(
    "--engine",
    type=click.Choice((*ENGINES, SIMULATED)),
    default="local",
    show_default=True,
    help=f"What runs the trials; {SIMULATED}: workers that take no time, in the driver's process.",
)
@click.option(
    "--sampler",
    type=click.Choice(["tpe", "random"]),
    default="tpe",
    show_default=True,
    help="What draws the parameters; a random draw takes no time.",
)
@WORKERS
@JSON
def overhead(
    file: Path,
    overrides: tuple[str, ...],
    trials: int,
    engine: str,
    sampler: str,
    workers: int,
    as_json: bool,
) -> None:
    """Time the overhead of a trial in a study.

    The trials train nothing: what remains is the time that moist takes, against Optuna alone.

    \b
    moist bench overhead sweeps/quickstart.yaml
    moist bench overhead sweeps/quickstart.yaml --engine simulated --workers 64 --trials 1000
    """
    from moist.bench.sweep import Simulated
    from moist.bench.sweep import overhead as measure
    from moist.study.engines import Cluster, make_engine

    simulated = engine == SIMULATED
    kind = "local" if simulated else engine
    slots, runs, _ = make_engine(kind, workers, None, 1, Cluster())
    runs = Simulated if simulated else runs
    rows = measure(
        read_sweep(file, overrides), trials=trials, slots=slots, engine=runs, sampler=sampler
    )
    show(rows, environment("cpu", None).machine(), as_json)


@bench.command()
@_rounds()
@click.option(
    "--spins",
    multiple=True,
    type=click.IntRange(0),
    help="A GOMP_SPINCOUNT to time, may be repeated; default: moist's and OpenMP's.",
)
@THREADS
@JSON
def contention(rounds: int, spins: tuple[int, ...], threads: int | None, as_json: bool) -> None:
    """Time training beside a busy core.

    Threads that wait for each other spin, then sleep: few spins leave the core to other work, and
    many wake up sooner. Start it on an idle machine: it makes its own busy core.

    \b
    moist bench contention
    moist bench contention --spins 0 --spins 3000 --spins 300000
    """
    from moist.bench.contention import KNOWN
    from moist.bench.contention import contention as measure

    rows = measure(rounds=rounds, threads=threads, spins=spins or tuple(KNOWN))
    show(rows, environment("cpu", threads).machine(), as_json)
