"""The module of a cascade: images that one model is uncertain of are deferred to another.

B images, C classes, E experts.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from moist.nets.mixture import MoIST

NEVER, ALWAYS = 0.0, 2.0
"""Thresholds that defer no image and every image: certainties are in [0, 1]."""


class FirstPass(NamedTuple):
    """The first model on a batch: logits (B, C), certainty (B,), router logits (B, E) if there are
    students to route to, and the inputs (B, ...) of a second pass."""

    logits_BC: torch.Tensor
    certainty_B: torch.Tensor
    gate_BE: torch.Tensor | None
    inputs: tuple[torch.Tensor, ...]


class Deferring(NamedTuple):
    """A cascade's answer on a batch: logits (B, C), router logits (B, E) if there are students to
    route to, and whether each image was deferred (B,)."""

    logits_BC: torch.Tensor
    gate_BE: torch.Tensor | None
    deferred_B: torch.Tensor


class CascadeNet(nn.Module):
    """A `first` model that defers the images of which its certainty is below `threshold`.

    With a `fallback` certainty is the largest probability of a class, and the fallback classifies
    deferred images; of a mixture the student of the cluster to which the first model gives the
    largest probability. Without a fallback, `first` is a mixture, certainty is the router's
    probability of its best expert less that of its second best, and both experts classify
    deferred images.
    """

    def __init__(self, first: nn.Module, fallback: nn.Module | None, threshold: float) -> None:
        super().__init__()
        self.first, self.fallback, self.threshold = first, fallback, threshold

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        """Return logits (B, C)."""
        return self.answer(images_BCHW).logits_BC

    def answer(self, images_BCHW: torch.Tensor) -> Deferring:
        """Classify images; the second pass is computed for deferred ones only."""
        first = self.first_pass(images_BCHW)
        deferred_B = first.certainty_B < self.threshold
        logits_BC, rows = first.logits_BC, deferred_B.nonzero().squeeze(1)
        if len(rows):
            second_BC = self.second_pass(*(x[rows] for x in first.inputs))
            logits_BC = logits_BC.index_copy(0, rows, second_BC)
        return Deferring(logits_BC, first.gate_BE, deferred_B)

    def first_pass(
        self, images_BCHW: torch.Tensor, labels_B: torch.Tensor | None = None
    ) -> FirstPass:
        """Run the first model, and measure its certainty; only an oracle router reads labels."""
        if not isinstance(self.first, MoIST):
            logits_BC = self.first(images_BCHW).float()
            certainty_B = logits_BC.softmax(1).amax(1)
            if not isinstance(self.fallback, MoIST):
                return FirstPass(logits_BC, certainty_B, None, (images_BCHW,))
            gate_BE = self.fallback.route(logits_BC, labels_B)
            return FirstPass(logits_BC, certainty_B, gate_BE, (images_BCHW, gate_BE))
        x_BCHW = self.first.trunk(images_BCHW)
        logits_BC, gate_BE, own_BC = self.first.answer(x_BCHW)
        if self.fallback is not None:
            return FirstPass(logits_BC, logits_BC.softmax(1).amax(1), gate_BE, (images_BCHW,))
        best_B2 = gate_BE.softmax(1).topk(2).values
        margin_B = best_B2[:, 0] - best_B2[:, 1]
        return FirstPass(logits_BC, margin_B, gate_BE, (x_BCHW, gate_BE, own_BC))

    def second_pass(self, *inputs: torch.Tensor) -> torch.Tensor:
        """Classify deferred images, given the `inputs` of their first pass: logits (B, C)."""
        if isinstance(self.fallback, MoIST):
            images_BCHW, gate_BE = inputs
            return self.fallback.dispatch(images_BCHW, gate_BE.argmax(1))
        if self.fallback is not None:
            logits_BC: torch.Tensor = self.fallback(*inputs).float()
            return logits_BC
        assert isinstance(self.first, MoIST)
        return self.first.two_experts(*inputs)


def threshold_for(certainty_N: torch.Tensor, share: float) -> float:
    """Find the threshold below which `share` of the certainties lie, to the nearest image."""
    ordered_N = certainty_N.double().sort().values
    count = round(share * len(ordered_N))
    if count == 0:
        return NEVER
    if count == len(ordered_N):
        return ALWAYS
    return float(ordered_N[count])
