"""Joint training: k copies of the student become experts behind the router."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional as F

from moist.artifacts import Clusters, Dataset, Logits, Mixture, Router, Student
from moist.augment import Batch
from moist.config import Augment, Joint
from moist.env import Env
from moist.fit import autocast, fit, passes
from moist.losses import balance, divergence, free_energy
from moist.measure import validation
from moist.mixture import MoIST, duplicate, module
from moist.stages import stage

Prior = Callable[[Batch], torch.Tensor]
Objective = Callable[[MoIST, Batch, Joint, Prior], torch.Tensor]


@stage(version=1)
def train_jointly(
    env: Env,
    *,
    data: Dataset,
    clusters: Clusters,
    router: Router,
    student: Student,
    joint: Joint,
    logits: Logits | None,
    temperature: float | None,
    augment: Augment,
    precision: str,
    seed: int,
) -> Mixture:
    """The student k times, specialized together with the router under `joint.objective`.

    `logits` and `temperature` are what `em` draws the teacher's cluster prior from; the other
    objectives take None.
    """
    gated = joint.objective == "switch"
    start = Mixture(
        router, duplicate(student, clusters.k), clusters, joint.mask_students, gated, ()
    )
    net = module(start, env.device)
    assert isinstance(net, MoIST)
    if joint.objective == "students_only":
        net.freeze_router()
    views = None if logits is None else len(logits.train_VNC)
    prior = _no_prior if logits is None else teacher_prior(net, logits, temperature or 1.0)
    objective = OBJECTIVES[joint.objective]
    history = fit(
        env,
        net,
        passes(env, data, augment, joint.batch_size, seed, views=views),
        lambda batch: objective(net, batch, joint, prior),
        images=len(data.train),
        training=joint,
        precision=precision,
        seed=seed,
        validate=validation(env, net, data, precision),
    )
    return Mixture(
        Router(router.spec, net.router.state_dict(), router.history),
        tuple(Student(student.spec, expert.state_dict(), ()) for expert in net.students),
        clusters,
        joint.mask_students,
        gated,
        history,
    )


def hierarchical(net: MoIST, batch: Batch, joint: Joint, prior: Prior) -> torch.Tensor:
    """The exact likelihood of a two-level softmax: the router on the label's cluster, and that
    cluster's student on the label. (Exact with masked students; an upper bound without.)"""
    cluster_B = net.cluster_C[batch.labels_B]
    gate_BE = net.route(batch.images_BCHW, batch.labels_B)
    logits_BC = net.dispatch(batch.images_BCHW, cluster_B)
    return F.cross_entropy(gate_BE, cluster_B) + F.cross_entropy(logits_BC, batch.labels_B)


def students_only(net: MoIST, batch: Batch, joint: Joint, prior: Prior) -> torch.Tensor:
    """What the paper's code trains: the student the router picks, on the label. The router gets
    no gradient from a hard choice; here it is frozen, so its batch norm can't drift either."""
    with torch.no_grad():
        expert_B = net.route(batch.images_BCHW, batch.labels_B).argmax(1)
    return F.cross_entropy(net.dispatch(batch.images_BCHW, expert_B), batch.labels_B)


def em(net: MoIST, batch: Batch, joint: Joint, prior: Prior) -> torch.Tensor:
    """The mixture's likelihood by EM, the router tied to the teacher's cluster prior."""
    gate_BE = net.route(batch.images_BCHW)
    prior_BE = prior(batch)
    bound = free_energy(
        gate_BE,
        net.experts(batch.images_BCHW),
        batch.labels_B,
        prior_BE,
        teacher_prior=joint.teacher_prior,
    )
    return bound + joint.prior_weight * divergence(prior_BE, gate_BE)


def switch(net: MoIST, batch: Batch, joint: Joint, prior: Prior) -> torch.Tensor:
    """Switch routing: the chosen student's logits, scaled by its gate, and the balance loss."""
    logits_BC, gate_BE = net.routed(batch.images_BCHW)
    share_E = net.member_EC.float().mean(1)
    return F.cross_entropy(logits_BC, batch.labels_B) + joint.balance * balance(gate_BE, share_E)


def teacher_prior(net: MoIST, logits: Logits, temperature: float) -> Prior:
    """q_j(x): the teacher's softened probability of the classes of cluster j."""
    taught_VNC = logits.train_VNC.to(net.cluster_C.device)
    member_CE = net.member_EC.T.float()

    def prior(batch: Batch) -> torch.Tensor:
        teacher_BC = taught_VNC[batch.view, batch.index_B].float()
        with autocast(teacher_BC.device, "float32"):  # a bf16 product no longer sums to 1
            return F.softmax(teacher_BC / temperature, 1) @ member_CE

    return prior


def _no_prior(batch: Batch) -> torch.Tensor:
    raise AssertionError("only `em` asks for the teacher's prior")


OBJECTIVES: dict[str, Objective] = {
    "hierarchical": hierarchical,
    "students_only": students_only,
    "em": em,
    "switch": switch,
}
