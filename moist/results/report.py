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
    """What one image costs; `bytes` are the stored weights. `flops` and `macs` are exact counts;
    with second opinions, averages of such counts."""

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


class Point(Record):
    """A second opinion at one threshold, chosen on validation images: what the test split says.

    `asked` is the share of the test images whose certainty is below the threshold, `val_asked`
    that of the validation images; costs are averages over the images of a split, in millions.
    """

    threshold: float
    asked: float
    val_asked: float
    accuracy: float
    val_accuracy: float
    mflops: float
    mmacs: float
    val_mflops: float
    val_mmacs: float


class Doubt(Record):
    """When a model asks for a second opinion; `curve` has the chosen threshold among others, from
    asking never, which is the model by itself, to always."""

    chosen: Point
    curve: tuple[Point, ...]


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
    doubt: Doubt | None = None


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
    """The models to compare with, those that the run has.

    `oracle` is the mixture's students behind a perfect router, told the class of each test image:
    an upper bound, not a system. `first` is a model before its second opinions; `mixture` and
    `gathered` are what OneS merged, and the student that gave before it was refined.
    """

    teacher: Measures
    student: Measures
    oracle: Measures | None = None
    first: Measures | None = None
    mixture: Measures | None = None
    gathered: Measures | None = None


class Report(Measures):
    """What `moist run` found about one config; an `upper_bound` was told each image's class.

    `model_key` is that of the stored model itself. What a system has no part in is empty: a
    single student has no clusters, and no routing accuracy.
    """

    upper_bound: bool
    routing_accuracy: float | None
    per_cluster_accuracy: tuple[float, ...]
    per_cluster_routing_accuracy: tuple[float, ...]
    k: int
    clusters: tuple[tuple[str, ...], ...]
    sent: dict[str, tuple[int, ...]]
    silhouette: dict[str, float]
    doubt: Doubt | None = None
    n_test: int
    n_val: int
    baselines: Baselines
    key: str
    model_key: str | None = None
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
                "baselines": dict.fromkeys(Baselines.model_fields, clocks),
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


def timings_of(
    name: str, evaluation: Evaluation, latencies: Latencies
) -> dict[str, Timing] | None:
    """How long a call takes; with second opinions, how long one image takes on average, if as
    many ask as of the validation images: times are chosen by, and test images never are.

    None for a model that isn't timed.
    """
    if name == "first":
        return latencies.models["model"]
    if evaluation.doubt is None:
        return latencies.models.get(name)
    never, always = (latencies.models[part]["batch_1"] for part in ("model", "asked"))
    return {"batch_1": asking(never, always, evaluation.doubt.chosen.val_asked)}


def asking(never: Timing, always: Timing, share: float) -> Timing:
    """The time of an image when a `share` of them asks for a second opinion: on average, and at
    the 95th percentile, which is an image that asks where more than 5 % do."""
    return Timing(
        median=never.median + share * (always.median - never.median),
        p95=always.p95 if share > 0.05 else never.p95,
        n=min(never.n, always.n),
    )


def assemble(
    evaluations: dict[str, Evaluation],
    latencies: Latencies,
    *,
    upper_bound: bool,
    k: int,
    of_class: tuple[int, ...],
    silhouette: dict[str, float],
    key: str,
    model_key: str,
    stage_seconds: dict[str, float],
) -> Report:
    """The report of a run from what its stages measured; `of_class` is empty without clusters."""
    model = evaluations["model"]
    routing = model.routing
    rows = {
        name: measures(evaluation, timings_of(name, evaluation, latencies))
        for name, evaluation in evaluations.items()
    }
    classes = tuple(model.per_class)
    return Report(
        **rows.pop("model").model_dump(),
        upper_bound=upper_bound,
        routing_accuracy=routing and routing.accuracy,
        per_cluster_accuracy=routing.cluster_accuracy if routing else (),
        per_cluster_routing_accuracy=routing.per_cluster if routing else (),
        k=k,
        clusters=tuple(
            tuple(name for name, j in zip(classes, of_class, strict=True) if j == e)
            for e in range(k if of_class else 0)
        ),
        sent=routing.sent if routing else {},
        silhouette=silhouette,
        doubt=model.doubt,
        n_test=model.n,
        n_val=model.n_val,
        baselines=Baselines(**rows),
        key=key,
        model_key=model_key,
        seconds=sum(stage_seconds.values()),
        stage_seconds=stage_seconds,
        machine=latencies.machine,
    )
