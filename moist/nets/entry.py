"""A network's entry in a registry: how to build it, and all that other code must know of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from moist.config import RoutingConfig, StudentConfig
from moist.config.plugins import CONTRACT
from moist.errors import ConfigError, MoistError, brief

Shape = tuple[int, int, int]
"""Of an image or of feature maps: channels, height, width."""
TRUNK = "trunk"
"""The submodule of a student, images to feature maps, that `router=shared` shares, if any."""


@dataclass(frozen=True)
class NetworkEntry:
    """A teacher or a student: a network from images to class logits."""

    build: Callable[..., nn.Module]
    """From an image shape, a number of outputs and the options."""
    last: str = ""
    """The last linear layer; only `distill.loss=moe_kd` needs it."""
    levels: tuple[str, ...] = ()
    """Of a teacher: stages that give feature maps (B, C, H, W), shallow to deep."""
    stem: str = ""
    """Of a teacher: a convolution whose filters whiten the training images and stay frozen."""
    normalizes: bool = False
    """Of a teacher: it is built with `mean` and `std`, the normalization of its images, too."""
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


def network_entry(found: Any, what: str) -> NetworkEntry:
    """Return the entry of a network of another package's, which checks what it builds.

    Raises ConfigError unless it is an entry or a function that builds the network.
    """
    entry = NetworkEntry(found) if callable(found) else found
    if not isinstance(entry, NetworkEntry):
        raise _unfit(what, found, "`build(image_shape, outputs)` or a `NetworkEntry`")
    return replace(entry, build=checked(entry.build, what))


def router_entry(found: Any, what: str) -> RouterEntry:
    """Return the entry of a router of another package's, as `network_entry` does."""
    entry = RouterEntry(found) if callable(found) else found
    if not isinstance(entry, RouterEntry) or entry.reads_trunk:
        expected = "`build(image_shape, outputs)` or a `RouterEntry` that reads images"
        raise _unfit(what, found, expected)
    return replace(entry, build=checked(entry.build, what))


def checked(build: Callable[..., nn.Module], what: str) -> Callable[..., nn.Module]:
    """Return a function that builds a network, and raises ConfigError for one that is unfit.

    The first of each shape answers for two black images.
    """
    passed: set[str] = set()

    def built(image_shape: Shape, outputs: int, **options: Any) -> nn.Module:
        called = f"({tuple(image_shape)}, {outputs})"
        try:
            net = build(tuple(image_shape), outputs, **options)
        except MoistError:
            raise
        except Exception as error:
            raise ConfigError(f"{what} failed: build{called} raised {brief(error)}") from error
        expected = f"of build{called} a torch.nn.Module"
        if not isinstance(net, nn.Module):
            raise _unfit(what, net, expected)
        if any(nn.parameter.is_lazy(one) for one in [*net.parameters(), *net.buffers()]):
            raise _unfit(what, "lazy parameters", f"{expected} whose parameters have shapes")
        case = f"{called} {options}"
        if case not in passed:
            _check_answer(net, what, image_shape, outputs)
            passed.add(case)
        return net.train()

    return built


def _check_answer(net: nn.Module, what: str, image_shape: Shape, outputs: int) -> None:
    """Raise ConfigError unless a network gives logits for two images."""
    shape, device = (2, *image_shape), next((p.device for p in net.parameters()), None)
    try:
        with torch.no_grad():
            answer = net.eval()(torch.zeros(shape, device=device))
    except Exception as error:
        raise ConfigError(f"{what} failed on images {shape}: {brief(error)}") from error
    fits = isinstance(answer, torch.Tensor) and answer.is_floating_point()
    if not fits or answer.shape != (2, outputs):
        raise _unfit(what, answer, f"logits {(2, outputs)} of images {shape}")


def _unfit(what: str, found: Any, expected: str) -> ConfigError:
    shown = found if isinstance(found, str) else type(found).__name__
    if isinstance(found, torch.Tensor):
        shown = f"{str(found.dtype).removeprefix('torch.')} {tuple(found.shape)}"
    return ConfigError(f"{what} is unfit: expected {expected}, found {shown}", CONTRACT)
