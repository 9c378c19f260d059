"""Knowledge distillation of OneS: the gathered student, refined. B images, C classes."""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F

from moist.config import AugmentConfig, MergeConfig
from moist.data.augment import Batch
from moist.env import Env
from moist.nets.build import module
from moist.stages import stage
from moist.store.artifacts import Dataset, Logits, Student
from moist.training.distillation import kd_from
from moist.training.job import Job


@stage(version=2)
def integrate(
    env: Env,
    *,
    data: Dataset,
    student: Student,
    taught: tuple[Logits, ...],
    views: int,
    merge: MergeConfig,
    temperature: float,
    augment: AugmentConfig,
    precision: str,
    seed: int,
) -> Student:
    """Distill the gathered student once more, on the `views` that the student was distilled on.

    (1-alpha) cross-entropy + alpha T^2 KL(teacher at T, student at T), as in distillation; the
    teacher's probabilities are the mean over the logits in `taught`; without any, alpha is 0.
    """
    net = module(student, env.device)
    each_VNC = [logits.train_VNC.to(env.device) for logits in taught]
    alpha = merge.alpha if taught else 0.0

    def loss(batch: Batch) -> torch.Tensor:
        student_BC = net(batch.images_BCHW).float()
        hard = F.cross_entropy(student_BC, batch.labels_B)
        if alpha == 0:
            return hard
        each_BC = [logits_VNC[batch.view, batch.index_B].float() for logits_VNC in each_VNC]
        soft = kd_from(student_BC, mean_log_prob(each_BC, temperature), temperature)
        return (1 - alpha) * hard + alpha * soft

    job = Job(env, data, augment=augment, precision=precision, seed=seed)
    history = job.fit(net, loss, merge, views=views)
    return Student(student.spec, net.state_dict(), history)


def mean_log_prob(logits: list[torch.Tensor], temperature: float) -> torch.Tensor:
    """Return the log (B, C) of the mean of the given logits' probabilities at the temperature."""
    each = torch.stack([F.log_softmax(one / temperature, 1) for one in logits])
    return torch.logsumexp(each, 0) - math.log(len(logits))
