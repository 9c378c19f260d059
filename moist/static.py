"""What a config's architecture decides, known before anything is trained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import torch

from moist.artifacts import Dataset, Mixture, Spec
from moist.config import Config, Student
from moist.measure import cost, inference, time_interleaved
from moist.mixture import module, student_spec, untrained
from moist.nets import Shape
from moist.pipeline import prepared, timed
from moist.report import Cost, Timing
from moist.routers import router_options
from moist.stages.latency import synchronizer
from moist.store import Ref, Store


def known(config: Config, store: Store, latency: bool) -> dict[str, float] | None:
    """The quantities of `moist.objectives` that training can't change, as the run will say them.

    None for `k=auto`: the number of students depends on the teacher. Prepares the data, which
    gives the images' shape, and measures `latency_ms` only if `latency`; both are stored, and
    the run itself reuses them. A `Plan` can't answer: it has no data. Raises ConfigError for
    what can't work on these data.
    """
    if config.k == "auto":
        return None
    data, _ = prepared(config, store)
    options = router_options(config.router, config.routing)
    counted = _cost(
        *_images(data), config.student, config.hidden_width, config.router,
        tuple(sorted(options.items())), config.k,
    )  # fmt: skip
    found = {
        "mflops": counted.mflops,
        "mmacs": counted.mmacs,
        "params": float(counted.params),
        "bytes": float(counted.bytes),
    }
    if latency:
        timings = timed(config, store, data, config.k).value.models["mixture"]
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
def _cost(
    image_shape: Shape,
    classes: int,
    student: Student,
    hidden_width: int,
    router: str,
    options: tuple[tuple[str, Any], ...],
    k: int,
) -> Cost:
    """A trace takes a fifth of a second, so it is taken once; masks and gates count nothing."""
    mixture = untrained(
        student_spec(student, hidden_width, image_shape, classes),
        Spec(router, image_shape, k, dict(options)),
        masked=False,
        gated=False,
    )
    return cost(module(mixture), image_shape)


def time_together(configs: Sequence[Config], store: Store) -> list[Timing]:
    """Milliseconds a call with one image, of each config's mixture, all of them in turn.

    For comparing them on a machine that does nothing else: measured anew, never stored.
    """
    env, latency, precision = store.env, configs[0].latency, configs[0].precision
    nets = [module(_blank(config, store), env.device).eval() for config in configs]
    data, _ = prepared(configs[0], store)
    image = torch.zeros(1, *_images(data)[0], device=env.device)
    label = torch.zeros(1, dtype=torch.int64, device=env.device)
    calls: dict[str, Callable[[], object]] = {
        str(index): partial(net, image, label) for index, net in enumerate(nets)
    }
    with inference(nets[0], env.device, precision):
        timings = time_interleaved(
            calls,
            synchronizer(env),
            repeats=latency.repeats,
            seconds=latency.seconds * len(nets),
        )
    return list(timings.values())


def _blank(config: Config, store: Store) -> Mixture:
    """A config's untrained mixture; of `k=auto` with two students, as one image meets only one."""
    shape, classes = _images(prepared(config, store)[0])
    k = 2 if config.k == "auto" else config.k
    router = Spec(config.router, shape, k, router_options(config.router, config.routing))
    students = student_spec(config.student, config.hidden_width, shape, classes)
    masked, gated = config.joint.mask_students, config.joint.objective == "switch"
    return untrained(students, router, masked=masked, gated=gated)
