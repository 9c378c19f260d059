"""Features and class tables of the teacher's levels, on the views that a student learns from.

Ours: of MoE-KD (OpenReview UC1UD0EIWn) only the abstract is known, by which experts are
implemented from multi-level teacher outputs. V views, N images, B of a batch, M levels, D
channels, C classes.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from moist.config import AugmentConfig
from moist.env import Env
from moist.nets.build import module
from moist.nets.cnn import TEACHERS
from moist.stages import stage
from moist.store.artifacts import Dataset, Levels, Teacher
from moist.training.job import Job

STEPS = 100
"""Of a probe's descent, at most."""
DECAY = 1e-3
"""Of a probe's weights, so that separable classes have a finite optimum."""
CONSTANT = 1e-6
"""A channel of a smaller deviation is constant."""


@stage(version=1)
def teacher_levels(
    env: Env,
    *,
    data: Dataset,
    teacher: Teacher,
    augment: AugmentConfig,
    views: int,
    precision: str,
    seed: int,
) -> Levels:
    """Compute the teacher's levels on `views` augmented copies, those of `teacher_logits`.

    The class of a level is that of a linear probe on it, trained on view 0 and counted on the
    same images (ours), since the teacher was trained on all of them anyway.
    """
    net = module(teacher, env.device).eval()
    names = TEACHERS[teacher.spec.name].levels
    job = Job(env, data, augment=augment, precision=precision, seed=seed)
    features_VND = job.over_views(lambda x_BCHW: torch.cat(pooled(net, names, x_BCHW), 1), views)
    image_1CHW = torch.zeros(1, *data.image_shape, device=env.device)
    with torch.inference_mode():
        widths = tuple(level_1D.shape[1] for level_1D in pooled(net, names, image_1CHW))
    labels_N, classes = data.train.labels_N.to(env.device), len(data.classes)
    tables = [
        table(probed(level_ND.to(env.device).float(), labels_N, classes), labels_N, classes)
        for level_ND in torch.split(features_VND[0], list(widths), 1)
    ]
    last = net.get_submodule(TEACHERS[teacher.spec.name].last)
    assert isinstance(last, nn.Linear)
    return Levels(
        features_VND,
        widths,
        torch.stack(tables),
        weight_CF=last.weight.detach(),
        bias_C=last.weight.new_zeros(classes) if last.bias is None else last.bias.detach(),
    )


def pooled(net: nn.Module, names: tuple[str, ...], x_BCHW: torch.Tensor) -> list[torch.Tensor]:
    """Average each level's feature maps over their pixels: float32 (B, width) a level."""
    maps: list[torch.Tensor] = []
    hooks = [
        net.get_submodule(name).register_forward_hook(
            lambda _net, _args, maps_BDHW: maps.append(maps_BDHW.float().mean((2, 3)))
        )
        for name in names
    ]
    net(x_BCHW)
    for hook in hooks:
        hook.remove()
    return maps


def probed(features_ND: torch.Tensor, labels_N: torch.Tensor, classes: int) -> torch.Tensor:
    """Train a linear classifier of these features on these labels; return its classes (N,)."""
    deviation_D = features_ND.std(0).clamp_min(CONSTANT)
    inputs_ND = (features_ND - features_ND.mean(0)) / deviation_D
    weight_CD = inputs_ND.new_zeros(classes, inputs_ND.shape[1], requires_grad=True)
    bias_C = inputs_ND.new_zeros(classes, requires_grad=True)
    descent = torch.optim.LBFGS([weight_CD, bias_C], max_iter=STEPS, line_search_fn="strong_wolfe")

    def loss() -> float:
        descent.zero_grad()
        value = F.cross_entropy(F.linear(inputs_ND, weight_CD, bias_C), labels_N)
        value = value + DECAY / 2 * weight_CD.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return float(value.detach())

    descent.step(loss)  # type: ignore[no-untyped-call]
    return F.linear(inputs_ND, weight_CD, bias_C).detach().argmax(1)


def table(class_N: torch.Tensor, labels_N: torch.Tensor, classes: int) -> torch.Tensor:
    """Return the share (C, C) of class y (column) among the images classified as z (row).

    One image more is spread evenly over each row, so that a class never predicted has a uniform
    row.
    """
    cells = torch.bincount(class_N * classes + labels_N, minlength=classes**2)
    count_CC = cells.view(classes, classes).float() + 1 / classes
    return count_CC / count_CC.sum(1, keepdim=True)
