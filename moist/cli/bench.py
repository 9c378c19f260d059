"""`moist bench`: what moist claims of its own speed, measured on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from moist.cli.options import JSON, OVERRIDES, THREADS, computing, opened, print_json
from moist.config.overrides import parse


@click.group()
def bench() -> None:
    """Measure moist itself: ratios of interleaved runs."""


@bench.command()
@OVERRIDES
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(1), help="Pairs.")
@click.option("--epochs", default=2, show_default=True, type=click.IntRange(1), help="Of each.")
@JSON
@computing
def distill(
    overrides: tuple[str, ...], rounds: int, epochs: int, as_json: bool, **compute: Any
) -> None:
    """What distillation costs beside training the same student on labels alone.

    \b
    moist bench distill @sweeps/paper.yaml data.name=folder data.root=IMAGES
    """
    config = parse(overrides)
    from moist.bench.distillation import distillation_cost

    with opened(**compute) as store:
        found = distillation_cost(config, store, rounds=rounds, epochs=epochs)
    if as_json:
        print_json([found])
        return
    click.echo(
        f"{found['ratio']:.2f} times the time of labels alone (median of n={rounds} pairs of"
        f" {epochs} epochs, {found['ratio_min']:.2f} to {found['ratio_max']:.2f});"
        f" {found['ratio_with_logits']:.2f} with the teacher's logits,"
        f" {found['teacher_logits_seconds']:.0f} s once for all students"
    )


@bench.command()
@OVERRIDES
@click.option("--trials", default=100, show_default=True, type=click.IntRange(1))
@JSON
@computing
def tracking(overrides: tuple[str, ...], trials: int, as_json: bool, **compute: Any) -> None:
    """What telling W&B costs, offline: milliseconds a trial, and their share of its training.

    \b
    moist bench tracking
    """
    config = parse(overrides)
    from moist.bench.tracking import tracking_cost

    with opened(**compute) as store:
        found = tracking_cost(config, store, trials=trials)
    if as_json:
        print_json(found)
        return
    click.echo(
        f"{found['ms_a_trial']:.1f} ms a trial of {found['rows_a_trial']} rows, offline"
        f" (n={found['trials']}): {found['share_of_training']:.2%} of the"
        f" {found['training_seconds']:.0f} s that its training takes;"
        f" {found['seconds_to_start']:.1f} s once a process"
    )


@bench.command("sweep")
@click.argument("file", type=click.Path(path_type=Path))
@OVERRIDES
@click.option("--trials", default=24, show_default=True, type=click.IntRange(1))
@click.option("--workers", default=1, show_default=True, type=click.IntRange(1))
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
    """What sharing stages saves: the same trials with and without it.

    \b
    moist bench sweep sweeps/quickstart.yaml
    """
    from moist.bench.sweep import sharing
    from moist.sweepfile import read_sweep

    sweep = read_sweep(file, overrides)
    found = sharing(sweep, trials=trials, workers=workers, threads=threads)
    if as_json:
        print_json(found)
        return
    click.echo(
        f"{found['ratio']:.1f} times less compute for {found['trials']} trials:"
        f" {found['seconds_shared']:.0f} s and {found['stages_shared']} stages shared,"
        f" {found['seconds_alone']:.0f} s and {found['stages_alone']} stages each for itself;"
        f" {'the same frontier' if found['same_frontier'] else 'ANOTHER FRONTIER'}"
        f" of {len(found['frontier'])} members"
    )


@bench.command()
@click.argument("file", type=click.Path(path_type=Path))
@OVERRIDES
@click.option("--trials", default=500, show_default=True, type=click.IntRange(2))
@JSON
def overhead(file: Path, overrides: tuple[str, ...], trials: int, as_json: bool) -> None:
    """What a trial of a TPE study costs beyond its pipeline, which does nothing here.

    \b
    moist bench overhead sweeps/quickstart.yaml
    """
    from moist.bench.sweep import overhead as measured
    from moist.sweepfile import read_sweep

    found = measured(read_sweep(file, overrides), trials=trials)
    if as_json:
        print_json(found)
        return
    click.echo(
        f"{found['ms_a_trial']:.0f} ms a trial over {found['trials']} trials (median"
        f" {found['ms_median']:.0f}; of the last {found['last']}:"
        f" {found['ms_median_of_the_last']:.0f})"
    )
