"""Time one call of each model of a run, in turn, as untrained networks."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

from moist.config import LatencyConfig
from moist.data.augment import plain_batches
from moist.env import Env
from moist.measure.accuracy import inference
from moist.measure.latency import time_interleaved
from moist.nets.build import Architecture, module, timed_models
from moist.nets.mixture import MoIST
from moist.nets.routers import IMPOSSIBLE
from moist.results.report import Latencies, Machine, Timing
from moist.stages import stage
from moist.store.artifacts import Clusters, Dataset, Split

BATCH_SIZES = (1, 256)


@stage(version=4)
def measure_latency(
    env: Env,
    *,
    data: Dataset,
    arch: Architecture,
    k: int | Clusters,
    latency: LatencyConfig,
    precision: str,
    machine: Machine,
) -> Latencies:
    """Measure milliseconds per call on real images, router included.

    The only stage keyed on the machine.

    Untrained networks are timed: the same operators on tensors of the same shapes as after
    training, so that all runs of one architecture share one measurement and a sweep has it
    before it trains. Weights would affect two more things. Which student an image is sent to:
    see `in_turn`. And, on a processor, how many numbers are subnormal, on which it is slow; a
    network that weight decay has driven there is slower than measured here. The share of
    deferred images is not known yet: a cascade is timed when it defers none and all.
    """
    number = k.k if isinstance(k, Clusters) else k
    models = timed_models(arch, data.image_shape, len(data.classes), number)
    nets = {name: module(model, env.device).eval() for name, model in models.items()}
    timings = {
        size: _timings(env, nets, _some_images(env, data, size), latency, precision=precision)
        for size in BATCH_SIZES
    }
    return Latencies(
        machine=machine,
        models={
            name: {f"batch_{size}": timing[name] for size, timing in timings.items()}
            for name in nets
        },
    )


def _timings(
    env: Env,
    nets: dict[str, nn.Module],
    batch: tuple[torch.Tensor, torch.Tensor],
    latency: LatencyConfig,
    *,
    precision: str,
) -> dict[str, Timing]:
    """Time each network on the same images; a mixture gets their labels too, for an oracle."""
    images, labels = batch
    calls: dict[str, Callable[[], object]] = {
        name: partial(net, images, labels) if isinstance(net, MoIST) else partial(net, images)
        for name, net in nets.items()
    }
    with inference(nets["model"], env.device, precision), in_turn(nets["model"], images):
        return time_interleaved(
            calls, synchronizer(env), repeats=latency.repeats, seconds=latency.seconds
        )


def in_turn(net: nn.Module, images_BCHW: torch.Tensor) -> AbstractContextManager[object]:
    """Make the router's logits send image i of a batch to student i mod k, within the context.

    An untrained router may send all images to one student, which makes one large batch of them;
    a trained one uses all students, and the same images cost more calls. The router is still
    computed and its largest logit still decides, so whatever waits for the router still does.
    A single image goes where the router sends it: all students cost the same. An oracle does not
    look at images, and sends each to the student of its label.
    """
    if len(images_BCHW) == 1 or not isinstance(net, MoIST):
        return nullcontext()
    k = len(net.students)
    turn_B = torch.arange(len(images_BCHW), device=images_BCHW.device) % k
    others_BE = IMPOSSIBLE * (1 - F.one_hot(turn_B, k).float())
    return net.router.register_forward_hook(lambda _net, _args, gate_BE: gate_BE + others_BE)


def _some_images(env: Env, data: Dataset, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return `size` training images spread over the split, and their labels."""
    rows = torch.linspace(0, len(data.train) - 1, size).long()
    split = Split(data.train.images_NHWC[rows], data.train.labels_N[rows])
    batch = next(
        plain_batches(split, mean=data.mean, std=data.std, batch_size=size, device=env.device)
    )
    return batch.images_BCHW, batch.labels_B


def synchronizer(env: Env) -> Callable[[], None]:
    """Return a function that waits until the device has finished."""
    if env.device.type == "cuda":
        return partial(torch.cuda.synchronize, env.device)
    return lambda: None
