"""What students are taught: a model's logits on a few augmented views, computed once for all."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional as F

from moist.config import AugmentConfig
from moist.data.augment import draw, render
from moist.env import Env, autocast
from moist.nets.build import module
from moist.nets.mixture import MoIST
from moist.stages import stage
from moist.store import checkpoint
from moist.store.artifacts import Dataset, Logits, Mixture, Teacher

BATCH = 256
Answer = Callable[[torch.Tensor], torch.Tensor]


@stage(version=1)
def teacher_logits(
    env: Env,
    *,
    data: Dataset,
    teacher: Teacher,
    augment: AugmentConfig,
    views: int,
    precision: str,
    seed: int,
) -> Logits:
    """Logits of `views` augmented copies of the training images; a finished view is kept.

    View v of an image is the very tensor that a student sees in epochs v, v + views, ...
    """
    net = module(teacher, env.device).eval()
    return _labelled(env, net, data, augment, views, precision, seed)


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
    """The same of a mixture in the teacher's place: T log sum_e g_e softmax(z_e / T).

    Their softmax at T is the mean of the students' probabilities at T, weighted by the router's
    (at 1). Without a temperature, the logits of each image's own student.
    """
    net = module(mixture, env.device).eval()
    assert isinstance(net, MoIST)

    def mean(images_BCHW: torch.Tensor, temperature: float) -> torch.Tensor:
        x_BCHW = net.trunk(images_BCHW)
        log_gate_BE = F.log_softmax(net.route(x_BCHW), 1)
        log_p_BEC = F.log_softmax(net.experts(x_BCHW) / temperature, 2)
        return temperature * torch.logsumexp(log_gate_BE[:, :, None] + log_p_BEC, 1)

    answer = net if temperature is None else lambda images: mean(images, temperature)
    return _labelled(env, answer, data, augment, views, precision, seed)


def _labelled(
    env: Env,
    answer: Answer,
    data: Dataset,
    augment: AugmentConfig,
    views: int,
    precision: str,
    seed: int,
) -> Logits:
    """`answer` on view after view; those of a killed stage are taken up."""
    found = checkpoint.load(env.checkpoints, env.progress.warned)
    done: list[torch.Tensor] = list(found[1]) if found else []
    for view in range(len(done), views):
        done.append(_one_view(env, answer, data, augment, view, precision, seed))
        checkpoint.save(env.checkpoints, tuple(done), view + 1)
        env.advanced(view + 1, views)
    return Logits(torch.stack(done))


def _one_view(
    env: Env,
    answer: Answer,
    data: Dataset,
    augment: AugmentConfig,
    view: int,
    precision: str,
    seed: int,
) -> torch.Tensor:
    """Float16 logits (N, C) on one view of the training split, in its order."""
    drawn = draw(len(data.train), augment, data.image_shape[1:], seed, view).to(env.device)
    parts = []
    with torch.inference_mode(), autocast(env.device, precision):
        for rows in torch.split(torch.arange(len(data.train)), BATCH):
            images = data.train.images_NHWC[rows].to(env.device)
            x_BCHW = render(images, drawn[rows.to(env.device)], augment, data.mean, data.std)
            parts.append(answer(x_BCHW).half().cpu())
    return torch.cat(parts)
