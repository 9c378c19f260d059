"""Narrow residual networks that spend few multiply-adds. B images, C channels, H x W pixels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from moist.nets.entry import Shape


class Block(nn.Module):
    """A 3x3 convolution with batch norm around a shortcut that has no weights, then ReLU.

    The shortcut averages 2x2 pixels where the convolution halves the image, and channels that it
    lacks are zeros. It costs no multiply-adds, where a 1x1 convolution would cost 2 % of a
    network's, and each of its cases is itself a 3x3 convolution: after training all of a block
    could be folded into one, as RepVGG's branches are (Ding et al. 2021).
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(outputs)
        self.stride, self.more = stride, outputs - inputs

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        y_BCHW = self.bn(self.conv(x_BCHW))
        if self.stride > 1:
            x_BCHW = F.avg_pool2d(x_BCHW, self.stride, ceil_mode=True)
        if self.more:  # below 0 it drops channels
            x_BCHW = F.pad(x_BCHW, (0, 0, 0, 0, 0, self.more))
        return F.relu(y_BCHW + x_BCHW)


class Staged(nn.Module):
    """A stem and stages of convolutions, global average pooling and one linear layer.

    Stem and all stages but the last are the trunk that `router=shared` shares.
    """

    def __init__(
        self, stem: nn.Conv2d, stages: Sequence[nn.Module], width: int, outputs: int
    ) -> None:
        super().__init__()
        first = nn.Sequential(stem, nn.BatchNorm2d(stem.out_channels), nn.ReLU())
        self.trunk = nn.Sequential(first, *stages[:-1])
        self.last = stages[-1]
        self.fc = nn.Linear(width, outputs)

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        """Return class logits (B, C)."""
        x_BCHW = F.adaptive_avg_pool2d(self.last(self.trunk(x_BCHW)), 1)
        logits_BC: torch.Tensor = self.fc(x_BCHW.flatten(1))
        return logits_BC


LEVELS = ("trunk.1", "trunk.2", "last")
"""The stages of a network of three."""


def residual(
    image_shape: Shape, outputs: int, channels: tuple[int, ...], blocks: tuple[int, ...]
) -> nn.Module:
    """Build a narrow residual network: the stem halves the image, and so does each later stage.

    `blocks` are the convolutions of each stage, or one number for all.
    """
    inputs, stages = channels[0], []
    counts = blocks if len(blocks) > 1 else blocks * len(channels)
    for i, (width, count) in enumerate(zip(channels, counts, strict=True)):
        first = Block(inputs, width, stride=2 if i else 1)
        stages.append(nn.Sequential(first, *(Block(width, width) for _ in range(count - 1))))
        inputs = width
    stem = nn.Conv2d(image_shape[0], channels[0], 3, stride=2, padding=1, bias=False)
    return Staged(stem, stages, inputs, outputs)


def pooled_residual(image_shape: Shape, outputs: int, channels: tuple[int, ...]) -> nn.Module:
    """Build a wider network of the form of KellerJordan's airbench94: a 2x2 stem that keeps the
    resolution, and stages of a convolution, max-pooling and a convolution.

    Ours: a shortcut around each second convolution, ReLU, a trained stem, and average pooling.
    """
    depth, height, width = image_shape
    inputs, sides, stages = 24, (height - 1, width - 1), []
    for outs in channels:
        pool = nn.MaxPool2d((min(2, sides[0]), min(2, sides[1])))  # one pixel is kept
        conv = nn.Conv2d(inputs, outs, 3, padding=1, bias=False)
        stages.append(
            nn.Sequential(conv, pool, nn.BatchNorm2d(outs), nn.ReLU(), Block(outs, outs))
        )
        inputs, sides = outs, (max(1, sides[0] // 2), max(1, sides[1] // 2))
    return Staged(nn.Conv2d(depth, 24, 2, bias=False), stages, inputs, outputs)
