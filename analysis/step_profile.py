"""Print where the training of a student spends its time, by kind of operator.

    uv run python -m analysis.step_profile precision=float32 --threads 2

The student, its images and its recipe are those of `moist bench train`; KEY=VALUE words change
them.
"""

from __future__ import annotations

from collections import Counter

import click
from torch.profiler import ProfilerActivity, profile

from moist.bench.training import EPOCHS, drawn, matmul_flops
from moist.cli.options import OVERRIDES
from moist.config.overrides import given
from moist.env import Silent, make_env
from moist.reporting.terminal import print_table

KINDS = {
    "convolution": "convolutions",
    "batch_norm": "batch norm",
    "max_pool2d": "pooling",
    "relu": "activations",
    "threshold": "activations",
    "addmm": "linear layers",
    "aten::mm": "linear layers",
    "adam": "optimizer",
    "foreach": "optimizer",
    "softmax": "loss",
    "kl_div": "loss",
    "nll": "loss",
}
"""The kind of an operator by a part of its name; what has none is `other`."""


def kind_of(name: str) -> str:
    """Return an operator's kind."""
    return next((kind for part, kind in KINDS.items() if part in name.lower()), "other")


@click.command()
@OVERRIDES
@click.option("--threads", type=click.IntRange(1), help="Threads.")
def main(overrides: tuple[str, ...], threads: int | None) -> None:
    """Print where the training of a student spends its time, by kind of operator."""
    env = make_env(Silent(), "cpu", threads)
    with drawn(given(overrides), env) as training:
        training.distill()  # what is set up once is not profiled
        speed = matmul_flops(env, training.config.precision)
        with profile(activities=[ProfilerActivity.CPU]) as found:
            training.distill()
        images = EPOCHS * len(training.data.train)
        flops = 3 * training.flops(training.student)
    ms = Counter[str]()
    for event in found.key_averages():
        ms[kind_of(event.key)] += event.self_cpu_time_total / 1e3 / images
    whole = ms.total()
    rows = [
        [kind, f"{1e3 * one:.1f}", f"{100 * one / whole:.0f}"] for kind, one in ms.most_common()
    ]
    ideal = 1e3 * flops / speed
    rows += [["all", f"{1e3 * whole:.1f}", "100"]]
    share = f"{100 * ideal / whole:.0f}"
    rows += [["its multiply-adds at a matrix product's speed", f"{1e3 * ideal:.1f}", share]]
    print_table("", ["", "us an image", "%"], rows)


if __name__ == "__main__":
    main()
