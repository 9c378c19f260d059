"""A network's entry in a registry: how to build it, and all that other code must know of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from moist.config import RoutingConfig, StudentConfig

Shape = tuple[int, int, int]
"""Of an image or of feature maps: channels, height, width."""
TRUNK = "trunk"
"""The submodule of a student, images to feature maps, that `router=shared` shares, if any."""


@dataclass(frozen=True)
class NetworkEntry:
    """A teacher or a student: a network from images to class logits."""

    build: Callable[..., nn.Module]
    """From an image shape, a number of outputs and the options."""
    last: str
    """The last linear layer."""
    levels: tuple[str, ...] = ()
    """Of a teacher: stages that give feature maps (B, C, H, W), shallow to deep."""
    stem: str = ""
    """Of a teacher: a convolution whose filters whiten the training images and stay frozen."""
    reduction: Callable[..., int] = lambda **options: 0
    """From the options, pixels a side of images that it reduces to one pixel before a batch norm;
    0: none are."""
    options: Callable[[StudentConfig, int], dict[str, Any]] = lambda student, hidden_width: {}
    """Of a student: its sizes, from its section and `hidden_width`; none to choose by default."""


@dataclass(frozen=True)
class RouterEntry:
    """A router: a network from images, or from a student's trunk, to cluster logits."""

    build: Callable[..., nn.Module]
    """From the shape that it reads, a number of outputs and the options."""
    options: Callable[[RoutingConfig], dict[str, Any]] = lambda routing: {}
    """Its sizes, from its section."""
    reads_trunk: bool = False
    """It reads the feature maps of the trunk that all students share."""
