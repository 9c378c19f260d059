"""The method, top to bottom: `run(config, store)` trains one MoIST model and measures it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from moist.artifacts import Clusters, Dataset, Logits, Mixture, Network, Student
from moist.config import Config
from moist.data import check, locate
from moist.recipe import encoded, key_of
from moist.report import Evaluation, Latencies, Report, assemble
from moist.routers import router_options
from moist.stages.cluster import cluster_classes
from moist.stages.distill import distill_student
from moist.stages.evaluate import evaluate
from moist.stages.joint import train_jointly
from moist.stages.latency import measure_latency
from moist.stages.logits import teacher_logits
from moist.stages.prepare import prepare
from moist.stages.route import pretrain_router
from moist.stages.teacher import WeightsFile, load_teacher, train_teacher
from moist.store import Call, Ref, Store


@dataclass(frozen=True)
class Outputs:
    """What the stages of one config hand on, each loaded only when its value is asked for."""

    data: Ref[Dataset]
    student: Ref[Student]
    clusters: Ref[Clusters]
    mixture: Ref[Mixture]
    evaluations: dict[str, Ref[Evaluation]]
    latencies: Ref[Latencies]


def prepared(config: Config, store: Store) -> tuple[Ref[Dataset], WeightsFile | None]:
    """The data, and the teacher's weights if they are given; what can't work is refused here."""
    c = config
    source = locate(c.data, store.home, fetch=store.writes)
    check(c, source)
    weights = WeightsFile(c.teacher.weights.expanduser()) if c.teacher.weights else None
    return store.call(prepare, source=source, val_fraction=c.data.val_fraction), weights


def timed(
    config: Config, store: Store, data: Ref[Dataset], k: int | Ref[Clusters]
) -> Ref[Latencies]:
    """How long the networks take: known before any is trained, unless `k=auto`."""
    c = config
    return store.call(
        measure_latency, data=data, teacher=c.teacher.arch, student=c.student,
        hidden_width=c.hidden_width, router=c.router, options=router_options(c.router, c.routing),
        k=k, masked=c.joint.mask_students, gated=c.joint.objective == "switch",
        latency=c.latency, precision=c.precision, machine=store.env.machine(),
    )  # fmt: skip


def teach(
    config: Config, store: Store, data: Ref[Dataset], weights: WeightsFile | None
) -> tuple[Ref[Network], Ref[Logits], dict[str, Any]]:
    """The teacher, its logits, and the inputs that every training stage takes."""
    c = config
    common = {"augment": c.augment, "precision": c.precision, "seed": c.seed}
    if weights:
        teacher = store.call(load_teacher, data=data, arch=c.teacher.arch, weights=weights)
    else:
        teacher = store.call(train_teacher, data=data, teacher=c.teacher, **common)
    logits = store.call(
        teacher_logits, data=data, teacher=teacher, views=c.distill.views, **common
    )
    return teacher, logits, common


def stages(config: Config, store: Store) -> Outputs:
    """Call every stage of the method. Over a `Plan` nothing is computed, only keys."""
    c = config
    data, weights = prepared(c, store)
    latencies = None if c.k == "auto" else timed(c, store, data, c.k)
    teacher, logits, common = teach(c, store, data, weights)
    em = c.joint.objective == "em"
    student = store.call(
        distill_student, data=data, logits=logits, student=c.student, distill=c.distill,
        hidden_width=c.hidden_width, temperature=c.temperature, **common,
    )  # fmt: skip
    clusters = store.call(
        cluster_classes, data=data, logits=logits, k=c.k, cluster=c.cluster, seed=c.seed
    )
    latencies = latencies or timed(c, store, data, clusters)
    router = store.call(
        pretrain_router, data=data, clusters=clusters, router=c.router, routing=c.routing, **common
    )
    mixture = store.call(
        train_jointly, data=data, clusters=clusters, router=router, student=student, joint=c.joint,
        logits=logits if em else None, temperature=c.temperature if em else None, **common,
    )  # fmt: skip

    def measured(model: Ref[Network] | Ref[Mixture], oracle: bool = False) -> Ref[Evaluation]:
        return store.call(evaluate, data=data, model=model, oracle=oracle, precision=c.precision)

    evaluations = {
        "mixture": measured(mixture, oracle=c.router == "oracle"),
        "oracle": measured(mixture, oracle=True),
        "student": measured(student),
        "teacher": measured(teacher),
    }
    return Outputs(data, student, clusters, mixture, evaluations, latencies)


def run_key(config: Config, out: Outputs) -> str:
    """What a run is called; over a `Plan` it is known before anything is computed."""
    decides = {"models": out.evaluations, "latency": config.latency}
    return key_of("run", 1, encoded(decides, "run"))


def run(config: Config, store: Store) -> Report:
    """Train and measure the model that `config` describes; stages already stored are reused."""
    before = len(store.calls)
    out = stages(config, store)
    return report_of(config, out, store.calls[before:])


def report_of(config: Config, out: Outputs, calls: Iterable[Call]) -> Report:
    """What a run found, from its stages' outputs; `calls` say what these took, each once."""
    seconds: dict[str, float] = {}
    for call in {call.key: call for call in calls}.values():
        seconds[call.stage] = seconds.get(call.stage, 0.0) + (call.seconds or 0.0)
    return assemble(
        {name: evaluation.value for name, evaluation in out.evaluations.items()},
        out.latencies.value,
        upper_bound=config.router == "oracle",
        of_class=out.clusters.value.of_class,
        silhouette=out.clusters.value.silhouette,
        key=run_key(config, out),
        stage_seconds=seconds,
    )
