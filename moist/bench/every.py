"""All benchmarks one after another, at sizes for which two idle cores take about 15 minutes."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch

from moist.bench.contention import contention
from moist.bench.distillation import distillation_cost
from moist.bench.rows import Row
from moist.bench.serving import dispatch, serve
from moist.bench.sweep import overhead, sharing
from moist.bench.tracking import tracking_cost
from moist.bench.training import train
from moist.config.overrides import parse
from moist.env import Env
from moist.results.report import Machine
from moist.store.store import Store
from moist.study.workers import make_slots
from moist.sweepfile import read_sweep

SHORT = (
    "teacher.arch=resnet8", "teacher.epochs=10", "distill.epochs=10", "routing.epochs=5",
    "joint.epochs=5", "latency.seconds=0.2", "latency.repeats=10",
)  # fmt: skip
"""Of the runs on digits; the teacher's share of a trial is smaller than in real sweeps."""
TRIALS = {"sweep": 12, "overhead": 100, "tracking": 20}


def every(env: Env, *, rounds: int, threads: int | None) -> Iterator[tuple[Machine, list[Row]]]:
    """Yield the rows of each benchmark, and the machine that they are of.

    Arithmetic is bf16 where the processor has it.
    """
    precision = f"precision={'float32' if env.emulation('bf16') else 'bf16'}"
    short, values = [precision, *SHORT], dict([precision.split("=")])
    config, sweep = parse(short), read_sweep(Path("quickstart"), short)
    slots = make_slots(None, 1, 1)
    with tempfile.TemporaryDirectory(prefix="moist-bench-") as folder:
        store, cpu = Store(Path(folder), env), replace(env, device=torch.device("cpu"))
        calls: list[tuple[Env, Callable[[], list[Row]]]] = [
            (env, lambda: train(values, env, rounds=rounds)),
            (env, lambda: distillation_cost(config, store, rounds=rounds, epochs=2)),
            (env, lambda: dispatch(values, env, rounds=rounds)),
            (cpu, lambda: serve(values, cpu, rounds=rounds)),
            (env, lambda: sharing(sweep, trials=TRIALS["sweep"], workers=1, threads=threads)),
            (env, lambda: overhead(sweep, trials=TRIALS["overhead"], slots=slots)),
            (env, lambda: tracking_cost(config, store, rounds=rounds, trials=TRIALS["tracking"])),
            (cpu, lambda: contention(rounds=rounds, threads=threads)),
        ]
        for place, call in calls:
            yield place.machine(), call()
