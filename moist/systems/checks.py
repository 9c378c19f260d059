"""Check a config against its data, as soon as the raw files are found."""

from __future__ import annotations

from moist.config import Config, flat
from moist.config.systems import SYSTEMS
from moist.data.sources import Source
from moist.errors import ConfigError
from moist.nets.cnn import STUDENTS
from moist.stages.teacher import check_fits, weights_of

SMALLEST = 4
"""Pixels a side of the smallest image that two 2x2 poolings leave a pixel of."""


def check(config: Config, source: Source) -> None:
    """Raise ConfigError for what cannot work on these data, before anything is computed.

    The content of the teacher's weights is checked, too. The source may be that of another
    `data.image_size`.
    """
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
    if weights := weights_of(config.teacher):
        check_fits(weights, config.teacher.arch, (source.channels, *pixels), classes)
