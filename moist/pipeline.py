"""The method, top to bottom: `run(config, store)` trains one model and measures it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from moist.config import Config
from moist.data.sources import check, locate
from moist.nets.build import Model, architecture, known_students, sizes
from moist.nets.cascade import views_of
from moist.results.report import Evaluation, Latencies, Report, assemble
from moist.stages.cluster import cluster_classes
from moist.stages.distill import distill_ensemble, distill_fallback, distill_student
from moist.stages.doubt import choose_threshold
from moist.stages.evaluate import evaluate
from moist.stages.gather import gather_students
from moist.stages.integrate import integrate
from moist.stages.joint import train_jointly
from moist.stages.latency import measure_latency
from moist.stages.levels import teacher_levels
from moist.stages.logits import mixture_logits, teacher_logits
from moist.stages.prepare import prepare
from moist.stages.route import pretrain_router
from moist.stages.teacher import WeightsFile, load_teacher, train_teacher
from moist.store.artifacts import Clusters, Dataset, Logits, Mixture, Network, Student
from moist.store.calls import Backend, Call, Ref
from moist.store.keys import encoded, key_of
from moist.store.store import Store


@dataclass(frozen=True)
class Outputs:
    """What the stages of one config hand on, each loaded only when its value is asked for.

    `models` by their names in the report; `model` is the one that the run is for.
    """

    data: Ref[Dataset]
    clusters: Ref[Clusters] | None
    models: dict[str, Ref[Model]]
    evaluations: dict[str, Ref[Evaluation]]
    latencies: Ref[Latencies]


@dataclass(frozen=True)
class Taught:
    """What every training stage starts from."""

    data: Ref[Dataset]
    teacher: Ref[Network]
    logits: Ref[Logits]
    common: dict[str, Any]
    """Augmentation, precision and seed."""

    @property
    def soft(self) -> dict[str, Any]:
        """The inputs of stages that learn from the teacher's logits."""
        return {"data": self.data, "logits": self.logits, **self.common}


def stages(config: Config, store: Backend) -> Outputs:
    """Call every stage of the method. Over a `Plan` nothing is computed, only keys."""
    c = config
    data, weights = prepared(c, store)
    known = known_students(c)
    latencies = None if known is None else timed(c, store, data, known)
    taught = teach(c, store, data, weights)
    levels = None
    if c.distill.loss == "moe_kd":
        views = c.distill.views if c.distill.experts == "heads" else 1
        levels = store.call(
            teacher_levels, data=data, teacher=taught.teacher, views=views, **taught.common
        )
    student = store.call(
        distill_student, levels=levels, distill=c.distill, temperature=c.temperature,
        **sizes(c), **taught.soft,
    )  # fmt: skip
    models: dict[str, Ref[Any]] = {
        "model": student, "student": student, "teacher": taught.teacher
    }  # fmt: skip
    clusters = None
    if c.system in {"moist", "ones"}:
        clusters, models["model"] = specialized(c, store, taught, student)
    if c.system == "ones":
        models["mixture"] = models["model"]
        models["gathered"], models["model"] = merged(c, store, taught, student, models["mixture"])
    if c.system == "ensemble":
        models["model"] = store.call(
            distill_ensemble, k=known, views=views_of(c.ensemble.views, known or 1),
            distill=c.distill, temperature=c.temperature, **sizes(c), **taught.soft,
        )  # fmt: skip
    if architecture(c).doubts:
        models["first"] = models["model"]
        models["model"] = doubting(c, store, taught, models["first"])
    if latencies is None:
        assert clusters is not None
        latencies = timed(c, store, data, clusters)
    return Outputs(data, clusters, models, measured(c, store, data, models), latencies)


def prepared(config: Config, store: Backend) -> tuple[Ref[Dataset], WeightsFile | None]:
    """The data, and the teacher's weights if they are given; what can't work is refused here."""
    c = config
    source = locate(c.data, store.home, fetch=store.writes)
    check(c, source)
    weights = WeightsFile(c.teacher.weights.expanduser()) if c.teacher.weights else None
    return store.call(prepare, source=source, val_fraction=c.data.val_fraction), weights


def timed(
    config: Config, store: Backend, data: Ref[Dataset], k: int | Ref[Clusters]
) -> Ref[Latencies]:
    """How long the networks take: known before any is trained, if `known_students` are."""
    c = config
    return store.call(
        measure_latency, data=data, arch=architecture(c), k=k, latency=c.latency,
        precision=c.precision, machine=store.env.machine(),
    )  # fmt: skip


