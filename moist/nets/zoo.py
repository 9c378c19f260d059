"""Teachers of torchvision and timm: any of their classifiers, as it is, on resized images.

B images, C channels, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from moist.errors import unknown
from moist.nets.entry import NetworkEntry, Shape, network_entry

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and deviation of the pixels that torchvision's networks are trained on."""
SIDE = 224
AUXILIARY = {"googlenet", "inception_v3"}
"""Networks of torchvision's that give more than logits when they train."""


def torchvision_entry(name: str) -> NetworkEntry:
    """Return the entry of a classifier of torchvision's. Raises ConfigError for another name."""
    from torchvision import models

    _check_known(name, set(models.list_models(module=models)) - AUXILIARY, "torchvision")

    def build(outputs: int) -> tuple[nn.Module, Shape, tuple[Any, Any]]:
        return models.get_model(name, weights=None, num_classes=outputs), (3, SIDE, SIDE), IMAGENET

    return _entry(build, f"`{name}` of torchvision")


def timm_entry(name: str) -> NetworkEntry:
    """Return the entry of a classifier of timm's. Raises ConfigError for another name."""
    import timm

    _check_known(name.partition(".")[0], timm.list_models(), "timm")

    def build(outputs: int) -> tuple[nn.Module, Shape, tuple[Any, Any]]:
        net: nn.Module = timm.create_model(name, pretrained=False, num_classes=outputs)
        facts: Any = net.pretrained_cfg
        return net, facts["input_size"], (facts["mean"], facts["std"])

    return _entry(build, f"`{name}` of timm")


def _entry(
    build: Callable[[int], tuple[nn.Module, Shape, tuple[Any, Any]]], what: str
) -> NetworkEntry:
    """Return the entry of a network that is built with the shape and the pixels that it needs.

    A hook resizes images before its first layer, so that its state dict keeps its names.
    """

    def built(
        image_shape: Shape,
        outputs: int,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
    ) -> nn.Module:
        net, needed, pixels = build(outputs)
        scale = shift = None
        if mean is not None and std is not None:
            mean_C, std_C, own_mean_C, own_std_C = (
                torch.tensor(values).float() for values in (mean, std, *pixels)
            )
            scale, shift = std_C / own_std_C, (mean_C - own_mean_C) / own_std_C
        net.register_forward_pre_hook(partial(_resize, needed, scale, shift))
        return net

    return network_entry(NetworkEntry(built, normalizes=True), what)


def _resize(
    shape: Shape,
    scale_C: torch.Tensor | None,
    shift_C: torch.Tensor | None,
    _: nn.Module,
    inputs: tuple[torch.Tensor],
) -> tuple[torch.Tensor]:
    """Give images the channels, the normalization and the size that a network was made for."""
    channels, *size = shape
    x_BCHW = inputs[0]
    if x_BCHW.shape[1] == 1:
        x_BCHW = x_BCHW.expand(-1, channels, -1, -1)
    if scale_C is not None and shift_C is not None:
        scale, shift = (v.to(x_BCHW.device)[:, None, None] for v in (scale_C, shift_C))
        x_BCHW = x_BCHW * scale + shift
    if list(x_BCHW.shape[2:]) != size:
        smaller = any(have > want for have, want in zip(x_BCHW.shape[2:], size, strict=True))
        x_BCHW = F.interpolate(x_BCHW, size, mode="bilinear", antialias=smaller)
    return (x_BCHW,)


def _check_known(name: str, known: Iterable[str], package: str) -> None:
    names = sorted(known)
    if name not in names:
        listed = f"`{package}` has {len(names)} networks, as {', '.join(names[:3])}"
        raise unknown(f"network of {package}", name, names, listed)
