"""The module of an ensemble: students averaged. B images, C classes, K students."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.nn import functional as F


def _smooth(x_BCHW: torch.Tensor) -> torch.Tensor:
    return F.avg_pool2d(x_BCHW, 3, stride=1, padding=1)


def _edges(x_BCHW: torch.Tensor) -> torch.Tensor:
    return x_BCHW - _smooth(x_BCHW)


FILTERS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "plain": lambda x_BCHW: x_BCHW,
    "smooth": _smooth,
    "edges": _edges,
}
"""Filters of the images that a student gets. Chang et al. (COLING 2022) give students
different forms of a text; only their abstract and a summary are known to us: these are ours."""


def views_of(kind: str, students: int) -> tuple[str, ...]:
    """Name the filter of each student: the plain image for all, or a filter each, in turn."""
    names = list(FILTERS) if kind == "filtered" else ["plain"]
    return tuple(names[i % len(names)] for i in range(students))


class EnsembleNet(nn.Module):
    """Students whose probabilities are averaged; an image costs all of them."""

    def __init__(self, students: Sequence[nn.Module], views: Sequence[str]) -> None:
        super().__init__()
        self.students = nn.ModuleList(students)
        self.views = tuple(views)

    def member_logits(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        """Return each student's logits (K, B, C) on the images as it gets them; float32."""
        pairs = zip(self.students, self.views, strict=True)
        return torch.stack([student(FILTERS[view](x_BCHW)).float() for student, view in pairs])

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        """Return log-probabilities (B, C)."""
        log_p_KBC = self.member_logits(x_BCHW).log_softmax(2)
        return torch.logsumexp(log_p_KBC, 0) - math.log(len(self.students))
