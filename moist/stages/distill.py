"""One student, distilled from the teacher: the ancestor of all experts."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from moist.artifacts import Dataset, Logits, Student
from moist.augment import Batch
from moist.config import Augment, Distill
from moist.config import Student as StudentConfig
from moist.env import Env
from moist.fit import fit, passes, seeded
from moist.losses import distillation
from moist.measure import validation
from moist.mixture import fresh, module, student_spec
from moist.stages import stage


@stage(version=1)
def distill_student(
    env: Env,
    *,
    data: Dataset,
    logits: Logits,
    student: StudentConfig,
    hidden_width: int,
    distill: Distill,
    temperature: float,
    augment: Augment,
    precision: str,
    seed: int,
) -> Student:
    """A student trained on the teacher's logits and the labels (Hinton et al. 2015).

    Epoch e shows view e mod V of each image: the tensor whose logits the teacher gave.
    """
    spec = student_spec(student, hidden_width, data.image_shape, len(data.classes))
    with seeded(seed, "student"):
        start = fresh(Student, spec)
    net = module(start, env.device)
    taught_VNC = logits.train_VNC.to(env.device)

    def loss(batch: Batch) -> torch.Tensor:
        student_BC = net(batch.images_BCHW).float()
        if distill.alpha == 0:
            return F.cross_entropy(student_BC, batch.labels_B)
        teacher_BC = taught_VNC[batch.view, batch.index_B].float()
        return distillation(
            student_BC, teacher_BC, batch.labels_B, alpha=distill.alpha, temperature=temperature
        )

    history = fit(
        env,
        net,
        passes(env, data, augment, distill.batch_size, seed, views=len(taught_VNC)),
        loss,
        images=len(data.train),
        training=distill,
        precision=precision,
        seed=seed,
        validate=validation(env, net, data, precision),
    )
    return Student(spec, net.state_dict(), history)
