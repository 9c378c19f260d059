"""How much slower training is beside a busy core: as moist sets threads to wait, or OpenMP."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import product
from statistics import median

from moist import SPINS
from moist.bench.rows import Row, row
from moist.env import cores

KNOWN = {SPINS: "moist", 300_000: "default"}
"""Numbers of spins with a name: what `import moist` sets, and OpenMP's own."""
BURN = "print('burning', flush=True)\nwhile True: pass"
BATCH, WARM_UP, STEPS = 128, 5, 20


def contention(
    *,
    rounds: int,
    threads: int | None = None,
    spins: Sequence[int] = tuple(KNOWN),
    steps: int = STEPS,
) -> list[Row]:
    """Time a training step of a small CNN beside one busy core, by the number of spins.

    Interleaves `rounds` processes of each kind. Returns a row for each number of spins, with
    `image_ms` of a call with one image alone.
    """
    threads = threads or len(cores())
    code = f"from moist.bench.contention import timed; print(*timed({threads}, {steps}))"
    found: dict[tuple[int, int], list[list[float]]] = {}
    for _, count, others in product(range(rounds), spins, (0, 1)):
        with busy(others):
            words = printed(code, {"GOMP_SPINCOUNT": str(count)}).split()
        found.setdefault((count, others), []).append([*map(float, words)])
    rows = []
    for count in spins:
        (idle, image), (beside, _) = (
            [*zip(*found[count, others], strict=True)] for others in (0, 1)
        )
        name = f"a step beside a busy core, {count:,} spins {KNOWN.get(count, '')}".strip()
        rows.append(row("contention", name, "alone", beside, idle, image_ms=median(image)))
    return rows


@contextmanager
def busy(count: int) -> Iterator[None]:
    """Keep so many cores busy."""
    burning = [
        subprocess.Popen([sys.executable, "-c", BURN], stdout=subprocess.PIPE)
        for _ in range(count)
    ]
    try:
        for one in burning:
            assert one.stdout is not None and one.stdout.readline() == b"burning\n"
        yield
    finally:
        for one in burning:
            one.kill()
            one.communicate()


def printed(code: str, policy: Mapping[str, str]) -> str:
    """Return what a new process prints whose threads wait as the variables in `policy` say."""
    others = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_"))}
    words, env = [sys.executable, "-c", code], {**others, **policy}
    return subprocess.run(words, env=env, capture_output=True, text=True, check=True).stdout


def timed(threads: int, steps: int) -> tuple[float, float]:
    """Return median times in ms of a CNN on 32x32 pixels: a training step, batch 128; an image."""
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

    def step() -> None:
        cross_entropy(net(x_BCHW), labels_B).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    trained = _median_ms(step, steps)
    net.eval()
    with torch.inference_mode():
        return trained, _median_ms(lambda: net(x_BCHW[:1]), 50 * steps)


def _median_ms(call: Callable[[], object], times: int) -> float:
    taken = []
    for _ in range(WARM_UP + times):
        begin = time.perf_counter()
        call()
        taken.append(1e3 * (time.perf_counter() - begin))
    return median(taken[WARM_UP:])
