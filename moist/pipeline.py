"""The method, top to bottom: `run(config, store)` trains one model and measures it."""

from moist.config import Config
from moist.config.systems import known_students
from moist.data.sources import Source
from moist.results.report import Report
from moist.stages.distill import distill_student
from moist.stages.levels import teacher_levels
from moist.stages.logits import teacher_logits
from moist.stages.teacher import Start, WeightsFile, load_teacher, train_teacher
from moist.store.artifacts import Logits, Teacher
from moist.store.calls import Backend, Ref
from moist.systems import BUILDERS, architecture, cascade
from moist.systems.bound import Bound
from moist.systems.outputs import Models, Outputs, report_of
from moist.systems.shared import evaluated, prepared, timed
from moist.systems.student import sizes


def run(config: Config, store: Backend, source: Source | None = None) -> Report:
    """Train and measure the model that `config` describes; stored stages are reused.

    `source` is the config's data, if they have been found already.
    """
    before = len(store.calls)
    out = stages(config, store, source)
    return report_of(config, out, store.calls[before:])


def stages(config: Config, store: Backend, source: Source | None = None) -> Outputs:
    """Call every stage of the method. Over a `Plan` nothing is computed, only keys."""
    c, arch, k = config, architecture(config), known_students(config)
    data, weights = prepared(c, store, source)
    call = Bound(store, data=data, augment=c.augment, precision=c.precision, seed=c.seed)
    teacher, logits = teach(call, c, weights)
    levels = None
    if c.distill.loss == "moe_kd":
        views = c.distill.views if c.distill.experts == "heads" else 1
        levels = call(teacher_levels, teacher=teacher, views=views)
    student = call(
        distill_student, logits=logits, levels=levels, distill=c.distill,
        temperature=c.temperature, **sizes(c),
    )  # fmt: skip
    models = BUILDERS[c.system].build(call, c, Models(teacher, logits, student, model=student))
    models = cascade.build(call, c, models) if arch.cascades else models
    evaluations = evaluated(call, c, models)
    students = models.clusters if k is None else k  # `k=auto` is known by now
    return Outputs(data, models, evaluations, timed(call, c, arch, students))


def teach(call: Bound, c: Config, weights: WeightsFile | None) -> tuple[Ref[Teacher], Ref[Logits]]:
    """Train the teacher, or load its weights, and compute its logits on augmented copies."""
    if weights and not isinstance(weights, Start):
        teacher = call(load_teacher, arch=c.teacher.arch, weights=weights)
    else:
        teacher = call(train_teacher, teacher=c.teacher, start=weights)
    views, mirror = c.distill.views, c.distill.mirror
    return teacher, call(teacher_logits, teacher=teacher, views=views, mirror=mirror)
