"""Batches on the device; an augmented view is a function of (seed, view number, image).

The random numbers of a view are drawn on the CPU, whatever the device, so that every machine
trains on the same images, and the teacher's logits on a view can be stored and reused.

Shapes: N images of a split, B of a batch, H rows, W columns, C channels, P numbers an image.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import torch

from moist.config import AugmentConfig
from moist.data.random import generator
from moist.errors import ConfigError
from moist.store.artifacts import Dataset, Split

Channels = Sequence[float]


@dataclass(frozen=True)
class Batch:
    """Images ready for a network, their indices in the split, and their classes.

    `images_BCHW` is float32, normalized, in channels_last memory format. `view` is the number of
    their augmented view; None: not augmented. `epoch` counts passes from 0.
    """

    index_B: torch.Tensor
    images_BCHW: torch.Tensor
    labels_B: torch.Tensor
    view: int | None = None
    epoch: int = 0


@dataclass(frozen=True)
class Pass:
    """One pass over the training images: the number of their augmented view, that of their order,
    and whether each image (N,) is shown; None: all are."""

    view: int
    order: int
    shown_N: torch.Tensor | None = None


@dataclass(frozen=True)
class View:
    """How each image is augmented; `dy`, `dx` shift its content down and to the right."""

    flip_B: torch.Tensor
    dy_B: torch.Tensor
    dx_B: torch.Tensor
    cut_y_B: torch.Tensor
    cut_x_B: torch.Tensor

    def __getitem__(self, index_B: torch.Tensor) -> View:
        return View(*(getattr(self, field.name)[index_B] for field in fields(self)))

    def to(self, device: torch.device) -> View:
        return View(*(getattr(self, field.name).to(device) for field in fields(self)))


def draw(n: int, augment: AugmentConfig, shape: tuple[int, int], seed: int, view: int) -> View:
    """Draw view number `view` of n images of shape (H, W).

    An image's five random numbers depend neither on n nor on which augmentations are on. With
    `alternate`, odd views are mirrored, and `flip` is that of view 0, so that an image is seen
    from both sides in any two epochs (Jordan 2024). Raises ConfigError for a shift that
    reflection can't fill.
    """
    height, width = shape
    if augment.shift >= min(shape):
        raise ConfigError(
            f"`augment.shift={augment.shift}` is too far for {width}x{height} images",
            f"reflection reaches `augment.shift={min(shape) - 1}` at most",
        )
    uniform_NP = _uniform(n, seed, view)
    if augment.alternate:
        uniform_NP[:, 0] = _uniform(n, seed, 0)[:, 0]
    span = 2 * augment.shift + 1
    scale_P = torch.tensor([2, span, span, height, width])
    flip, dy, dx, cut_y, cut_x = (uniform_NP * scale_P).long().unbind(1)
    flip_B = (flip == 1) & torch.tensor(augment.flip)
    if augment.alternate and view % 2:
        flip_B = ~flip_B
    dy, dx = dy - augment.shift, dx - augment.shift
    return View(flip_B, dy, dx, cut_y_B=cut_y, cut_x_B=cut_x)


def _uniform(n: int, seed: int, view: int) -> torch.Tensor:
    """Draw the five random numbers of each image in a view, in [0, 1): float64 (N, 5)."""
    return torch.rand(n, 5, generator=generator(seed, "view", view), dtype=torch.float64)


def render(
    images_BHWC: torch.Tensor, view: View, augment: AugmentConfig, mean: Channels, std: Channels
) -> torch.Tensor:
    """Flip, shift with reflected borders, normalize, then erase a square to the mean.

    `view` is of these images. Returns float32 (B, C, H, W) in channels_last memory format.
    """
    if augment.flip or augment.shift or augment.alternate:
        images_BHWC = _flip_and_shift(images_BHWC, view)
    images_BCHW = normalize(images_BHWC, mean, std)
    if augment.cutout:
        images_BCHW.masked_fill_(_square(images_BHWC, view, augment.cutout), 0.0)
    return images_BCHW


def normalize(images_BHWC: torch.Tensor, mean: Channels, std: Channels) -> torch.Tensor:
    """Return (pixel / 255 - mean) / std, float32 (B, C, H, W) in channels_last memory format."""
    width = images_BHWC.shape[2]
    mean_C, std_C = (torch.tensor(values, dtype=torch.float64) for values in (mean, std))
    # A whole row of scales instead of C of them makes the inner loop long and vectorized.
    scale_WC = (1 / (255 * std_C)).float().repeat(width).to(images_BHWC.device)
    bias_WC = (-mean_C / std_C).float().repeat(width).to(images_BHWC.device)
    rows = images_BHWC.flatten(2).float().mul_(scale_WC).add_(bias_WC)
    return rows.view(images_BHWC.shape).permute(0, 3, 1, 2)


def batches(
    data: Dataset,
    one: Pass,
    *,
    augment: AugmentConfig,
    seed: int,
    batch_size: int,
    device: torch.device,
) -> Iterator[Batch]:
    """Yield the training images of a pass once, shuffled, at its augmented view.

    View and order are separate because distillation cycles through a few views, on which the
    teacher's logits are known, in a new order each epoch. A last batch of a single image joins
    the one before: batch norm can't train on one.
    """
    split = to_device(data.train, device)
    drawn = draw(len(split), augment, data.image_shape[1:], seed=seed, view=one.view).to(device)
    order_N = torch.randperm(len(split), generator=generator(seed, "order", one.order))
    if one.shown_N is not None:
        order_N = order_N[one.shown_N[order_N]]
    order_N = order_N.to(device)
    for index_B in _cut(order_N, batch_size):
        images_BHWC = split.images_NHWC[index_B]
        images_BCHW = render(images_BHWC, drawn[index_B], augment, mean=data.mean, std=data.std)
        yield Batch(index_B, images_BCHW, split.labels_N[index_B], one.view, one.order)


def plain_batches(
    split: Split, *, mean: Channels, std: Channels, batch_size: int, device: torch.device
) -> Iterator[Batch]:
    """Yield every image once, in order and not augmented; the last batch may be smaller."""
    split = to_device(split, device)
    index_N = torch.arange(len(split), device=device)
    for start in range(0, len(split), batch_size):
        here = slice(start, start + batch_size)
        images_BCHW = normalize(split.images_NHWC[here], mean, std)
        yield Batch(index_N[here], images_BCHW, split.labels_N[here])


def to_device(split: Split, device: torch.device) -> Split:
    """Move a split to a device, once before many passes; no copy if it is there."""
    return Split(split.images_NHWC.to(device), split.labels_N.to(device))


def _cut(order_N: torch.Tensor, batch_size: int) -> Iterator[torch.Tensor]:
    n = len(order_N)
    stops = [*range(batch_size, n, batch_size), n]
    if batch_size > 1 and len(stops) > 1 and n - stops[-2] == 1:
        del stops[-2]
    start = 0
    for stop in stops if n else ():
        yield order_N[start:stop]
        start = stop


def _flip_and_shift(images_BHWC: torch.Tensor, view: View) -> torch.Tensor:
    """Flip and shift by gathering pixels by index: nothing is padded, and copied once."""
    count, height, width, _ = images_BHWC.shape
    rows_BH = _reflect(view.dy_B, height)
    cols_BW = _reflect(view.dx_B, width)
    cols_BW = torch.where(view.flip_B[:, None], width - 1 - cols_BW, cols_BW)
    each_B = torch.arange(count, device=images_BHWC.device)
    return images_BHWC[each_B[:, None, None], rows_BH[:, :, None], cols_BW[:, None, :]]


def _reflect(offset_B: torch.Tensor, size: int) -> torch.Tensor:
    """Return (B, size): the source of each pixel of a shifted line; the edge is not repeated."""
    place = torch.arange(size, device=offset_B.device) + offset_B[:, None]
    return (size - 1) - ((size - 1) - place.abs()).abs()


def _square(images_BHWC: torch.Tensor, view: View, side: int) -> torch.Tensor:
    """Return (B, 1, H, W): whether a pixel lies in the image's square, which borders may clip."""
    _, height, width, _ = images_BHWC.shape
    inside = []
    for centre_B, size in ((view.cut_y_B, height), (view.cut_x_B, width)):
        place = torch.arange(size, device=centre_B.device) - centre_B[:, None] + side // 2
        inside.append((place >= 0) & (place < side))
    return (inside[0][:, :, None] & inside[1][:, None, :])[:, None]
