"""Time one call of each model of a run, as untrained networks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial

import torch
from torch import nn

from moist.config import LatencyConfig
from moist.data.augment import plain_batches
from moist.env import Env, autocast
from moist.errors import StageError
from moist.measure.accuracy import inference
from moist.measure.latency import time_apart, time_interleaved
from moist.nets.build import Architecture, module, timed_models
from moist.nets.mixture import MoIST
from moist.nets.onnx_graph import onnx_of, session
from moist.nets.routers import IMPOSSIBLE
from moist.results.report import IN_TORCH, Latencies, Machine, Timing
from moist.stages import stage
from moist.store.artifacts import Clusters, Dataset, Split

BATCH_SIZES = (1, 256)
ROUTED = {"model", "asked"}
"""The models that are timed in torch, too, where another runtime is configured."""


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

    Untrained networks are timed: the same operators on tensors of the same shapes as after
    training, so that all runs of one architecture share one measurement and a sweep has it
    before it trains. Weights would affect two more things. Which student an image is sent to:
    see `in_turn`. And, on a processor, how many numbers are subnormal, on which it is slow; a
    network that weight decay has driven there is slower than measured here. The share of
    deferred images is not known yet: a cascade is timed when it defers none and all. Raises
    StageError on another machine than that whose latencies are reported.
    """
    models = _models(env, data, arch, k, machine)

    def timings(size: int) -> dict[str, Timing]:
        with _torch_calls(env, models, data, size, precision) as calls:
            return time_interleaved(
                calls, synchronizer(env), repeats=latency.repeats, seconds=latency.seconds
            )

    return _latencies(machine, timings)


@stage(version=1)
def measure_exported_latency(
    env: Env,
    *,
    data: Dataset,
    arch: Architecture,
    k: int | Clusters,
    latency: LatencyConfig,
    precision: str,
    machine: Machine,
) -> Latencies:
    """Measure the same in onnxruntime on the CPU, and the routed models in torch beside."""
    env = on_cpu(env)
    models = _models(env, data, arch, k, machine)

    def timings(size: int) -> dict[str, Timing]:
        with _torch_calls(env, models, data, size, precision) as in_torch:
            pixels = data.train.images_NHWC[_rows(data, size)]
            calls = {name: in_onnxruntime(net, data, pixels) for name, net in models.items()}
            calls |= {f"{name}{IN_TORCH}": in_torch[name] for name in in_torch.keys() & ROUTED}
            return time_apart(
                calls, synchronizer(env), repeats=latency.repeats, seconds=latency.seconds
            )

    return _latencies(machine, timings)


def _models(
    env: Env, data: Dataset, arch: Architecture, k: int | Clusters, machine: Machine
) -> dict[str, nn.Module]:
    """Build the networks to time. Raises StageError if they are to be timed elsewhere."""
    if env.timed_on:
        raise StageError(
            f"latencies are those of {machine}, which has not timed this model",
            "that is the driver's machine: the same command continues there",
        )
    number = k.k if isinstance(k, Clusters) else k
    models = timed_models(arch, data.image_shape, len(data.classes), number)
    return {name: module(model, env.device).eval() for name, model in models.items()}


def _latencies(machine: Machine, timings: Callable[[int], dict[str, Timing]]) -> Latencies:
    """Time all models at both batch sizes."""
    found = {f"batch_{size}": timings(size) for size in BATCH_SIZES}
    models = {name: {at: of[name] for at, of in found.items()} for name in found["batch_1"]}
    return Latencies(machine=machine, models=models)


@contextmanager
def _torch_calls(
    env: Env, nets: Mapping[str, nn.Module], data: Dataset, size: int, precision: str
) -> Iterator[dict[str, Callable[[], object]]]:
    """Return a call of each network on the same images, and send them `in_turn`, in the context.

    A mixture gets the images' labels, too, for an oracle.
    """
    images, labels = _some_images(env, data, size)
    with inference(nets["model"], env.device, precision), in_turn(nets["model"], images):
        yield {
            name: partial(net, images, labels) if isinstance(net, MoIST) else partial(net, images)
            for name, net in nets.items()
        }


def in_onnxruntime(
    net: nn.Module, data: Dataset, images_BHWC: torch.Tensor
) -> Callable[[], object]:
    """Export a network, and return a call of it with uint8 images."""
    with autocast(torch.device("cpu"), "float32"):
        runs = session(onnx_of(net, data, {}))
    return partial(runs.run, ["logits"], {"images": images_BHWC.numpy()})


def on_cpu(env: Env) -> Env:
    """Return the environment on the CPU."""
    return replace(env, device=torch.device("cpu"))


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

    def other(_net: nn.Module, _args: object, gate_BE: torch.Tensor) -> torch.Tensor:
        place_B = torch.ones_like(gate_BE[:, 0]).cumsum(0) - 1  # of any batch, also if traced
        others_BE = (place_B % k)[:, None] != torch.arange(k, device=gate_BE.device)
        return gate_BE + IMPOSSIBLE * others_BE

    return net.router.register_forward_hook(other)


def _some_images(env: Env, data: Dataset, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return `size` training images spread over the split, and their labels."""
    rows = _rows(data, size)
    split = Split(data.train.images_NHWC[rows], data.train.labels_N[rows])
    batch = next(
        plain_batches(split, mean=data.mean, std=data.std, batch_size=size, device=env.device)
    )
    return batch.images_BCHW, batch.labels_B


def _rows(data: Dataset, size: int) -> torch.Tensor:
    return torch.linspace(0, len(data.train) - 1, size).long()


def synchronizer(env: Env) -> Callable[[], None]:
    """Return a function that waits until the device has finished."""
    if env.device.type == "cuda":
        return partial(torch.cuda.synchronize, env.device)
    return lambda: None
