"""More than one opinion of an image: students averaged, or a second opinion in case of doubt.

B images, C classes, E experts, K students.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from moist.nets.mixture import MoIST


def _smooth(x_BCHW: torch.Tensor) -> torch.Tensor:
    return F.avg_pool2d(x_BCHW, 3, stride=1, padding=1)


def _edges(x_BCHW: torch.Tensor) -> torch.Tensor:
    return x_BCHW - _smooth(x_BCHW)


FILTERS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "plain": lambda x_BCHW: x_BCHW,
    "smooth": _smooth,
    "edges": _edges,
}
"""How a student may see an image. Of Chang et al. (COLING 2022), who show students different
forms of a text, only the abstract and a summary are known to us: these filters are ours."""


def views_of(kind: str, students: int) -> tuple[str, ...]:
    """The filter of each student: all the plain image, or a filter each, in turn."""
    names = list(FILTERS) if kind == "filtered" else ["plain"]
    return tuple(names[i % len(names)] for i in range(students))


NEVER, ALWAYS = 0.0, 2.0
"""Thresholds that no certainty is below, and that none reaches: they are in [0, 1]."""


class Average(nn.Module):
    """Students whose probabilities are averaged; an image costs all of them."""

    def __init__(self, students: Sequence[nn.Module], views: Sequence[str]) -> None:
        super().__init__()
        self.students = nn.ModuleList(students)
        self.views = tuple(views)

    def opinions(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        """The logits (K, B, C) of each student, of the image as it sees it; float32."""
        pairs = zip(self.students, self.views, strict=True)
        return torch.stack([student(FILTERS[view](x_BCHW)).float() for student, view in pairs])

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        """Log-probabilities (B, C)."""
        log_p_KBC = self.opinions(x_BCHW).log_softmax(2)
        return torch.logsumexp(log_p_KBC, 0) - math.log(len(self.students))


class First(NamedTuple):
    """A first opinion: logits (B, C), certainty (B,), router logits (B, E) if it routes, and what
    a second opinion starts from."""

    logits_BC: torch.Tensor
    certainty_B: torch.Tensor
    gate_BE: torch.Tensor | None
    left: tuple[torch.Tensor, ...]


class Settled(NamedTuple):
    """A last word: logits (B, C), router logits (B, E) if it routes, and who (B,) was asked
    twice."""

    logits_BC: torch.Tensor
    gate_BE: torch.Tensor | None
    asked_B: torch.Tensor


class SecondOpinion(nn.Module):
    """`first`, and where its certainty is below `threshold` a second opinion.

    With a `fallback` certainty is the largest probability of a class, and the fallback answers
    instead (a cascade). Without, `first` is a mixture, certainty is how much more probable the
    router finds its first expert than its second, and both experts answer together.
    """

    def __init__(self, first: nn.Module, fallback: nn.Module | None, threshold: float) -> None:
        super().__init__()
        self.first, self.fallback, self.threshold = first, fallback, threshold

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        """Logits (B, C) of `settled`."""
        return self.settled(images_BCHW).logits_BC

    def settled(self, images_BCHW: torch.Tensor) -> Settled:
        """The second opinion is computed only for images that need it."""
        first = self.doubted(images_BCHW)
        asked_B = first.certainty_B < self.threshold
        logits_BC, rows = first.logits_BC, asked_B.nonzero().squeeze(1)
        if len(rows):
            second_BC = self.second(*(x[rows] for x in first.left))
            logits_BC = logits_BC.index_copy(0, rows, second_BC)
        return Settled(logits_BC, first.gate_BE, asked_B)

    def doubted(self, images_BCHW: torch.Tensor) -> First:
        """The first opinion, and how certain it is."""
        if not isinstance(self.first, MoIST):
            logits_BC = self.first(images_BCHW).float()
            return First(logits_BC, logits_BC.softmax(1).amax(1), None, (images_BCHW,))
        x_BCHW = self.first.trunk(images_BCHW)
        logits_BC, gate_BE, own_BC = self.first.answer(x_BCHW)
        if self.fallback is not None:
            return First(logits_BC, logits_BC.softmax(1).amax(1), gate_BE, (images_BCHW,))
        best_B2 = gate_BE.softmax(1).topk(2).values
        margin_B = best_B2[:, 0] - best_B2[:, 1]
        return First(logits_BC, margin_B, gate_BE, (x_BCHW, gate_BE, own_BC))

    def second(self, *left: torch.Tensor) -> torch.Tensor:
        """The second opinion (B, C) on every image, from what `doubted` left of it."""
        if self.fallback is not None:
            logits_BC: torch.Tensor = self.fallback(*left).float()
            return logits_BC
        assert isinstance(self.first, MoIST)
        return self.first.second(*left)


def threshold_for(certainty_N: torch.Tensor, share: float) -> float:
    """The threshold below which `share` of the certainties lie, to the nearest image."""
    ordered_N = certainty_N.double().sort().values
    count = round(share * len(ordered_N))
    if count == 0:
        return NEVER
    if count == len(ordered_N):
        return ALWAYS
    return float(ordered_N[count])
