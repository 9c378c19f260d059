"""The report of a run: numbers with their units, as records that are stored as JSON.

Accuracies are fractions in [0, 1]. `mflops` are fvcore's flops (a multiply-add counts as one) in
millions an image; `mmacs` is the part of convolution and linear layers, which remains once batch
norm is folded into the convolutions. Latencies are milliseconds per call, at the batch size named.

A field that was renamed has its earlier name as a validation alias: stored records are read.
"""

from __future__ import annotations

from typing import Any

from pydantic import AliasChoices, BaseModel, ConfigDict, Field


class Record(BaseModel):
    """A frozen model that allows no unknown fields, and no NaN or infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Machine(Record):
    """The machine on which times are measured."""

    device: str
    threads: int
    torch: str
    system: str

    def __str__(self) -> str:
        """Describe what a latency depends on, in one line."""
        return f"`{self.device}` ({self.threads} threads, torch {self.torch}, {self.system})"


class Cost(Record):
    """The cost of one image; `bytes` are those of the stored weights.

    `flops` and `macs` are exact counts, or averages of exact counts if images are deferred.
    """

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
    """The distribution of the test images over the students of a mixture; of those deferred, if
    only these are routed.

    `accuracy` is the share of images sent to the cluster of their class; `per_cluster` the same
    share for each cluster; `sent[class][expert]` counts test images (the paper's Fig. 2).
    """

    accuracy: float
    per_cluster: tuple[float, ...]
    cluster_accuracy: tuple[float, ...]
    sent: dict[str, tuple[int, ...]]


class OperatingPoint(Record):
    """Accuracy and cost at one deferral threshold, on the test and on the validation images.

    `deferral_rate` is the share of the images whose certainty is below the threshold. Costs are
    averages over the images of a split, in millions.
    """

    threshold: float
    deferral_rate: float = Field(validation_alias=AliasChoices("deferral_rate", "asked"))
    val_deferral_rate: float = Field(
        validation_alias=AliasChoices("val_deferral_rate", "val_asked")
    )
    accuracy: float
    val_accuracy: float
    mflops: float
    mmacs: float
    val_mflops: float
    val_mmacs: float


class Deferral(Record):
    """The threshold, chosen on validation images, below which a model defers, among others.

    `curve` goes from the threshold that defers no image, which is the model by itself, to the one
    that defers every image.
    """

    chosen: OperatingPoint
    curve: tuple[OperatingPoint, ...]


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
    deferral: Deferral | None = Field(None, validation_alias=AliasChoices("deferral", "doubt"))


STEADY = 0.05
"""Spread at which a latency is measured well enough: timing ends."""


class Timing(Record):
    """Milliseconds a call at one batch size: median and 95th percentile of n calls.

    The medians of nine tenths of the calls, in blocks, are within `spread`, a share of `median`,
    of it; None if unknown (measured by a version of the stage before 4).
    """

    median: float
    p95: float
    n: int
    spread: float | None = None


IN_TORCH = " in torch"
"""After the name of a model that is timed in torch beside another runtime."""


class Latencies(Record):
    """Timing by model and batch size (`batch_1`), all models interleaved on one machine."""

    machine: Machine
    models: dict[str, dict[str, Timing]]


class Measures(Record):
    """One model's row of the report."""

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
    latency_spread: dict[str, float] | None = None


class Baselines(Record):
    """The models of a run to compare with; those that a system does not have are None.

    `oracle` is the same students behind a router that knows the class of each test image: an
    upper bound, not a system. `first` is the model that defers, without its deferral. `mixture` is
    what OneS merges, `gathered` the merged student before its refinement.
    """

    teacher: Measures
    student: Measures
    oracle: Measures | None = None
    first: Measures | None = None
    mixture: Measures | None = None
    gathered: Measures | None = None


class Report(Measures):
    """The result of `moist run` for one config; an `upper_bound` knows each image's class.

    `model_key` is the key of the stored model. Fields that a system has no value for are empty: a
    single student has no clusters and no routing accuracy.
    """

    upper_bound: bool
    routing_accuracy: float | None
    per_cluster_accuracy: tuple[float, ...]
    per_cluster_routing_accuracy: tuple[float, ...]
    k: int
    clusters: tuple[tuple[str, ...], ...]
    sent: dict[str, tuple[int, ...]]
    silhouette: dict[str, float]
    deferral: Deferral | None = Field(None, validation_alias=AliasChoices("deferral", "doubt"))
    n_test: int
    n_val: int
    baselines: Baselines
    key: str
    model_key: str | None = None
    seconds: float
    stage_seconds: dict[str, float]
    machine: Machine
    latency_torch: dict[str, Timing] | None = None
    """Of the model in torch, where `latency.runtime` is another."""

    def routed(self) -> list[list[int]]:
        """Count test images by the cluster of their class (rows) and the student they went to."""
        return [
            [sum(self.sent[name][j] for name in names) for j in range(len(self.clusters))]
            for names in self.clusters
        ]

    def timeless(self) -> dict[str, object]:
        """Return the report without its times: a repeated run must give the same."""
        clocks = {"latency_ms", "latency_p95_ms", "latency_n", "latency_spread"}
        return self.model_dump(
            mode="json",
            exclude={
                **dict.fromkeys(
                    (*clocks, "latency_torch", "seconds", "stage_seconds", "machine"), True
                ),
                "baselines": dict.fromkeys(Baselines.model_fields, clocks),
            },
        )


def measures(evaluation: Evaluation, timings: dict[str, Timing] | None) -> Measures:
    """Return one model's row of the report."""
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
        **times_of(timings),
    )


