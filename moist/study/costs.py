"""Cost estimates: what a config computes, and the quantities that are known before training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cache, partial

import torch

from moist.config import Config
from moist.config.systems import known_students
from moist.data.sources import Source
from moist.env import autocast
from moist.measure.latency import time_apart, time_interleaved
from moist.measure.multiply_adds import cost
from moist.measure.stage_times import StageTimes
from moist.nets.build import Architecture, blank, module, timed_models
from moist.nets.entry import Shape
from moist.nets.mixture import MoIST
from moist.pipeline import stages
from moist.results.objectives import SPREAD
from moist.results.report import Cost, Timing, deferred_timing
from moist.stages import LATENCIES
from moist.stages.latency import in_onnxruntime, on_cpu, synchronizer
from moist.store.artifacts import Dataset
from moist.store.calls import Backend, Call, Ref
from moist.store.plan import Plan
from moist.systems import architecture
from moist.systems.bound import Bound
from moist.systems.outputs import run_key
from moist.systems.shared import prepared, timed


@dataclass(frozen=True)
class CostEstimate:
    """A config before training: its run's key, its stages, and the quantities that are known.

    `measure` finds the quantities that take a while, and are worth it once the others are no
    reason to reject the trial.
    """

    key: str
    calls: tuple[Call, ...]
    quantities: dict[str, float]
    measure: Callable[[], dict[str, float]] = dict

    def measured(self) -> CostEstimate:
        """Return the estimate with all quantities."""
        return replace(self, quantities=self.quantities | self.measure(), measure=dict)


@dataclass
class CostEstimator:
    """Estimates configs over one home; `paused` stops all workers while a latency is measured.

    No latency is measured beside a training: an architecture's is measured once, before
    its first trial starts, and not at all if its counts are reason enough to reject it. Two are
    measured by the trial: that of `k=auto`, whose architecture isn't known yet, and with
    `reuse=False`, where every trial computes all its stages.
    """

    store: Backend
    reuse: bool = True
    paused: Callable[[], AbstractContextManager[None]] = field(default=nullcontext)
    times: StageTimes | None = None
    """Expects the times of stages to compute, if given."""

    def __call__(self, config: Config) -> CostEstimate:
        """Prepare the data and count; the estimate can be `measured`, too."""
        planned = self.plan(config)
        counted = untrained_quantities(config, self.store, latency=False)
        if known_students(config) is None or not self.reuse:
            return replace(planned, quantities=counted)
        return replace(planned, quantities=counted, measure=partial(self._measure, config))

    def _measure(self, config: Config) -> dict[str, float]:
        # The data are prepared by now: a worker that is paused may hold their lock.
        timed = all(call.reused for call in self.plan(config).calls if call.stage in LATENCIES)
        with nullcontext() if timed else self.paused():
            return untrained_quantities(config, self.store, latency=True)

    def plan(self, config: Config, source: Source | None = None) -> CostEstimate:
        """Return the key and the stages alone: computes nothing; `source` as in `stages`."""
        store = self.store
        forecast = Plan(store.home, store.env, self.reuse, store.remote, verify=False)
        key = run_key(config, stages(config, forecast, source))
        calls: dict[str, Call] = {}
        for call in self.times.of(forecast) if self.times else forecast.calls:
            calls.setdefault(call.key, call)  # the second call of a stage finds it planned
        return CostEstimate(key, tuple(calls.values()), {})


def untrained_quantities(config: Config, store: Backend, latency: bool) -> dict[str, float]:
    """Return the quantities that training can't change, as the run will report them.

    None of them for `k=auto`, where the number of students depends on the teacher, and for a
    model that defers, where training decides how many images are deferred. Prepares the data,
    which gives the images' shape, and measures times only if `latency`, those of deferral too;
    both are stored, and the run itself reuses them. A `Plan` has no data to do so. Raises
    ConfigError for a config that can't work on these data.
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
        one = timings["batch_1"]
        found["latency_ms"] = one.median
        found |= {} if one.spread is None else {SPREAD: one.spread}
    return found


_seen: dict[str, tuple[Shape, int]] = {}


def _images(data: Ref[Dataset]) -> tuple[Shape, int]:
    """Return image shape (C, H, W) and number of classes; loads a data set once per process."""
    if data.key not in _seen:
        loaded = data.value
        _seen[data.key] = (loaded.image_shape, len(loaded.classes))
    return _seen[data.key]


@cache
def _cost(image_shape: Shape, classes: int, arch: Architecture, k: int) -> Cost:
    """Count an untrained model once: a trace takes a fifth of a second."""
    return cost(module(blank(arch, image_shape, classes, k)), image_shape)


def time_together(configs: Sequence[Config], store: Backend) -> list[Timing]:
    """Measure each config's model, in milliseconds per call with one image.

    For comparing them on an otherwise idle machine: measured anew, never stored.
    """
    env, latency, precision = store.env, configs[0].latency, configs[0].precision
    exported = latency.runtime == "onnxruntime"
    env = on_cpu(env) if exported else env
    label = torch.zeros(1, dtype=torch.int64, device=env.device)
    calls: dict[str, Callable[[], object]] = {}
    for index, config in enumerate(configs):  # two students for k=auto: an image meets one
        data = prepared(config, store)[0]
        shape, classes = _images(data)
        image = torch.zeros(1, *shape, device=env.device)
        parts = timed_models(architecture(config), shape, classes, known_students(config) or 2)
        for name in {"model", "asked"} & parts.keys():
            net = module(parts[name], env.device).eval()
            given = (image, label) if isinstance(net, MoIST) else (image,)
            calls[f"{index}/{name}"] = partial(net, *given)
            if config.latency.runtime == "onnxruntime":
                pixels = data.value.train.images_NHWC[:1]
                calls[f"{index}/{name}"] = in_onnxruntime(net, data.value, pixels)
    with torch.inference_mode(), autocast(env.device, precision):
        time = time_apart if exported else time_interleaved
        timings = time(
            calls, synchronizer(env), repeats=latency.repeats, seconds=latency.seconds * len(calls)
        )
    return [_both(timings, index, config) for index, config in enumerate(configs)]


def _both(timings: Mapping[str, Timing], index: int, config: Config) -> Timing:
    """Return the model's time, with deferral of the share of images that is configured."""
    never, always = timings[f"{index}/model"], timings.get(f"{index}/asked")
    if always is None:
        return never
    share = config.mixture.second if config.mixture.top == 2 else config.cascade.defer
    return deferred_timing(never, always, share)
