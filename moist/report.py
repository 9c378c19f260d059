"""Numbers with their units: what a run found, to JSON and back.

Accuracies are fractions in [0, 1]. `mflops` counts what fvcore counts (a multiply-add is one),
in millions an image; `mmacs` is its convolution and linear part, which is what stays once batch
norm is folded into the convolutions. Latencies are milliseconds a call, at the named batch.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Record(BaseModel):
    """Frozen, strict about names, and never NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Machine(Record):
    """What a time depends on."""

    device: str
    threads: int
    torch: str
    system: str


class Cost(Record):
    """What one image costs; `flops` and `macs` are exact counts, `bytes` the stored weights."""

    flops: float
    macs: float
    params: int
    bytes: int

    @property
    def mflops(self) -> float:
        return self.flops / 1e6

    @property
    def mmacs(self) -> float:
        return self.macs / 1e6


class Routing(Record):
    """How a mixture spreads the test images over its students.

    `accuracy` is the share of images sent to the cluster of their class; `per_cluster` the same
    share for each cluster; `sent[class][expert]` counts test images (the paper's Fig. 2).
    """

    accuracy: float
    per_cluster: tuple[float, ...]
    cluster_accuracy: tuple[float, ...]
    sent: dict[str, tuple[int, ...]]


class Evaluation(Record):
    """One model on the test split (n images), and on the validation split if there is one."""

    accuracy: float
    val_accuracy: float | None
    loss: float
    ece: float
    per_class: dict[str, float]
    n: int
    n_val: int
    cost: Cost
    routing: Routing | None = None


class Timing(Record):
    """Milliseconds a call at one batch size: median and 95th percentile of n calls."""

    median: float
    p95: float
    n: int


class Latencies(Record):
    """Timing by model and batch size (`batch_1`), all models interleaved on one machine."""

    machine: Machine
    models: dict[str, dict[str, Timing]]


class Measures(Record):
    """One row of the report."""

    accuracy: float
    val_accuracy: float | None
    loss: float
    ece: float
    per_class_accuracy: dict[str, float]
    mflops: float
    mmacs: float
    params: int
    bytes: int
    latency_ms: dict[str, float] | None
    latency_p95_ms: dict[str, float] | None
    latency_n: dict[str, int] | None


class Baselines(Record):
    """The models to compare with; `oracle` is the same students behind a perfect router, told
    the class of each test image: an upper bound, not a system."""

    teacher: Measures
    student: Measures
    oracle: Measures


class Report(Measures):
    """What `moist run` found about one config; an `upper_bound` was told each image's class."""

    upper_bound: bool
    routing_accuracy: float
    per_cluster_accuracy: tuple[float, ...]
    per_cluster_routing_accuracy: tuple[float, ...]
    k: int
    clusters: tuple[tuple[str, ...], ...]
    sent: dict[str, tuple[int, ...]]
    silhouette: dict[str, float]
    n_test: int
    n_val: int
    baselines: Baselines
    key: str
    seconds: float
    stage_seconds: dict[str, float]
    machine: Machine

    def timeless(self) -> dict[str, object]:
        """All that a repeated run must give again: the report without its clock readings."""
        clocks = {"latency_ms", "latency_p95_ms", "latency_n"}
        return self.model_dump(
            mode="json",
            exclude={
                **dict.fromkeys((*clocks, "seconds", "stage_seconds", "machine"), True),
                "baselines": dict.fromkeys(("teacher", "student", "oracle"), clocks),
            },
        )


def measures(evaluation: Evaluation, timings: dict[str, Timing] | None) -> Measures:
    """One model's row."""
    return Measures(
        accuracy=evaluation.accuracy,
        val_accuracy=evaluation.val_accuracy,
        loss=evaluation.loss,
        ece=evaluation.ece,
        per_class_accuracy=evaluation.per_class,
        mflops=evaluation.cost.mflops,
        mmacs=evaluation.cost.mmacs,
        params=evaluation.cost.params,
        bytes=evaluation.cost.bytes,
        latency_ms=timings and {batch: t.median for batch, t in timings.items()},
        latency_p95_ms=timings and {batch: t.p95 for batch, t in timings.items()},
        latency_n=timings and {batch: t.n for batch, t in timings.items()},
    )


def assemble(
    evaluations: dict[str, Evaluation],
    latencies: Latencies,
    *,
    upper_bound: bool,
    of_class: tuple[int, ...],
    silhouette: dict[str, float],
    key: str,
    stage_seconds: dict[str, float],
) -> Report:
    """The report of a run from what its stages measured."""
    mixture = evaluations["mixture"]
    routing = mixture.routing
    assert routing is not None
    rows = {
        name: measures(evaluation, latencies.models.get(name))
        for name, evaluation in evaluations.items()
    }
    classes = tuple(mixture.per_class)
    k = max(of_class) + 1
    return Report(
        **rows["mixture"].model_dump(),
        upper_bound=upper_bound,
        routing_accuracy=routing.accuracy,
        per_cluster_accuracy=routing.cluster_accuracy,
        per_cluster_routing_accuracy=routing.per_cluster,
        k=k,
        clusters=tuple(
            tuple(name for name, j in zip(classes, of_class, strict=True) if j == e)
            for e in range(k)
        ),
        sent=routing.sent,
        silhouette=silhouette,
        n_test=mixture.n,
        n_val=mixture.n_val,
        baselines=Baselines(
            teacher=rows["teacher"], student=rows["student"], oracle=rows["oracle"]
        ),
        key=key,
        seconds=sum(stage_seconds.values()),
        stage_seconds=stage_seconds,
        machine=latencies.machine,
    )
