"""The teacher's labels: its logits on a few augmented views, computed once for every consumer."""

from __future__ import annotations

import torch

from moist import checkpoint
from moist.artifacts import Dataset, Logits, Teacher
from moist.augment import draw, render
from moist.config import Augment
from moist.env import Env
from moist.fit import autocast
from moist.models import module
from moist.stages import stage

BATCH = 256


@stage(version=1)
def teacher_logits(
    env: Env,
    *,
    data: Dataset,
    teacher: Teacher,
    augment: Augment,
    views: int,
    precision: str,
    seed: int,
) -> Logits:
    """Logits of `views` augmented copies of the training images; a finished view is kept.

    View v of an image is the very tensor that a student sees in epochs v, v + views, ...
    """
    net = module(teacher, env.device).eval()
    found = checkpoint.load(env.checkpoints, env.progress.warned)
    done: list[torch.Tensor] = list(found[1]) if found else []
    for view in range(len(done), views):
        done.append(_one_view(env, net, data, augment, view, precision, seed))
        checkpoint.save(env.checkpoints, tuple(done), view + 1)
        env.advanced(view + 1, views)
    return Logits(torch.stack(done))


def _one_view(
    env: Env,
    net: torch.nn.Module,
    data: Dataset,
    augment: Augment,
    view: int,
    precision: str,
    seed: int,
) -> torch.Tensor:
    """The teacher's float16 logits (N, C) on one view of the training split, in its order."""
    drawn = draw(len(data.train), augment, data.image_shape[1:], seed, view).to(env.device)
    parts = []
    with torch.inference_mode(), autocast(env.device, precision):
        for rows in torch.split(torch.arange(len(data.train)), BATCH):
            images = data.train.images_NHWC[rows].to(env.device)
            x_BCHW = render(images, drawn[rows.to(env.device)], augment, data.mean, data.std)
            parts.append(net(x_BCHW).half().cpu())
    return torch.cat(parts)
