"""Joint training: k copies of the student become experts behind the router."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.nn import functional as F

from moist.config import AugmentConfig, JointConfig
from moist.data.augment import Batch
from moist.env import Env, autocast
from moist.nets.build import module
from moist.nets.mixture import MoIST, duplicate
from moist.nets.routers import IMPOSSIBLE, ROUTERS
from moist.stages import stage
from moist.store.artifacts import Clusters, Dataset, Logits, Mixture, Router, Student
from moist.training.distillation import kd
from moist.training.gates import (
    balance,
    divergence,
    free_energy,
    importance,
    load,
    mixture_nll,
    noisy,
    squared_variation,
    top_gates,
    z_loss,
)
from moist.training.job import Job

QUIETEST = 0.01
"""The least deviation of the noise of `noisy_topk`: a load without noise has no slope."""


@dataclass(frozen=True)
class Soft:
    """The teacher's logits on the views that training shows, and their temperature."""

    train_VNC: torch.Tensor
    temperature: float

    def of(self, batch: Batch) -> torch.Tensor:
        """Return the teacher's logits (B, C) on a batch, in float32."""
        return self.train_VNC[batch.view, batch.index_B].float()


Objective = Callable[[MoIST, Batch, JointConfig, Soft | None], tuple[torch.Tensor, torch.Tensor]]
"""Return a scalar loss, and the router's logits (B, E) that it was computed from."""


@dataclass(frozen=True)
class ObjectiveEntry:
    """A joint objective, and all that other code must know of it."""

    loss: Objective
    prepare: Callable[[MoIST], None] = lambda net: None
    """Change the module before it trains."""
    gated: bool = False
    """A student's logits are scaled by the router's probability for it, once trained too."""
    teacher_prior: bool = False
    """It learns from the teacher's probabilities of the clusters."""

    def taught(self, joint: JointConfig) -> bool:
        """Return whether training reads the teacher's logits."""
        return self.teacher_prior or joint.alpha > 0


@stage(version=2)
def train_jointly(
    env: Env,
    *,
    data: Dataset,
    clusters: Clusters,
    router: Router,
    student: Student,
    joint: JointConfig,
    logits: Logits | None,
    temperature: float | None,
    augment: AugmentConfig,
    precision: str,
    seed: int,
) -> Mixture:
    """Specialize k copies of the student together with the router under `joint.objective`.

    Students with a `joint.alpha` learn from `logits` at `temperature`, too, and `em` computes the
    teacher's cluster prior from them; else both are None.
    """
    objective = OBJECTIVES[joint.objective]
    students, shared = duplicate(student, clusters.k), ROUTERS[router.spec.name].reads_trunk
    start = Mixture(
        router, students, clusters, masked=joint.mask_students, gated=objective.gated, history=(),
        shared=shared,
    )  # fmt: skip
    net = module(start, env.device)
    assert isinstance(net, MoIST)
    objective.prepare(net)
    soft = None
    if logits is not None and temperature is not None:
        soft = Soft(logits.train_VNC.to(env.device), temperature)
    views = None if soft is None else len(soft.train_VNC)

    def loss(batch: Batch) -> torch.Tensor:
        value, gate_BE = objective.loss(net, batch, joint, soft)
        return value + joint.z_loss * z_loss(gate_BE) if joint.z_loss else value

    job = Job(env, data, augment=augment, precision=precision, seed=seed)
    history = job.fit(net, loss, joint, views=views)
    return replace(
        start,
        router=replace(router, state=net.router.state_dict()),
        students=tuple(Student(student.spec, state, ()) for state in net.student_states()),
        history=history,
    )


def learn_noise(net: MoIST) -> None:
    """Give the module a trainable deviation of the router's noise for each expert."""
    net.deviation_E = nn.Parameter(torch.zeros(len(net.students), device=net.cluster_C.device))


def answer_loss(
    logits_BC: torch.Tensor, batch: Batch, joint: JointConfig, soft: Soft | None
) -> torch.Tensor:
    """Return the loss of each image's student: on the label, and at `joint.alpha` Hinton's.

    A masked student learns the teacher's probabilities among the classes of its cluster.
    """
    hard = F.cross_entropy(logits_BC, batch.labels_B)
    if joint.alpha == 0:
        return hard
    assert soft is not None
    teacher_BC = soft.of(batch).masked_fill(logits_BC <= IMPOSSIBLE, IMPOSSIBLE)
    return (1 - joint.alpha) * hard + joint.alpha * kd(logits_BC, teacher_BC, soft.temperature)


