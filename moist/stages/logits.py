"""The logits that students learn: a model's, on a few augmented views, computed once for all."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from moist.config import AugmentConfig
from moist.env import Env
from moist.nets.build import module
from moist.nets.mixture import MoIST
from moist.stages import stage
from moist.store.artifacts import Dataset, Logits, Mixture, Student, Teacher
from moist.training.job import Job


@stage(version=1, added=("mirror",))
def teacher_logits(
    env: Env,
    *,
    data: Dataset,
    teacher: Teacher,
    augment: AugmentConfig,
    views: int,
    precision: str,
    seed: int,
    mirror: bool = False,
) -> Logits:
    """Compute the teacher's logits on `views` augmented copies of the training images.

    With `mirror`, each is the mean of those of the image and of its mirror image.
    """
    job = Job(env, data, augment=augment, precision=precision, seed=seed)
    net = module(teacher, env.device).eval()

    def mean(images_BCHW: torch.Tensor) -> torch.Tensor:
        logits_BC: torch.Tensor = (net(images_BCHW) + net(images_BCHW.flip(3))) / 2
        return logits_BC

    return Logits(job.over_views(mean if mirror else net, views))


@stage(version=1)
def student_logits(
    env: Env,
    *,
    data: Dataset,
    student: Student,
    augment: AugmentConfig,
    views: int,
    precision: str,
    seed: int,
) -> Logits:
    """Compute a student's logits on the same copies: which it defers, and where it routes them."""
    job = Job(env, data, augment=augment, precision=precision, seed=seed)
    return Logits(job.over_views(module(student, env.device).eval(), views))


@stage(version=1)
def mixture_logits(
    env: Env,
    *,
    data: Dataset,
    mixture: Mixture,
    temperature: float | None,
    augment: AugmentConfig,
    views: int,
    precision: str,
    seed: int,
) -> Logits:
    """Compute a mixture's logits, in the teacher's place: T log sum_e g_e softmax(z_e / T).

    Their softmax at T is the mean of the students' probabilities at T, weighted by the router's
    (at 1). Without a temperature, they are the logits of each image's own student.
    """
    job = Job(env, data, augment=augment, precision=precision, seed=seed)
    net = module(mixture, env.device).eval()
    assert isinstance(net, MoIST)

    def mean(images_BCHW: torch.Tensor, temperature: float) -> torch.Tensor:
        x_BCHW = net.trunk(images_BCHW)
        log_gate_BE = F.log_softmax(net.route(x_BCHW), 1)
        log_p_BEC = F.log_softmax(net.experts(x_BCHW) / temperature, 2)
        return temperature * torch.logsumexp(log_gate_BE[:, :, None] + log_p_BEC, 1)

    answer = net if temperature is None else lambda images: mean(images, temperature)
    return Logits(job.over_views(answer, views))
