"""Specialists: copies of one network, trained on the images that a student defers to each.

B images, V views, N training images, C classes, E specialists.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from moist.config import AugmentConfig, DistillConfig, SpecialistsConfig
from moist.data.augment import Batch
from moist.env import Env
from moist.measure.accuracy import classify
from moist.nets.build import module, specialists_from
from moist.nets.cascade import CascadeNet, threshold_for
from moist.nets.mixture import MoIST
from moist.stages import stage
from moist.store.artifacts import Cascade, Clusters, Dataset, Logits, Mixture, Student
from moist.training.distillation import distillation
from moist.training.job import Job


@stage(version=1)
def train_specialists(
    env: Env,
    *,
    data: Dataset,
    student: Student,
    deferring: Logits,
    generalist: Student,
    clusters: Clusters,
    logits: Logits,
    specialists: SpecialistsConfig,
    distill: DistillConfig,
    temperature: float,
    augment: AugmentConfig,
    precision: str,
    seed: int,
) -> Mixture:
    """Train k copies of the generalist further, each on deferred images of its cluster.

    Of each view the images are deferred on which the student is least certain, a share of them,
    because on training images it is more certain than on new ones; a threshold from validation
    images would defer too few. Each goes to the copy to which the student routes it, misrouted
    ones too: a specialist answers for all classes. With k=1 the generalist trains on, on the same
    images for as long, which shows what specialization adds to it.
    """
    start = specialists_from(generalist, clusters)
    net = module(Cascade(student, start, 0.0), env.device)
    assert isinstance(net, CascadeNet) and isinstance(net.fallback, MoIST)
    experts = net.fallback
    net.first.requires_grad_(False)
    if len(data.val):  # the accuracy of each epoch is that of the cascade which defers this share
        answers = classify(env, net, data.val, data, precision=precision)
        assert answers.certainty_N is not None
        net.threshold = threshold_for(answers.certainty_N, specialists.share)
    certainty_VN = deferring.train_VNC.float().softmax(2).amax(2)
    count = max(1, round(specialists.share * len(data.train)))
    least_VN = certainty_VN.sort(dim=1, stable=True).indices[:, :count]  # ties: the first images
    shown_VN = torch.zeros_like(certainty_VN, dtype=torch.bool).scatter_(1, least_VN, True)
    student_VNC, teacher_VNC = (one.train_VNC.to(env.device) for one in (deferring, logits))

    def loss(batch: Batch) -> torch.Tensor:
        rows = (batch.view, batch.index_B)
        expert_B = experts.route(student_VNC[rows].float()).argmax(1)
        return distillation(
            experts.dispatch(batch.images_BCHW, expert_B), teacher_VNC[rows].float(),
            batch.labels_B, distill, temperature=temperature,
        )  # fmt: skip

    job = Job(env, data, augment=augment, precision=precision, seed=seed, shown_VN=shown_VN)
    history = job.fit(net, loss, specialists, views=len(teacher_VNC))
    states = experts.student_states()
    students = tuple(Student(generalist.spec, state, ()) for state in states)
    return replace(start, students=students, history=history)
