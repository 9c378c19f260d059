"""Steps of every run around the stages that train: its data, its latencies, its evaluations."""

from __future__ import annotations

from typing import Any

from moist.config import Config
from moist.config.systems import SYSTEMS
from moist.data.sources import Source, locate
from moist.nets.build import Architecture
from moist.results.report import Evaluation, Latencies
from moist.stages.evaluate import evaluate
from moist.stages.latency import measure_exported_latency, measure_latency, on_cpu
from moist.stages.prepare import prepare
from moist.stages.teacher import WeightsFile
from moist.store.artifacts import Clusters, Dataset
from moist.store.calls import Backend, Ref
from moist.systems.bound import Bound
from moist.systems.checks import check, given_weights
from moist.systems.outputs import Models, is_upper_bound


def prepared(
    config: Config, store: Backend, source: Source | None = None
) -> tuple[Ref[Dataset], WeightsFile | None]:
    """Prepare the data, found here unless given, and find the file of a teacher's weights.

    Raises ConfigError for a config that cannot work on these data, or without that file.
    """
    c = config
    source = source or locate(c.data, store.home, fetch=store.writes)
    check(c, source)
    weights, note = given_weights(c, source)
    for text in filter(None, (source.summary, note)):
        store.env.progress.noted(text)
    for warning in source.warnings:
        store.env.progress.warned(warning)
    data = store.call(prepare, source=source, val_fraction=c.data.val_fraction)
    return data, weights


def timed(
    call: Bound, config: Config, arch: Architecture, k: int | Ref[Clusters] | None
) -> Ref[Latencies]:
    """Time a run's networks, trained or not; `k` counts the students, or clusters decide it."""
    env, latency = call.store.env, config.latency
    exported = latency.runtime == "onnxruntime"
    machine = env.timed_on or (on_cpu(env) if exported else env).machine()
    measure = measure_exported_latency if exported else measure_latency
    return call(measure, arch=arch, k=k, latency=latency, machine=machine)


def evaluated(call: Bound, config: Config, models: Models) -> dict[str, Ref[Evaluation]]:
    """Evaluate every model, and students that are routed to behind an oracle router."""
    named = models.named()
    todo: dict[str, tuple[Ref[Any], bool]] = {"model": (models.model, is_upper_bound(config))}
    if SYSTEMS[config.system].routes:
        todo["oracle"] = (named.get("first", models.model), True)
    if SYSTEMS[config.system].routes_deferred:
        todo["oracle"] = (models.model, True)
    todo |= {name: (model, False) for name, model in named.items() if name != "model"}
    return {
        name: call(evaluate, model=model, oracle=oracle) for name, (model, oracle) in todo.items()
    }
