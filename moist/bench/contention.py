"""How much slower training is beside a busy core: as moist sets threads to wait, or OpenMP."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from statistics import median
from typing import Any

from moist.env import cores

POLICIES: dict[str, dict[str, str]] = {"moist": {}, "default": {"GOMP_SPINCOUNT": "300000"}}
"""How threads wait for each other: as `import moist` sets, and as the OpenMP runtime does."""
BATCH, WARM_UP, STEPS = 128, 5, 20


def contention(*, rounds: int, threads: int | None = None) -> dict[str, Any]:
    """Time a training step of a small CNN, idle and beside one busy core, by waiting policy.

    Interleaves `rounds` processes of each kind. Returns medians in ms; by policy `slowdown`, the
    median beside a busy core over that without; `idle_cost`, of moist's over the default.
    """
    threads = threads or len(cores())
    found: dict[tuple[str, bool], list[float]] = {}
    for _, (policy, busy) in product(range(rounds), product(POLICIES, (False, True))):
        with busy_core() if busy else nothing():
            found.setdefault((policy, busy), []).append(_measured(POLICIES[policy], threads))
    ms = {key: median(times) for key, times in found.items()}
    return {
        "threads": threads,
        "cores": len(cores()),
        "n": rounds,
        **{
            policy: {
                "idle_ms": ms[policy, False],
                "busy_ms": ms[policy, True],
                "slowdown": ms[policy, True] / ms[policy, False],
            }
            for policy in POLICIES
        },
        "idle_cost": ms["moist", False] / ms["default", False],
    }


@contextmanager
def busy_core() -> Iterator[None]:
    """Keep a core busy."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


@contextmanager
def nothing() -> Iterator[None]:
    """Keep no core busy."""
    yield


def _measured(policy: dict[str, str], threads: int) -> float:
    code = f"from moist.bench.contention import step_ms; print(step_ms({threads}))"
    given = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_"))}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=given | policy,
        capture_output=True,
        text=True,
        check=True,
    )
    return float(done.stdout)


def step_ms(threads: int) -> float:
    """Return the median time in ms of a training step of a CNN on 32x32 images, batch 128."""
    import torch
    from torch import nn
    from torch.nn.functional import cross_entropy

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(4096, 256), nn.ReLU(), nn.Linear(256, 10),
    ).to(memory_format=torch.channels_last)  # fmt: skip
    optimizer = torch.optim.AdamW(net.parameters(), fused=True)
    x_BCHW = torch.randn(BATCH, 3, 32, 32).to(memory_format=torch.channels_last)
    labels_B = torch.randint(10, (BATCH,))
    times = []
    for _ in range(WARM_UP + STEPS):
        begin = time.perf_counter()
        cross_entropy(net(x_BCHW), labels_B).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        times.append(1e3 * (time.perf_counter() - begin))
    return median(times[WARM_UP:])
