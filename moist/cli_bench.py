"""`moist bench`: what moist claims of its own speed, measured on this machine."""

from __future__ import annotations

from typing import Any

import click

from moist.options import JSON, OVERRIDES, computing, opened, print_json
from moist.overrides import parse


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
    from moist.bench import distillation_cost

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
