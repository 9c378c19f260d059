"""Classify images, and measure how well. N images, B a batch, C classes, E experts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from moist.data.augment import plain_batches
from moist.env import Env, autocast
from moist.nets.cascade import CascadeNet
from moist.nets.mixture import MoIST
from moist.store.artifacts import Dataset, NotFinite, Split, not_finite

EVAL_BATCH = 512


@contextmanager
def inference(module: nn.Module, device: torch.device, precision: str) -> Iterator[None]:
    """Switch to evaluation mode, without gradients, in the run's arithmetic."""
    was_training = module.training
    module.eval()
    try:
        with torch.inference_mode(), autocast(device, precision):
            yield
    finally:
        module.train(was_training)


@dataclass(frozen=True)
class Answers:
    """A model's answers on N images: class logits (N, C), and router logits (N, E) if it routes.

    Of a `CascadeNet`: `logits_NC` is the first pass, and every image has had a second, too.
    """

    logits_NC: torch.Tensor
    gate_NE: torch.Tensor | None = None
    certainty_N: torch.Tensor | None = None
    second_NC: torch.Tensor | None = None

    def below(self, threshold: float) -> torch.Tensor:
        """Return whether each image (N,) is deferred at a threshold."""
        assert self.certainty_N is not None
        return self.certainty_N < threshold

    def at_threshold(self, threshold: float) -> torch.Tensor:
        """Return logits (N, C): of the second pass below the threshold, else of the first."""
        assert self.second_NC is not None
        return torch.where(self.below(threshold)[:, None], self.second_NC, self.logits_NC)


def classify(env: Env, net: nn.Module, split: Split, data: Dataset, *, precision: str) -> Answers:
    """Classify a split's images. Only an oracle router reads the labels.

    Raises NotFinite for logits that are not finite: the largest of them would mean nothing.
    """
    parts: list[Answers] = []
    with inference(net, env.device, precision):
        for batch in plain_batches(
            split, mean=data.mean, std=data.std, batch_size=EVAL_BATCH, device=env.device
        ):
            parts.append(answers(net, batch.images_BCHW, batch.labels_B))
    joined = (_joined([getattr(part, f.name) for part in parts]) for f in fields(Answers))
    found = Answers(*joined)
    for logits_NX in (found.logits_NC, found.gate_NE, found.second_NC):
        if logits_NX is not None and (what := not_finite(logits_NX)):
            raise NotFinite(f"the model's logits of {len(split)} images have {what}")
    return found


def _joined(column: list[Any]) -> Any:
    """Join one field of all batches; None if no batch has it."""
    return None if column[0] is None else torch.cat(column)


def answers(
    net: nn.Module, images_BCHW: torch.Tensor, labels_B: torch.Tensor | None = None
) -> Answers:
    """Classify one batch, on the CPU; only an oracle router reads the labels."""
    if isinstance(net, MoIST):
        return Answers(*(x.float().cpu() for x in net.routed(images_BCHW, labels_B)))
    if isinstance(net, CascadeNet):
        first = net.first_pass(images_BCHW, labels_B)
        gate_BE = None if first.gate_BE is None else first.gate_BE.cpu()
        second_BC = net.second_pass(*first.inputs).cpu()
        return Answers(first.logits_BC.cpu(), gate_BE, first.certainty_B.cpu(), second_BC)
    return Answers(net(images_BCHW).float().cpu())


def accuracy(logits_NC: torch.Tensor, labels_N: torch.Tensor) -> float:
    """Return the share of images whose class has the largest logit."""
    return float((logits_NC.argmax(1) == labels_N).double().mean())


def calibration_error(probs_NC: torch.Tensor, labels_N: torch.Tensor, bins: int = 15) -> float:
    """Return the expected calibration error: mean |accuracy - confidence| over equal-width bins
    of the top probability, weighted by their images (Guo et al. 2017)."""
    confidence_N, predicted_N = probs_NC.max(1)
    hit_N = (predicted_N == labels_N).float()
    bin_N = (confidence_N * bins).long().clamp(0, bins - 1)
    gap = torch.zeros(bins, dtype=torch.float64).index_add_(
        0, bin_N, (hit_N - confidence_N).double()
    )
    return float(gap.abs().sum() / len(labels_N))


def negative_log_likelihood(logits_NC: torch.Tensor, labels_N: torch.Tensor) -> float:
    """Return the mean cross-entropy in nats."""
    return float(F.cross_entropy(logits_NC.double(), labels_N))


def class_means(values_N: torch.Tensor, group_N: torch.Tensor, groups: int) -> list[float]:
    """Average `values_N` in each group; 0 where a group has no image."""
    total = torch.zeros(groups, dtype=torch.float64).index_add_(0, group_N, values_N.double())
    return (total / torch.bincount(group_N, minlength=groups).clamp_min(1)).tolist()
