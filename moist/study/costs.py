"""What a config's architecture decides, known before anything is trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial

import torch

from moist.config import Config
from moist.config.systems import known_students
from moist.env import autocast
from moist.measure.latency import time_interleaved
from moist.measure.multiply_adds import cost
from moist.nets.build import (
    Architecture,
    blank,
    module,
    timed_models,
)
from moist.nets.cnn import Shape
from moist.nets.mixture import MoIST
from moist.results.report import Cost, Timing, asking
from moist.stages.latency import synchronizer
from moist.store.artifacts import Dataset
from moist.store.calls import Backend, Ref
from moist.systems import architecture
from moist.systems.bound import Bound
from moist.systems.shared import prepared, timed


def known(config: Config, store: Backend, latency: bool) -> dict[str, float]:
    """The quantities that training can't change, as the run will report them.

    None of them for `k=auto`, where the number of students depends on the teacher, and for second
    opinions, of which training says how many are asked for. Prepares the data, which gives the
    images' shape, and measures times only if `latency`, those of second opinions too; both are
    stored, and the run itself reuses them. A `Plan` can't answer: it has no data. Raises
    ConfigError for what can't work on these data.
    """
    arch, k = architecture(config), known_students(config)
    if k is None:
        return {}
    data, timings = prepared(config, store)[0], None
    if latency:
        call = Bound(store, data=data, precision=config.precision)
        timings = timed(call, config, arch, k).value.models["model"]
    if arch.cascades:
        return {}
    counted = _cost(*_images(data), arch, k)
    found = {
        "mflops": counted.mflops,
        "mmacs": counted.mmacs,
        "params": float(counted.params),
        "bytes": float(counted.bytes),
    }
    if timings:
        found["latency_ms"] = timings["batch_1"].median
    return found


_seen: dict[str, tuple[Shape, int]] = {}


def _images(data: Ref[Dataset]) -> tuple[Shape, int]:
    """Image shape and number of classes; a data set is loaded for them once a process."""
    if data.key not in _seen:
        loaded = data.value
        _seen[data.key] = (loaded.image_shape, len(loaded.classes))
    return _seen[data.key]


@cache
def _cost(image_shape: Shape, classes: int, arch: Architecture, k: int) -> Cost:
    """A trace takes a fifth of a second, so it is taken once."""
    return cost(module(blank(arch, image_shape, classes, k)), image_shape)


def time_together(configs: Sequence[Config], store: Backend) -> list[Timing]:
    """Milliseconds a call with one image, of each config's model, all of them in turn.

    For comparing them on a machine that does nothing else: measured anew, never stored.
    """
    env, latency, precision = store.env, configs[0].latency, configs[0].precision
    label = torch.zeros(1, dtype=torch.int64, device=env.device)
    calls: dict[str, Callable[[], object]] = {}
    for index, config in enumerate(configs):  # of k=auto two students: an image meets one
        shape, classes = _images(prepared(config, store)[0])
        image = torch.zeros(1, *shape, device=env.device)
        parts = timed_models(architecture(config), shape, classes, known_students(config) or 2)
        for name in {"model", "asked"} & parts.keys():
            net = module(parts[name], env.device).eval()
            given = (image, label) if isinstance(net, MoIST) else (image,)
            calls[f"{index}/{name}"] = partial(net, *given)
    with torch.inference_mode(), autocast(env.device, precision):
        timings = time_interleaved(
            calls,
            synchronizer(env),
            repeats=latency.repeats,
            seconds=latency.seconds * len(calls),
        )
    return [_both(timings, index, config) for index, config in enumerate(configs)]


def _both(timings: Mapping[str, Timing], index: int, config: Config) -> Timing:
    """The model's time, with second opinions for the share of images meant to ask for one."""
    never, always = timings[f"{index}/model"], timings.get(f"{index}/asked")
    if always is None:
        return never
    share = config.mixture.second if config.mixture.top == 2 else config.cascade.defer
    return asking(never, always, share)