def hierarchical(
    net: MoIST, batch: Batch, joint: JointConfig, soft: Soft | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the exact likelihood of a two-level softmax: the router on the label's cluster,
    and that cluster's student on the label. (Exact with masked students; an upper bound
    without.)"""
    x_BCHW = net.trunk(batch.images_BCHW)
    cluster_B = net.cluster_C[batch.labels_B]
    gate_BE = net.route(x_BCHW, batch.labels_B)
    logits_BC = net.dispatch(x_BCHW, cluster_B)
    return F.cross_entropy(gate_BE, cluster_B) + answer_loss(
        logits_BC, batch, joint, soft
    ), gate_BE


def routed(
    net: MoIST, batch: Batch, joint: JointConfig, soft: Soft | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Train the router on the label's cluster, and the student that it picks on the label: as
    `hierarchical`, but each student sees the images that it will be asked about, misrouted ones
    among them."""
    x_BCHW = net.trunk(batch.images_BCHW)
    gate_BE = net.route(x_BCHW, batch.labels_B)
    logits_BC = net.dispatch(x_BCHW, gate_BE.argmax(1))
    loss = F.cross_entropy(gate_BE, net.cluster_C[batch.labels_B])
    return loss + answer_loss(logits_BC, batch, joint, soft), gate_BE


def students_only(
    net: MoIST, batch: Batch, joint: JointConfig, soft: Soft | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Train as the paper's code does: the student that the router picks, on the label. The
    router gets no gradient from a hard choice; it is frozen, so its batch norm can't drift
    either."""
    with torch.no_grad():
        gate_BE = net.route(batch.images_BCHW, batch.labels_B)
    logits_BC = net.dispatch(batch.images_BCHW, gate_BE.argmax(1))
    return answer_loss(logits_BC, batch, joint, soft), gate_BE


def em(
    net: MoIST, batch: Batch, joint: JointConfig, soft: Soft | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return EM's bound of the mixture, with the router tied to the teacher's cluster prior."""
    assert soft is not None
    x_BCHW, prior_BE = net.trunk(batch.images_BCHW), teacher_prior(net, batch, soft)
    gate_BE = net.route(x_BCHW)
    bound = free_energy(
        gate_BE, net.experts(x_BCHW), batch.labels_B, prior_BE, teacher_prior=joint.teacher_prior
    )
    return bound + joint.prior_weight * divergence(prior_BE, gate_BE), gate_BE


def switch(
    net: MoIST, batch: Batch, joint: JointConfig, soft: Soft | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the loss of Switch routing: the chosen student's, scaled by its gate, and balance."""
    logits_BC, gate_BE = net.routed(batch.images_BCHW)
    loss = answer_loss(logits_BC, batch, joint, soft)
    return loss + joint.balance * balance(gate_BE, shares(net, joint)), gate_BE


def noisy_topk(
    net: MoIST, batch: Batch, joint: JointConfig, soft: Soft | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the loss of noisy top-k gates over students' probabilities (Shazeer 2017).

    Ours: the noise's deviation is learnt for each expert, theirs from each image; probabilities
    are mixed, not logits. A trained model runs one student, without noise.
    """
    x_BCHW = net.trunk(batch.images_BCHW)
    gate_BE = net.route(x_BCHW)
    deviation_BE = (F.softplus(net.deviation_E) + QUIETEST).expand_as(gate_BE)
    noisy_BE = noisy(gate_BE, deviation_BE, torch.randn_like(gate_BE))
    prob_BE, share_E = top_gates(noisy_BE, joint.top), shares(net, joint)
    load_E = load(gate_BE, deviation_BE, noisy_BE, joint.top).sum(0)
    uneven = squared_variation(importance(prob_BE), share_E) + squared_variation(load_E, share_E)
    loss = mixture_nll(prob_BE, net.experts(x_BCHW), batch.labels_B)
    return loss + joint.balance * uneven, gate_BE


def shares(net: MoIST, joint: JointConfig) -> torch.Tensor:
    """Return each student's intended share of the images (E,): equal, or that of its classes."""
    share_E = net.member_EC.float().mean(1)
    return share_E if joint.balance_form == "weighted" else share_E.mean().expand_as(share_E)


def teacher_prior(net: MoIST, batch: Batch, soft: Soft) -> torch.Tensor:
    """Return q_j(x), the teacher's softened probability of the classes of cluster j: (B, E)."""
    teacher_BC = soft.of(batch)
    with autocast(teacher_BC.device, "float32"):  # a bf16 product no longer sums to 1
        return F.softmax(teacher_BC / soft.temperature, 1) @ net.member_EC.T.float()


OBJECTIVES: dict[str, ObjectiveEntry] = {
    "hierarchical": ObjectiveEntry(hierarchical),
    "routed": ObjectiveEntry(routed),
    "students_only": ObjectiveEntry(students_only, prepare=MoIST.freeze_router),
    "em": ObjectiveEntry(em, teacher_prior=True),
    "switch": ObjectiveEntry(switch, gated=True),
    "noisy_topk": ObjectiveEntry(noisy_topk, prepare=learn_noise),
}
