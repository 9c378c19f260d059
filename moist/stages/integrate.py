"""Knowledge distillation of OneS: the gathered student, refined. B images, C classes."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch.nn import functional as F

from moist.artifacts import Dataset, Logits, Mixture, Student
from moist.augment import Batch
from moist.config import Augment, Merge
from moist.env import Env
from moist.fit import fit, passes
from moist.losses import kd_from
from moist.measure import validation
from moist.mixture import MoIST
from moist.models import module
from moist.stages import stage

Opinion = Callable[[Batch], torch.Tensor]


@stage(version=1)
def integrate(
    env: Env,
    *,
    data: Dataset,
    logits: Logits,
    student: Student,
    mixture: Mixture,
    merge: Merge,
    temperature: float,
    augment: Augment,
    precision: str,
    seed: int,
) -> Student:
    """The student taught once more, by `merge.teacher`; on the views that it was distilled on.

    (1-alpha) cross-entropy + alpha T^2 KL(teacher at T, student at T), as in distillation.
    """
    net = module(student, env.device)
    teachers = opinions(env, mixture, logits, temperature)
    alpha = 0.0 if merge.teacher == "none" else merge.alpha

    def loss(batch: Batch) -> torch.Tensor:
        student_BC = net(batch.images_BCHW).float()
        hard = F.cross_entropy(student_BC, batch.labels_B)
        if alpha == 0:
            return hard
        with torch.no_grad():
            taught_BC = teachers[merge.teacher](batch)
        return (1 - alpha) * hard + alpha * kd_from(student_BC, taught_BC, temperature)

    history = fit(
        env,
        net,
        passes(env, data, augment, merge.batch_size, seed, views=len(logits.train_VNC)),
        loss,
        images=len(data.train),
        training=merge,
        precision=precision,
        seed=seed,
        validate=validation(env, net, data, precision),
    )
    return Student(student.spec, net.state_dict(), history)


def opinions(env: Env, mixture: Mixture, logits: Logits, temperature: float) -> dict[str, Opinion]:
    """Who can refine: each gives log-probabilities (B, C) at the temperature.

    `mixture`: the students' probabilities weighted by the router's; `hard`: the routed student's
    answer; `teacher`: the teacher that all were distilled from; `both`: the mean of the
    probabilities of mixture and teacher.
    """
    net = module(mixture, env.device).eval()
    assert isinstance(net, MoIST)
    taught_VNC = logits.train_VNC.to(env.device)

    def soft(batch: Batch) -> torch.Tensor:
        x_BCHW = net.trunk(batch.images_BCHW)
        log_gate_BE = F.log_softmax(net.route(x_BCHW), 1)
        log_p_BEC = F.log_softmax(net.experts(x_BCHW) / temperature, 2)
        return torch.logsumexp(log_gate_BE[:, :, None] + log_p_BEC, 1)

    def hard(batch: Batch) -> torch.Tensor:
        return F.log_softmax(net(batch.images_BCHW) / temperature, 1)

    def teacher(batch: Batch) -> torch.Tensor:
        return F.log_softmax(taught_VNC[batch.view, batch.index_B].float() / temperature, 1)

    def both(batch: Batch) -> torch.Tensor:
        return torch.logaddexp(soft(batch), teacher(batch)) - math.log(2)

    return {"mixture": soft, "hard": hard, "teacher": teacher, "both": both}
