"""Teachers that train in minutes: a whitening stem and three plain blocks, in two widths.

The forms of airbench94 and airbench95 (Jordan, "94% on CIFAR-10 in 3.29 seconds", 2404.00498).
B images, C channels, H x W pixels, N images of a data set, P numbers of a patch, M patches.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from moist.nets.entry import Shape

PATCH = 2
"""Pixels a side of the patches that the stem whitens."""
VARIANCE = 5e-4
"""Added to a patch direction's variance, so that a flat one is not blown up."""
TEMPER = 9
"""The logits are divided by it."""


class BiasNorm(nn.BatchNorm2d):
    """Batch norm that learns a bias and no scale."""

    def __init__(self, width: int) -> None:
        super().__init__(width, eps=1e-12, momentum=0.4, affine=False)
        self.bias = nn.Parameter(torch.zeros(width))


class FastBlock(nn.Module):
    """Convolution 3x3, max-pool, batch norm, GELU; the same without the pooling."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.norm1 = BiasNorm(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = BiasNorm(outputs)
        for layer in (self.conv1, self.conv2):  # at first the maps pass through unchanged
            nn.init.dirac_(layer.weight.data[: layer.in_channels])

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        x = self.conv1(x_BCHW)
        x = F.max_pool2d(x, [min(2, int(side)) for side in x.shape[2:]])  # small: one pixel
        x = F.gelu(self.norm1(x))
        return F.gelu(self.norm2(self.conv2(x)))


class FastNet(nn.Module):
    """Whitening stem (`whiten`), three blocks, the maximum over pixels, a linear layer."""

    def __init__(self, image_shape: Shape, outputs: int, widths: tuple[int, int, int]) -> None:
        super().__init__()
        depth = image_shape[0]
        inputs = 2 * depth * PATCH**2
        self.stem = nn.Conv2d(depth, inputs, PATCH)
        nn.init.zeros_(self.stem.bias)  # type: ignore[arg-type]
        first, second, third = widths
        self.blocks = nn.Sequential(
            FastBlock(inputs, first), FastBlock(first, second), FastBlock(second, third)
        )
        self.fc = nn.Linear(third, outputs, bias=False)

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        """Return class logits (B, C)."""
        x = self.blocks(F.gelu(self.stem(x_BCHW)))
        x = F.max_pool2d(x, [int(side) for side in x.shape[2:]]).flatten(1)
        logits: torch.Tensor = self.fc(x / TEMPER)
        return logits


def fastnet(image_shape: Shape, outputs: int) -> nn.Module:
    """Build airbench94's form: 118.15 M multiply-adds on 32x32 images."""
    return FastNet(image_shape, outputs, (64, 256, 256))


def fastnet_wide(image_shape: Shape, outputs: int) -> nn.Module:
    """Build airbench95's form: 301.6 M multiply-adds on 32x32 images."""
    return FastNet(image_shape, outputs, (128, 384, 384))


def whiten(stem: nn.Conv2d, images_NCHW: torch.Tensor) -> None:
    """Set a stem's filters to the whitened principal directions of its patches, and their
    negatives, and freeze them. `images_NCHW` are normalized."""
    filters = principal_filters(images_NCHW.double(), stem.kernel_size[0])
    stem.weight.data.copy_(torch.cat((filters, -filters)))
    stem.weight.requires_grad_(False)


def principal_filters(images_NCHW: torch.Tensor, side: int) -> torch.Tensor:
    """Return the eigenvectors (P, C, side, side) of the covariance of all patches, each divided
    by the deviation along it; largest first, and the largest number of each positive."""
    size = images_NCHW.shape[1] * side**2
    total_P, moment_PP = images_NCHW.new_zeros(size), images_NCHW.new_zeros(size, size)
    count = 0
    for part in torch.split(images_NCHW, 500):  # all patches at once are four times the images
        patches_PM = F.unfold(part, side).transpose(0, 1).flatten(1)
        total_P += patches_PM.sum(1)
        moment_PP += patches_PM @ patches_PM.T
        count += patches_PM.shape[1]
    mean_P = total_P / count
    variance_P, vectors_PP = torch.linalg.eigh(moment_PP / count - mean_P.outer(mean_P))
    filters_PP = vectors_PP.T / (variance_P.clamp_min(0) + VARIANCE).sqrt()[:, None]
    peak_P1 = filters_PP.gather(1, filters_PP.abs().argmax(1, keepdim=True))
    signed_PP: torch.Tensor = (filters_PP * peak_P1.sign()).flip(0)
    return signed_PP.view(size, images_NCHW.shape[1], side, side)