def times_of(timings: dict[str, Timing] | None) -> dict[str, Any]:
    """Return the fields of a row that are times, by batch size."""
    return {
        "latency_ms": timings and {batch: t.median for batch, t in timings.items()},
        "latency_p95_ms": timings and {batch: t.p95 for batch, t in timings.items()},
        "latency_n": timings and {batch: t.n for batch, t in timings.items()},
        "latency_spread": timings
        and {batch: t.spread for batch, t in timings.items() if t.spread is not None},
    }


def timings_of(
    name: str, evaluation: Evaluation, latencies: Latencies, suffix: str = ""
) -> dict[str, Timing] | None:
    """Return a model's timings by batch size, None for a model that is not timed.

    With the suffix IN_TORCH those in torch, beside another runtime.

    For a model that defers it is the time of one image, at the deferral rate of the validation
    images: models are selected by times, and never by test images.
    """
    if name == "first":
        return latencies.models["model"]
    if evaluation.deferral is None or name == "oracle":
        return latencies.models.get(f"{name}{suffix}")
    never, always = (latencies.models[f"{part}{suffix}"]["batch_1"] for part in ("model", "asked"))
    rate = evaluation.deferral.chosen.val_deferral_rate
    return {"batch_1": deferred_timing(never, always, rate)}


def deferred_timing(never: Timing, always: Timing, rate: float) -> Timing:
    """Return the time of an image at a deferral rate, from those of no and of every deferral.

    The median is interpolated between the two; the 95th percentile is that of deferred images if
    they are more than 5 %. The spread is the larger one.
    """
    known = never.spread is not None and always.spread is not None
    return Timing(
        median=never.median + rate * (always.median - never.median),
        p95=always.p95 if rate > 0.05 else never.p95,
        n=min(never.n, always.n),
        spread=max(never.spread or 0.0, always.spread or 0.0) if known else None,
    )


def measured(
    evaluations: dict[str, Evaluation], latencies: Latencies, k: int, of_class: tuple[int, ...]
) -> dict[str, Any]:
    """Return the fields of a report that a run's stages measure.

    `of_class` is the cluster of each class, empty without clusters.
    """
    model = evaluations["model"]
    routing = model.routing
    rows = {
        name: measures(evaluation, timings_of(name, evaluation, latencies))
        for name, evaluation in evaluations.items()
    }
    classes = tuple(model.per_class)
    return {
        **rows.pop("model").model_dump(),
        "latency_torch": timings_of("model", model, latencies, IN_TORCH)
        if f"model{IN_TORCH}" in latencies.models
        else None,
        "routing_accuracy": routing and routing.accuracy,
        "per_cluster_accuracy": routing.cluster_accuracy if routing else (),
        "per_cluster_routing_accuracy": routing.per_cluster if routing else (),
        "k": k,
        "clusters": tuple(
            tuple(name for name, j in zip(classes, of_class, strict=True) if j == e)
            for e in range(k if of_class else 0)
        ),
        "sent": routing.sent if routing else {},
        "deferral": model.deferral,
        "n_test": model.n,
        "n_val": model.n_val,
        "baselines": Baselines(**rows),
        "machine": latencies.machine,
    }
