"""Students distilled from the teacher: the ancestor of all experts, a fallback, an ensemble."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from moist.config import AugmentConfig, DistillConfig, StudentConfig
from moist.data.augment import Batch
from moist.data.random import seeded
from moist.env import Env
from moist.nets.build import fresh, module, student_spec
from moist.nets.cnn import STUDENTS
from moist.nets.ensemble import EnsembleNet
from moist.stages import stage
from moist.store.artifacts import Dataset, Ensemble, Levels, Logits, Row, Spec, Student
from moist.training.distillation import distillation
from moist.training.job import Answer, Job
from moist.training.moe_kd import Latent


@stage(version=2)
def distill_student(
    env: Env,
    *,
    data: Dataset,
    logits: Logits,
    levels: Levels | None,
    student: StudentConfig,
    hidden_width: int,
    distill: DistillConfig,
    temperature: float,
    augment: AugmentConfig,
    precision: str,
    seed: int,
) -> Student:
    """Train a student on the teacher's logits and the labels (Hinton et al. 2015).

    Epoch e shows view e mod V of each image: the tensor whose logits the teacher gave. `levels`
    are what `moe_kd` learns from in addition; the other losses take None.
    """
    spec = student_spec(student, hidden_width, data.image_shape, len(data.classes))
    with seeded(seed, "student"):
        start = fresh(Student, spec)
    net = module(start, env.device)
    job = Job(env, data, augment=augment, precision=precision, seed=seed)
    if levels is not None:
        return _latent(
            job, net, spec, levels, logits=logits, distill=distill, temperature=temperature
        )
    history = _distilled(
        job, net, lambda x_BCHW: net(x_BCHW).float()[None],
        logits=logits, distill=distill, temperature=temperature,
    )  # fmt: skip
    return Student(spec, net.state_dict(), history)


@stage(version=1)
def distill_fallback(
    env: Env,
    *,
    data: Dataset,
    logits: Logits,
    arch: str,
    distill: DistillConfig,
    temperature: float,
    augment: AugmentConfig,
    precision: str,
    seed: int,
) -> Student:
    """Distill a larger network, as the student is, for images that the model defers."""
    return distill_student(
        env, data=data, logits=logits, student=StudentConfig.model_validate({"arch": arch}),
        hidden_width=1, levels=None, distill=distill, temperature=temperature, augment=augment,
        precision=precision, seed=seed,
    )  # fmt: skip


@stage(version=1)
def distill_ensemble(
    env: Env,
    *,
    data: Dataset,
    logits: Logits,
    k: int,
    views: tuple[str, ...],
    student: StudentConfig,
    hidden_width: int,
    distill: DistillConfig,
    temperature: float,
    augment: AugmentConfig,
    precision: str,
    seed: int,
) -> Ensemble:
    """Distill k students from weights of their own, each on its own filter of the images.

    One teacher and several students are Chang et al.'s (COLING 2022, abstract only); that each
    learns all classes, and that they train side by side on the sum of their losses, is ours.
    """
    spec = student_spec(student, hidden_width, data.image_shape, len(data.classes))
    with seeded(seed, "ensemble"):
        start = Ensemble(tuple(fresh(Student, spec) for _ in range(k)), views, ())
    net = module(start, env.device)
    assert isinstance(net, EnsembleNet)
    job = Job(env, data, augment=augment, precision=precision, seed=seed)
    history = _distilled(
        job, net, net.member_logits, logits=logits, distill=distill, temperature=temperature
    )
    students = tuple(Student(spec, member.state_dict(), ()) for member in net.students)
    return Ensemble(students, views, history)


def _distilled(
    job: Job,
    net: nn.Module,
    answers: Answer,
    *,
    logits: Logits,
    distill: DistillConfig,
    temperature: float,
) -> tuple[Row, ...]:
    """Train the students whose logits (K, B, C) `answers` gives, each on the same batch."""
    teacher_VNC = logits.train_VNC.to(job.env.device)

    def loss(batch: Batch) -> torch.Tensor:
        teacher_BC = teacher_VNC[batch.view, batch.index_B].float()
        ramp = min((batch.epoch + 1) / distill.warmup, 1.0) if distill.warmup else 1.0
        each = [
            distillation(
                student_BC, teacher_BC, batch.labels_B, distill, temperature=temperature, ramp=ramp
            )
            for student_BC in answers(batch.images_BCHW)
        ]
        return torch.stack(each).sum()

    return job.fit(net, loss, distill, views=len(teacher_VNC))


def _latent(
    job: Job,
    net: nn.Module,
    spec: Spec,
    levels: Levels,
    *,
    logits: Logits,
    distill: DistillConfig,
    temperature: float,
) -> Student:
    """Train a student with MoE-KD; the latent teacher that it learns with is not part of it."""
    device = job.env.device
    with seeded(job.seed, "latent"):
        latent = Latent(
            net, STUDENTS[spec.name].last, levels, distill, temperature=temperature
        ).to(device)
    teacher_VNC = logits.train_VNC.to(device)
    levels_VND = levels.features_VND.to(device)

    def loss(batch: Batch) -> torch.Tensor:
        assert batch.view is not None
        return latent.loss(
            batch.images_BCHW,
            batch.labels_B,
            teacher_VNC[batch.view, batch.index_B].float(),
            levels_VND[batch.view % len(levels_VND), batch.index_B].float(),
        )

    history = job.fit(latent, loss, distill, views=len(teacher_VNC))
    state, form = latent.deployed()
    if form is not None:
        spec = replace(spec, options={**spec.options, "latent": (form, len(levels.widths))})
    return Student(spec, state, history)
