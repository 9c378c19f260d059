"""Describe each system to the code that neither trains nor builds it; imports no torch.

`moist/systems/NAME.py` trains and builds system NAME. Everything else that must know something of
a system (tracking, pruning, printing, checks of a config and of its data) reads it here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

from moist.config.fields import Residual

if TYPE_CHECKING:
    from moist.config.choices import Choices

SHARING = ("cnn", "residual", *get_args(Residual))
"""Students with a trunk that `router=shared` can share."""
Flat = Mapping[str, Any]
"""A config under its dotted names, as run records have it."""


@dataclass(frozen=True)
class System:
    """A way to build the model of a run, and its properties that need no model."""

    trains: Mapping[str, str]
    """The stages that train, in the order of their calls, and the section with their epochs."""
    title: Callable[[Flat, int], str]
    """Name the model for people, from its config and its number of students."""
    conflicts: Callable[[Choices], Iterator[str]]
    """Yield an error message for each choice that this system cannot combine with another."""
    reads: tuple[str, ...] = ()
    """The keys and sections that it reads and not every other system does."""
    clusters: bool = False
    """It groups the classes into `k` clusters, a student each."""
    routes: bool = False
    """Its model sends each image to one of its students."""
    routes_deferred: bool = False
    """Its model sends each image that it defers to one of its students."""
    expert: str = "student.arch"
    """The key of the network that its students are, if there are many."""
    many_students: bool = False
    """Its model has `k` students; else it is one."""

    @property
    def model_stage(self) -> str:
        """Return the stage whose validation accuracy in each epoch is that of the model so far."""
        return list(self.trains)[-1]

    @property
    def is_student(self) -> bool:
        """Return whether the model is the distilled student itself."""
        return self.model_stage == "distill_student"


def _title_of_moist(c: Flat, k: int) -> str:
    bound = " (routed by the true class)" if c["router"] == "oracle" else ""
    return f"MoIST k={k}, {c['router']} router{bound}"


def _routing(c: Choices) -> Iterator[str]:
    """Yield what a router of a mixture cannot do."""
    if c.router == "oracle":
        if c.joint.objective in {"em", "switch", "noisy_topk"}:
            yield (
                f"`router=oracle` has no weights for `joint.objective={c.joint.objective}`;"
                " use hierarchical, routed or students_only"
            )
        if c.joint.z_loss:
            yield "`router=oracle` has no weights for `joint.z_loss`; set `joint.z_loss=0`"
        if c.mixture.top == 2:
            yield "`router=oracle` is never uncertain; `mixture.top=2` needs another router"
    if c.router == "shared":
        if c.student.arch not in SHARING:
            yield (
                f"`router=shared` needs students with a trunk to share: {', '.join(SHARING)};"
                f" `student.arch={c.student.arch}` needs another router"
            )
        if c.joint.objective == "students_only":
            yield (
                "`router=shared` reads layers that `joint.objective=students_only` keeps changing"
                " while the router is frozen; use hierarchical, routed, em, switch or noisy_topk"
            )


def _moist(c: Choices) -> Iterator[str]:
    yield from _routing(c)
    if c.router == "oracle" and c.cascade.fallback != "none":
        yield "`router=oracle` reads each image's class; `cascade.fallback` needs another router"


def _ones(c: Choices) -> Iterator[str]:
    yield from _routing(c)
    if c.router == "oracle":
        yield "`router=oracle` reads each image's class; `system=ones` needs another router"
    if c.router == "shared":
        yield "`system=ones` merges whole students; with `router=shared` they share a trunk"
    latent = c.distill.loss == "moe_kd" and c.distill.gate == "student"
    if (c.student.arch != "cnn" or latent) and c.merge.method == "topk":
        yield (
            "`merge.method=topk` pairs the units of the cnn student's layers, which"
            f" `student.arch={c.student.arch}` with `distill.loss={c.distill.loss}` does not have;"
            " use average, sum or svd"
        )
    if latent and c.merge.base == "absolute" and c.merge.method in {"sum", "svd"}:
        yield (
            f"`merge.method={c.merge.method}` of whole weights would change the fixed table of a"
            " student of `distill.loss=moe_kd`; set `merge.base=delta`"
        )
    if latent and c.merge.head == "owner":
        yield (
            "`merge.head=owner` takes a class's row of the last linear layer, which"
            " `distill.loss=moe_kd` replaces; set `merge.head=gather`"
        )
    if latent and c.merge.method == "random":
        yield (
            "`merge.method=random` draws weights, and the table in a student of"
            " `distill.loss=moe_kd` is not a weight; use ancestor as the control"
        )
    if c.merge.head == "owner" and c.merge.method in {"random", "ancestor", "best_expert"}:
        yield (
            f"`merge.head=owner` is for gathered weights, and `merge.method={c.merge.method}`"
            " gathers none; set `merge.head=gather`"
        )


def _ensemble(c: Choices) -> Iterator[str]:
    if c.k == "auto":
        yield "`k=auto` counts clusters, and `system=ensemble` has none; set k to a number"
    if c.k == 1 and c.ensemble.views == "filtered":
        yield "`ensemble.views=filtered` needs several students, and `k=1` gives one; raise k"
    if c.distill.loss == "moe_kd":
        yield "`system=ensemble` distills with kd, dkd or dist, not with `distill.loss=moe_kd`"


def _student(c: Choices) -> Iterator[str]:
    if c.cascade.fallback == c.student.arch:
        yield (
            f"`cascade.fallback={c.cascade.fallback}` would be the same network as"
            f" `student.arch={c.student.arch}`; choose another"
        )


def _specialists(c: Choices) -> Iterator[str]:
    if c.cascade.fallback in {"none", "teacher"}:
        yield (
            f"`cascade.fallback={c.cascade.fallback}` names no network of which"
            " `system=specialists` could distill and train copies; set `cascade.fallback=resnet8`"
            " or another"
        )


_STUDENT = {"train_teacher": "teacher", "distill_student": "distill"}
_MIXTURE = {**_STUDENT, "pretrain_router": "routing", "train_jointly": "joint"}

SYSTEMS: dict[str, System] = {
    "moist": System(
        trains=_MIXTURE,
        title=_title_of_moist,
        conflicts=_moist,
        reads=("k", "router", "cluster", "routing", "joint", "mixture"),
        clusters=True,
        routes=True,
        many_students=True,
    ),
    "ones": System(
        trains={**_MIXTURE, "integrate": "merge"},
        title=lambda c, k: f"OneS of k={k}, {c['merge.method']}",
        conflicts=_ones,
        reads=("k", "router", "cluster", "routing", "joint", "merge"),
        clusters=True,
    ),
    "ensemble": System(
        trains={**_STUDENT, "distill_ensemble": "distill"},
        title=lambda c, k: f"ensemble of {k}, {c['ensemble.views']} views",
        conflicts=_ensemble,
        reads=("k", "ensemble"),
        many_students=True,
    ),
    "student": System(
        trains=_STUDENT,
        title=lambda c, k: f"single student {c['student.arch']}",
        conflicts=_student,
    ),
    "specialists": System(
        trains={**_STUDENT, "distill_fallback": "distill", "train_specialists": "specialists"},
        title=lambda c, k: f"student {c['student.arch']} and k={k} specialists",
        conflicts=_specialists,
        reads=("k", "cluster", "specialists"),
        clusters=True,
        routes_deferred=True,
        many_students=True,
        expert="cascade.fallback",
    ),
}

CURVES = tuple(dict.fromkeys(("distill_student", *(s.model_stage for s in SYSTEMS.values()))))
"""Stages whose validation accuracy, epoch by epoch, predicts that of the model."""


def system_of(config: Flat) -> System:
    """Find the system of a recorded config; the oldest records name none and are of `moist`."""
    return SYSTEMS[config.get("system", "moist")]


def known_students(c: Choices) -> int | None:
    """Count the students of a config's model; None if clustering decides (`k=auto`)."""
    if not SYSTEMS[c.system].many_students:
        return 1
    return None if c.k == "auto" else c.k


def epochs_of(c: Choices) -> dict[str, int]:
    """List the epochs of each stage that trains, in the order of their calls."""
    trains = SYSTEMS[c.system].trains
    if c.cascade.fallback not in {"none", "teacher"}:
        trains = {**trains, "distill_fallback": "distill"}
    return {stage: getattr(c, section).epochs for stage, section in trains.items()}