def teach(
    config: Config, store: Backend, data: Ref[Dataset], weights: WeightsFile | None
) -> Taught:
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
    return Taught(data, teacher, logits, common)


def specialized(
    config: Config, store: Backend, taught: Taught, student: Ref[Student]
) -> tuple[Ref[Clusters], Ref[Mixture]]:
    """MoIST: the student k times, each on the classes of one cluster, behind a router."""
    c, em = config, config.joint.objective == "em"
    clusters = store.call(
        cluster_classes, data=taught.data, logits=taught.logits, k=c.k, cluster=c.cluster,
        seed=c.seed,
    )  # fmt: skip
    router = store.call(
        pretrain_router, data=taught.data, clusters=clusters, router=c.router, routing=c.routing,
        student=student if c.router == "shared" else None, **taught.common,
    )  # fmt: skip
    mixture = store.call(
        train_jointly, data=taught.data, clusters=clusters, router=router, student=student,
        joint=c.joint, logits=taught.logits if em else None,
        temperature=c.temperature if em else None, **taught.common,
    )  # fmt: skip
    return clusters, mixture


def merged(
    config: Config, store: Backend, taught: Taught, student: Ref[Student], mixture: Ref[Mixture]
) -> tuple[Ref[Student], Ref[Student]]:
    """OneS: the mixture's students gathered into one, before and after it is refined."""
    c = config
    gathered = store.call(
        gather_students, data=taught.data, mixture=mixture, ancestor=student,
        merge=c.merge.gathering, **taught.common,
    )  # fmt: skip
    refined = store.call(
        integrate, student=gathered, taught=refiners(c, store, taught, mixture),
        data=taught.data, views=c.distill.views, merge=c.merge, temperature=c.temperature,
        **taught.common,
    )  # fmt: skip
    return gathered, refined


def refiners(
    config: Config, store: Backend, taught: Taught, mixture: Ref[Mixture]
) -> tuple[Ref[Logits], ...]:
    """Whose logits refine the gathered student, by `merge.teacher`."""
    c, who = config, config.merge.teacher
    found = []
    if who in {"mixture", "hard", "both"}:
        own = store.call(
            mixture_logits, data=taught.data, mixture=mixture, views=c.distill.views,
            temperature=None if who == "hard" else c.temperature, **taught.common,
        )  # fmt: skip
        found.append(own)
    if who in {"teacher", "both"}:
        found.append(taught.logits)
    return tuple(found)


def doubting(config: Config, store: Backend, taught: Taught, first: Ref[Any]) -> Ref[Any]:
    """The model with a second opinion where it is in doubt."""
    c, fallback = config, None
    if c.cascade.fallback == "teacher":
        fallback = taught.teacher
    elif c.cascade.fallback != "none":
        fallback = store.call(
            distill_fallback, arch=c.cascade.fallback, distill=c.distill,
            temperature=c.temperature, **taught.soft,
        )  # fmt: skip
    return store.call(
        choose_threshold, data=taught.data, first=first, fallback=fallback,
        share=c.mixture.second if fallback is None else c.cascade.defer, precision=c.precision,
    )  # fmt: skip


def measured(
    config: Config, store: Backend, data: Ref[Dataset], models: dict[str, Ref[Any]]
) -> dict[str, Ref[Evaluation]]:
    """Every model evaluated; and a mixture's students behind a router that is told the class."""
    c = config
    told = c.router == "oracle" and c.system == "moist"
    asked = {"model": (models["model"], told)}
    if c.system == "moist":
        asked["oracle"] = (models.get("first", models["model"]), True)
    asked |= {name: (model, False) for name, model in models.items() if name != "model"}
    return {
        name: store.call(evaluate, data=data, model=model, oracle=oracle, precision=c.precision)
        for name, (model, oracle) in asked.items()
    }


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
    clusters = out.clusters.value if out.clusters else None
    return assemble(
        {name: evaluation.value for name, evaluation in out.evaluations.items()},
        out.latencies.value,
        upper_bound=config.router == "oracle" and config.system == "moist",
        k=clusters.k if clusters else known_students(config) or 1,
        of_class=clusters.of_class if clusters else (),
        silhouette=clusters.silhouette if clusters else {},
        key=run_key(config, out),
        model_key=out.models["model"].key,
        stage_seconds=seconds,
    )
