"""`moist bench`: measurements of moist's own speed on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from moist.api.compute import Compute
from moist.cli.options import (
    FILE,
    JSON,
    OVERRIDES,
    THREADS,
    WORKERS,
    Decorator,
    computing,
    print_json,
)
from moist.config.overrides import given, parse
from moist.reporting.terminal import counted, print_table
from moist.study.settings import ENGINES
from moist.sweepfile import read_sweep

if TYPE_CHECKING:
    from moist.bench.rows import Row
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


def show(rows: Sequence[Row], machine: Machine, as_json: bool) -> None:
    """Print the rows of a benchmark: ratios, then the figures behind each."""
    if as_json:
        print_json([row.record(machine) for row in rows])
        return
    heads = ["time of", "ms", "ratio", "from", "to", "n", "to that of", "ms"]
    cells = [
        [
            row.measured,
            *(f"{one:.3g}" for one in (row.ms, row.ratio, row.low, row.high)),
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


@click.group()
def bench() -> None:
    """Measure moist's own overheads and savings.

    \b
    moist bench overhead sweeps/quickstart.yaml
    """


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
    from moist.env import Silent, make_env

    env = make_env(Silent(), "cpu", threads)
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
@click.option(
    "--rounds", default=5, show_default=True, type=click.IntRange(1), help="Interleaved pairs."
)
@click.option(
    "--epochs", default=2, show_default=True, type=click.IntRange(1), help="Epochs of each run."
)
@JSON
@computing
def distill(
    overrides: tuple[str, ...], rounds: int, epochs: int, as_json: bool, compute: Compute
) -> None:
    """Time distillation against training on labels.

    Prints the ratio of the times that an epoch of the same student takes.

    \b
    moist bench distill @sweeps/paper.yaml data.name=folder data.root=IMAGES
    """
    config = parse(overrides)
    from moist.bench.distillation import distillation_cost

    with compute.store() as store:
        found = distillation_cost(config, store, rounds=rounds, epochs=epochs)
    if as_json:
        print_json([found])
        return
    click.echo(
        f"{found['ratio']:.2f} times the time of labels alone (median of n={rounds} pairs of"
        f" {epochs} epochs, {found['ratio_min']:.2f} to {found['ratio_max']:.2f});"
        f" {found['ratio_with_logits']:.2f} including the teacher's logits,"
        f" {found['teacher_logits_seconds']:.0f} s, computed once for all students"
    )


@bench.command()
@OVERRIDES
@_trials(100)
@JSON
@computing
def tracking(overrides: tuple[str, ...], trials: int, as_json: bool, compute: Compute) -> None:
    """Time offline logging to W&B, per trial.

    Prints milliseconds, and their share of the trial's training.

    \b
    moist bench tracking
    """
    config = parse(overrides)
    from moist.bench.tracking import tracking_cost

    with compute.store() as store:
        found = tracking_cost(config, store, trials=trials)
    if as_json:
        print_json(found)
        return
    click.echo(
        f"{found['ms_a_trial']:.1f} ms a trial of {found['rows_a_trial']} rows, offline"
        f" (n={found['trials']}): {found['share_of_training']:.2%} of the"
        f" {found['training_seconds']:.0f} s of its training;"
        f" {found['seconds_to_start']:.1f} s once per process"
    )


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
    found = sharing(sweep, trials=trials, workers=workers, threads=threads)
    if as_json:
        print_json(found)
        return
    click.echo(
        f"{found['ratio']:.1f} times less compute for {found['trials']} trials:"
        f" {found['seconds_shared']:.0f} s and {found['stages_shared']} stages with sharing,"
        f" {found['seconds_alone']:.0f} s and {found['stages_alone']} stages without;"
        f" {'the same frontier' if found['same_frontier'] else 'A DIFFERENT FRONTIER'}"
        f" of {len(found['frontier'])} members"
    )


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
@WORKERS
@JSON
def overhead(
    file: Path,
    overrides: tuple[str, ...],
    trials: int,
    engine: str,
    workers: int,
    as_json: bool,
) -> None:
    """Time the overhead of a trial in a TPE study.

    The trials train nothing: what remains is the time that moist and Optuna take.

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
    found = measure(read_sweep(file, overrides), trials=trials, slots=slots, engine=runs)
    if as_json:
        print_json(found)
        return
    click.echo(
        f"{found['ms_a_trial']:.0f} ms a trial over {found['trials']} trials (median"
        f" {found['ms_median']:.0f}; of the last {found['last']}:"
        f" {found['ms_median_of_the_last']:.0f}): {1e3 / found['ms_a_trial']:.1f} asks and tells a"
        f" second; the driver's memory grew from {found['megabytes_before']:.0f} to"
        f" {found['megabytes']:.0f} MB"
    )


@bench.command()
@click.option(
    "--rounds", default=5, show_default=True, type=click.IntRange(1), help="Interleaved rounds."
)
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

    found = measure(rounds=rounds, threads=threads, spins=spins or tuple(KNOWN))
    if as_json:
        print_json(found)
        return
    heads = ["spins", "ms a step, idle", "beside a busy core", "times", "ms an image, idle"]
    rows = [
        [
            f"{one['spins']:,} {KNOWN.get(int(one['spins']), '')}",
            f"{one['idle_ms']:.1f}",
            f"{one['busy_ms']:.1f}",
            f"{one['slowdown']:.2f}",
            f"{one['image_ms']:.2f}",
        ]
        for one in found
    ]
    print_table("", heads, rows)
    click.echo(f"{counted(int(found[0]['threads']), 'thread')}, medians of n={rounds}")
