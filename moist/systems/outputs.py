"""The outputs of a run's stages, and the report made from them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from moist.config import Config
from moist.config.systems import SYSTEMS, known_students
from moist.results.report import Evaluation, Latencies, Report, measured
from moist.store.artifacts import Clusters, Dataset, Logits, Network, Student
from moist.store.calls import Call, Ref
from moist.store.keys import encoded, key_of


@dataclass(frozen=True)
class Models:
    """The models of a run; each system replaces `model` and adds those to compare it with."""

    teacher: Ref[Network]
    logits: Ref[Logits]
    student: Ref[Student]
    model: Ref[Any]
    clusters: Ref[Clusters] | None = None
    fallback: Ref[Any] | None = None
    """What a cascade defers to, if the system trains it."""
    beside: dict[str, Ref[Any]] = field(default_factory=dict)

    def named(self) -> dict[str, Ref[Any]]:
        """Return all by their names in the report."""
        shared = {"model": self.model, "student": self.student, "teacher": self.teacher}
        return {**shared, **self.beside}


@dataclass(frozen=True)
class Outputs:
    """The outputs of a run's stages, each loaded only when its value is needed."""

    data: Ref[Dataset]
    models: Models
    evaluations: dict[str, Ref[Evaluation]]
    latencies: Ref[Latencies]


def run_key(config: Config, out: Outputs) -> str:
    """Return the key of a run; over a `Plan` it is known before anything is computed."""
    decides = {"models": out.evaluations, "latency": config.latency}
    return key_of("run", 1, encoded(decides, "run"))


def report_of(config: Config, out: Outputs, calls: Iterable[Call]) -> Report:
    """Assemble the report of a run; `calls` have the seconds of its stages, each counted once."""
    seconds: dict[str, float] = {}
    for call in {call.key: call for call in calls}.values():
        seconds[call.stage] = seconds.get(call.stage, 0.0) + (call.seconds or 0.0)
    clusters = out.models.clusters.value if out.models.clusters else None
    fields = measured(
        {name: evaluation.value for name, evaluation in out.evaluations.items()},
        out.latencies.value,
        k=clusters.k if clusters else known_students(config) or 1,
        of_class=clusters.of_class if clusters else (),
    )
    return Report(
        **fields,
        upper_bound=is_upper_bound(config),
        silhouette=clusters.silhouette if clusters else {},
        key=run_key(config, out),
        model_key=out.models.model.key,
        seconds=sum(seconds.values()),
        stage_seconds=seconds,
    )


def is_upper_bound(config: Config) -> bool:
    """Return whether the model is routed by the true class of each image."""
    return config.router == "oracle" and SYSTEMS[config.system].routes
