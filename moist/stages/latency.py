"""How long one call takes, all models of a run in turn."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from moist.artifacts import Dataset, Mixture, Split, Student, Teacher
from moist.augment import plain_batches
from moist.config import Latency
from moist.env import Env
from moist.measure import inference, time_interleaved
from moist.mixture import module
from moist.report import Latencies, Machine, Timing
from moist.stages import stage

BATCH_SIZES = (1, 256)


@stage(version=1)
def measure_latency(
    env: Env,
    *,
    data: Dataset,
    teacher: Teacher,
    student: Student,
    mixture: Mixture,
    latency: Latency,
    precision: str,
    machine: Machine,
) -> Latencies:
    """Milliseconds a call on real images, router included; the only stage keyed on the machine."""
    nets = {
        name: module(model, env.device).eval()
        for name, model in (("mixture", mixture), ("student", student), ("teacher", teacher))
    }
    models: dict[str, dict[str, Timing]] = {name: {} for name in nets}
    for size in BATCH_SIZES:
        images, labels = _some_images(env, data, size)
        with inference(nets["mixture"], env.device, precision):
            calls: dict[str, Callable[[], object]] = {
                name: partial(net, images, labels) if name == "mixture" else partial(net, images)
                for name, net in nets.items()
            }
            timings = time_interleaved(
                calls,
                _synchronize(env),
                repeats=latency.repeats,
                seconds=latency.seconds,
            )
        for name, timing in timings.items():
            models[name][f"batch_{size}"] = timing
    return Latencies(machine=machine, models=models)


def _some_images(env: Env, data: Dataset, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """`size` training images spread over the split, and their labels."""
    rows = torch.linspace(0, len(data.train) - 1, size).long()
    split = Split(data.train.images_NHWC[rows], data.train.labels_N[rows])
    batch = next(
        plain_batches(split, mean=data.mean, std=data.std, batch_size=size, device=env.device)
    )
    return batch.images_BCHW, batch.labels_B


def _synchronize(env: Env) -> Callable[[], None]:
    if env.device.type == "cuda":
        return partial(torch.cuda.synchronize, env.device)
    return lambda: None
