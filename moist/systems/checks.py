"""Check a config against its data, as soon as the raw files are found."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from moist.config import Config, flat
from moist.config.plugins import split_name
from moist.config.systems import SYSTEMS, known_students
from moist.data.random import seeded
from moist.data.sources import Source
from moist.errors import ConfigError, StageError
from moist.measure.multiply_adds import count_flops
from moist.nets.cnn import STUDENTS, TEACHERS
from moist.nets.entry import Shape
from moist.nets.onnx_graph import check_installed
from moist.nets.routers import ROUTERS
from moist.stages.teacher import Start, WeightsFile, other_head, weights_of
from moist.training.distillation import SOFT

SMALLEST = 4
"""Pixels a side of the smallest image that two 2x2 poolings leave a pixel of."""


def check(config: Config, source: Source) -> None:
    """Raise ConfigError for what cannot work on these data, before anything is computed.

    The content of the teacher's weights is checked, too. The source may be that of another
    `data.image_size`.
    """
    if config.latency.runtime == "onnxruntime":
        check_installed("onnx", "onnxruntime")
    classes, clusters = len(source.classes), SYSTEMS[config.system].clusters
    if clusters and config.k != "auto" and config.k > classes:
        raise ConfigError(
            f"`k={config.k}` is more clusters than `{source.name}` has classes ({classes})",
            f"set k between 1 and {classes}",
        )
    if clusters and config.k == "auto" and classes < 3:
        raise ConfigError(f"`k=auto` needs 3 or more classes, found {classes}", "set k=1 or k=2")
    side = config.data.image_size
    if not (pixels := (side, side) if side else source.pixels):
        return
    short, long = sorted(pixels)
    images = f"{pixels[1]}x{pixels[0]} images"
    if short < SMALLEST:
        raise ConfigError(
            f"two poolings leave nothing of {images}", f"set `data.image_size={SMALLEST}` or more"
        )
    arch = flat(config)[key := SYSTEMS[config.system].expert]
    entry = STUDENTS[arch]
    reduction = entry.reduction(**entry.options(config.student, config.hidden_width))
    if clusters and long <= reduction:
        raise ConfigError(
            f"`{key}={arch}` leaves one pixel of {images},"
            " and batch norm can't train an expert on a single image of one pixel",
            f"set `data.image_size={2 * reduction}`, or `system=student`",
        )
    if config.augment.shift >= short:
        raise ConfigError(
            f"`augment.shift={config.augment.shift}` is too far for {images}",
            f"reflection reaches `augment.shift={short - 1}` at most",
        )
    shape = (source.channels, *pixels)
    _check_external(config, shape, classes)
    given_weights(config, source)


def given_weights(config: Config, source: Source) -> tuple[WeightsFile | None, str]:
    """Find the file of a teacher's weights, and a note if its head is for other classes.

    Raises ConfigError for a file that is missing or does not fit.
    """
    weights, side = weights_of(config.teacher), config.data.image_size
    pixels = (side, side) if side else source.pixels
    if not weights or not pixels:
        return weights, ""
    shape = (source.channels, *pixels)
    if not (other := other_head(weights, config.teacher.arch, shape, len(source.classes))):
        return weights, ""
    return Start(weights.path), (
        f"teacher.weights `{weights.path}`: took {other}; the teacher is trained from them for"
        f" `teacher.epochs={config.teacher.epochs}`"
    )


def _check_external(config: Config, image_shape: Shape, classes: int) -> None:
    """Raise ConfigError for what other packages add and can't be used."""
    c = config
    if c.distill.loss == "moe_kd":
        for key, entry, levels in (
            ("teacher.arch", TEACHERS[c.teacher.arch], True),
            ("student.arch", STUDENTS[c.student.arch], False),
        ):
            if not entry.last or (levels and not entry.levels):
                raise ConfigError(
                    f"`distill.loss=moe_kd` needs the last layer{' and levels' * levels} of a"
                    f" network, and `{key}={flat(c)[key]}` does not name them",
                    "use another loss, or a network of moist's",
                )
    elif split_name(c.distill.loss)[1]:
        _check_loss(c, classes)
    for name, registry in ((c.teacher.arch, TEACHERS), (c.student.arch, STUDENTS)):
        if split_name(name)[1]:
            _check_network(registry[name].build, name, image_shape, classes, ())
    if "router" in SYSTEMS[c.system].reads and split_name(c.router)[1]:
        router, outputs = ROUTERS[c.router], known_students(c) or 2
        options = tuple(router.options(c.routing).items())
        _check_network(router.build, c.router, image_shape, outputs, options)


def _check_loss(config: Config, classes: int) -> None:
    """Call a loss once: it raises ConfigError if it gives no scalar with a gradient."""
    logits_BC = torch.eye(classes, requires_grad=True)
    SOFT[config.distill.loss](
        logits_BC, -logits_BC.detach(), torch.arange(classes), config.distill,
        temperature=config.temperature,
    )  # fmt: skip


@lru_cache(maxsize=256)
def _check_network(
    build: Callable[..., nn.Module],
    name: str,
    image_shape: Shape,
    outputs: int,
    options: tuple[tuple[str, Any], ...],
) -> None:
    """Raise ConfigError for a network that can't be built or counted."""
    with seeded(0, "untrained"):
        net = build(image_shape, outputs, **dict(options))
    try:
        count_flops(net, image_shape)
    except StageError as error:
        raise ConfigError(f"`{name}`: {error.args[0]}", "choose another network") from None
