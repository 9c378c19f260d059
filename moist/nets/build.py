"""Build modules from descriptions: single networks, and whole models of them.

C classes, E experts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import nn

from moist import config
from moist.config.systems import SYSTEMS
from moist.data.random import seeded
from moist.nets.cascade import ALWAYS, CascadeNet
from moist.nets.cnn import STUDENTS, TEACHERS
from moist.nets.ensemble import EnsembleNet, views_of
from moist.nets.entry import TRUNK, NetworkEntry, RouterEntry, Shape
from moist.nets.latent_head import give_head
from moist.nets.mixture import MoIST, duplicate
from moist.nets.routers import ROUTERS
from moist.store.artifacts import (
    Cascade,
    Clusters,
    Ensemble,
    Mixture,
    Network,
    Router,
    Spec,
    Student,
    Teacher,
)

N = TypeVar("N", bound=Network)
Model = Network | Mixture | Ensemble | Cascade
LatentForm = tuple[str, int]
"""Of a `LatentHead`: the form of its experts, and the number of the teacher's levels."""

REGISTRIES: dict[type[Network], Mapping[str, NetworkEntry | RouterEntry]] = {
    Teacher: TEACHERS,
    Student: STUDENTS,
    Router: ROUTERS,
}


class Architecture(config.Section):
    """Everything in a config that decides a model's cost, and so not its training.

    What a system does not use keeps its default, so that equal models are equal here.
    """

    system: str
    student: config.StudentConfig
    hidden_width: int
    latent: LatentForm | None
    teacher: str
    router: str = "oracle"
    options: tuple[tuple[str, Any], ...] = ()
    masked: bool = False
    gated: bool = False
    views: str = "same"
    top: int = 1
    fallback: str = "none"

    @property
    def cascades(self) -> bool:
        """Return whether it defers images that it is uncertain of."""
        return self.top == 2 or self.fallback != "none"


def blank(arch: Architecture, image_shape: Shape, classes: int, k: int) -> Model:
    """Build the model before any training: its cost is known from it.

    Its clusters are not known yet; the classes are assigned to the students in turn.
    """
    with seeded(0, "untrained"):
        spec = student_spec(
            arch.student, arch.hidden_width, image_shape, classes, latent=arch.latent
        )
        first = BLANKS[arch.system](arch, fresh(Student, spec), k)
        if not arch.cascades:
            return first
        return Cascade(first, blank_fallback(arch, image_shape, classes, k), 0.0)


def blank_mixture(arch: Architecture, student: Student, k: int) -> Mixture:
    """Build k copies of an untrained student behind an untrained router."""
    spec, shared = student.spec, ROUTERS[arch.router].reads_trunk
    reads = spec if shared else None
    router = router_spec(arch.router, dict(arch.options), spec.image_shape, k, reads=reads)
    return Mixture(
        fresh(Router, router),
        duplicate(student, k),
        in_turn(spec.outputs, k),
        masked=arch.masked,
        gated=arch.gated,
        history=(),
        shared=shared,
    )


def in_turn(classes: int, k: int) -> Clusters:
    """Assign the classes to k clusters in turn, before clusters are known."""
    return Clusters(tuple(c % k for c in range(classes)), {})


BLANKS: dict[str, Callable[[Architecture, Student, int], Mixture | Ensemble | Student]] = {
    "moist": blank_mixture,
    "ensemble": lambda arch, student, k: Ensemble(
        duplicate(student, k), views_of(arch.views, k), ()
    ),
    "student": lambda arch, student, k: student,
    "specialists": lambda arch, student, k: student,
}
"""The untrained model of each `Architecture.system`."""


def blank_fallback(
    arch: Architecture, image_shape: Shape, classes: int, k: int
) -> Network | Mixture | None:
    """Build the untrained fallback; None for no cascade, or one of the mixture's two experts."""
    if arch.fallback == "none":
        return None
    name = arch.teacher if arch.fallback == "teacher" else arch.fallback
    if SYSTEMS[arch.system].routes_deferred:
        network = fresh(Student, Spec(name, image_shape, classes, {}))
        return specialists_from(network, in_turn(classes, k))
    return fresh(Teacher, Spec(name, image_shape, classes, {}))


def specialists_from(network: Student, clusters: Clusters) -> Mixture:
    """Start a specialist of each cluster from one network; a first model routes to them."""
    students = duplicate(network, clusters.k)
    return Mixture(None, students, clusters, masked=False, gated=False, history=())


def timed_models(arch: Architecture, image_shape: Shape, classes: int, k: int) -> dict[str, Model]:
    """Build the untrained models to time: the model without deferral, the same when it defers
    every image, and the student and the teacher beside them."""
    model = blank(arch, image_shape, classes, k)
    with seeded(0, "untrained", "teacher"):
        student = student_spec(
            arch.student, arch.hidden_width, image_shape, classes, latent=arch.latent
        )
        found: dict[str, Model] = {
            "model": model.first if isinstance(model, Cascade) else model,
            "student": fresh(Student, student),
            "teacher": fresh(Teacher, Spec(arch.teacher, image_shape, classes, {})),
        }
    if isinstance(model, Cascade):
        found["asked"] = replace(model, threshold=ALWAYS)
    return found


def student_spec(
    student: config.StudentConfig,
    hidden_width: int,
    image_shape: Shape,
    classes: int,
    *,
    latent: LatentForm | None = None,
) -> Spec:
    """Describe the network of a student, with a `LatentHead` if its form is given."""
    options = STUDENTS[student.arch].options(student, hidden_width)
    if latent is not None:
        options["latent"] = latent
    return Spec(student.arch, image_shape, classes, options)


def router_spec(
    router: str, options: dict[str, Any], image_shape: Shape, k: int, *, reads: Spec | None = None
) -> Spec:
    """Describe the network of a router, which may read a student's trunk instead of images."""
    if reads is not None:
        with torch.device("meta"):
            trunk = network(Student, reads).get_submodule(TRUNK).eval()
            _, channels, height, width = trunk(torch.zeros(1, *image_shape)).shape
        image_shape = (channels, height, width)
    return Spec(router, image_shape, k, options)


def fresh(kind: type[N], spec: Spec) -> N:
    """Build a network before its training, with weights drawn from torch's current stream."""
    return kind(spec, network(kind, spec).state_dict(), ())


def network(kind: type[Network], spec: Spec) -> nn.Module:
    """Build the module of a description, with weights drawn from torch's current stream."""
    options = dict(spec.options)
    latent = options.pop("latent", None)
    entry = REGISTRIES[kind][spec.name]
    net: nn.Module = entry.build(spec.image_shape, spec.outputs, **options)
    if latent is not None:
        assert isinstance(entry, NetworkEntry)
        give_head(net, entry.last, *latent)
    return net


def module(model: Model, device: torch.device | str = "cpu") -> nn.Module:
    """Build the module that an artifact describes, with its weights, on a device."""
    placed: nn.Module = _built(model).to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return placed


def _built(model: Model) -> nn.Module:
    if isinstance(model, Mixture):
        return MoIST(
            None if model.router is None else _built(model.router),
            [_built(student) for student in model.students], model.clusters,
            masked=model.masked, gated=model.gated, shared=model.shared,
        )  # fmt: skip
    if isinstance(model, Ensemble):
        return EnsembleNet([_built(student) for student in model.students], model.views)
    if isinstance(model, Cascade):
        fallback = None if model.fallback is None else _built(model.fallback)
        return CascadeNet(_built(model.first), fallback, model.threshold)
    net = network(type(model), model.spec)
    net.load_state_dict(dict(model.state))
    return net
