"""Decode raw files to tensors: uint8 pixels (N, H, W, C) and int64 classes (N,).

Images of a folder become RGB: grey is repeated, alpha is composited over black, 16 bits a pixel
are scaled to 8, and EXIF orientation is applied. Where `image_size` is set, an image of another
size is resized to a square of that side by Pillow's antialiased bicubic filter: its centre square
with `crop`, else all of it, which distorts images that are not square. Shapes: N images, H rows,
W columns, C channels.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import psutil
import torch
from numpy.typing import NDArray

from moist.config.plugins import split_name
from moist.data.external import DATASETS, arrays_of
from moist.data.fingerprint import stat
from moist.data.sources import Source, images_in, no_size_warning
from moist.data.torchvision_sets import open_public
from moist.errors import DataError, brief
from moist.store.artifacts import Split

if TYPE_CHECKING:
    from PIL.Image import Image

Pixels = NDArray[np.uint8]
Labels = NDArray[np.int64]
OnProgress = Callable[[int, int], None]
"""Called with the number of images done, and their total."""

CHUNK = 256
STD_FLOOR = 1 / 255


@no_size_warning()
def decode(source: Source, on_progress: OnProgress) -> tuple[Split, Split, Split | None]:
    """Return the training, test and validation images of a source, with their progress.

    The last are None where they are to be drawn from the training images. Raises DataError for an
    image that can't be decoded, and for images of different sizes without an `image_size`.
    """
    if split_name(source.name)[1]:
        train, test = arrays_of(DATASETS[source.name], source.root)
        check_memory(len(train[1]) + len(test[1]), train[0].shape[1:])
    elif source.root is None:
        train, test = _digits()
    elif source.name == "folder":
        return _folder(source.root, source, on_progress)
    else:
        train, test = (_public(source.name, source.root, train=part) for part in (True, False))
    total = len(train[1]) + len(test[1])
    splits, done = [], 0
    for images, labels_N in (train, test):
        sized = _sized(images, source.image_size, on_progress, done=done, total=total)
        splits.append(_split(sized, labels_N))
        done += len(labels_N)
    return splits[0], splits[1], None


@no_size_warning()
def read_image(path: Path, image_shape: tuple[int, int, int], crop: bool = False) -> torch.Tensor:
    """Read an image in the form of a data set with this (C, H, W): uint8 (H, W, C).

    With `crop` its centre is taken, else all of it is stretched. For one channel the image's
    luminance is taken. Raises DataError for a file that can't be decoded.
    """
    stat(path.name, path)
    return _fitted(opened(path), image_shape, crop)


def as_image(image: Image, image_shape: tuple[int, int, int], crop: bool = False) -> torch.Tensor:
    """Return an image of Pillow's in the form of `read_image`."""
    return _fitted(_upright(image), image_shape, crop)


def _fitted(image: Image, image_shape: tuple[int, int, int], crop: bool) -> torch.Tensor:
    """Return an RGB image as uint8 (H, W, C), for one channel its luminance."""
    channels, height, width = image_shape
    pixels = _resized(image.convert("L") if channels == 1 else image, (width, height), crop)
    return torch.from_numpy(pixels.reshape(height, width, channels).copy())


def mean_std(images_NHWC: torch.Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and population standard deviation of each channel, for pixels in [0, 1].

    Sums are of integers below 2**53, so they are exact in any order. A constant channel's
    deviation is raised to one grey level, so that dividing by it is safe.
    """
    channels = images_NHWC.shape[-1]
    sums, squares = np.zeros(channels), np.zeros(channels)
    for start in range(0, len(images_NHWC), CHUNK):
        pixels = images_NHWC[start : start + CHUNK].reshape(-1, channels).double()
        sums += pixels.sum(0).numpy()
        squares += pixels.square_().sum(0).numpy()
    n = images_NHWC.numel() // channels
    mean = [s / n / 255 for s in sums.tolist()]
    # Python's integers: n * sum(x^2) - sum(x)^2 loses every digit of a float for long sums.
    spread = [n * int(q) - int(s) ** 2 for s, q in zip(sums, squares, strict=True)]
    return tuple(mean), tuple(max((v / n**2) ** 0.5 / 255, STD_FLOOR) for v in spread)


def _split(images_NHWC: Pixels, labels_N: Labels) -> Split:
    return Split(
        torch.from_numpy(np.ascontiguousarray(images_NHWC)),
        torch.from_numpy(np.ascontiguousarray(labels_N, dtype=np.int64)),
    )


def _digits() -> tuple[tuple[Pixels, Labels], tuple[Pixels, Labels]]:
    """Return scikit-learn's digits, 8x8 and one channel, 0..16 scaled to 0..255.

    They are one set; the test images are a fifth of it by `train_test_split(test_size=0.2,
    stratify=labels, random_state=0)`, which never changes: 1437 for training, 360 to test.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    grey_NHW, labels_N = load_digits(return_X_y=True)
    images_NHWC = np.rint(grey_NHW * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
    train, test, train_labels, test_labels = train_test_split(
        images_NHWC, labels_N, test_size=0.2, stratify=labels_N, random_state=0
    )
    return (train, train_labels), (test, test_labels)


def _public(name: str, root: Path, *, train: bool) -> tuple[Pixels, Labels]:
    try:
        found = open_public(name, root, train=train)
    except (OSError, RuntimeError, ValueError, AssertionError) as error:
        raise DataError(
            f"can't read `{name}` in `{root}`: {brief(error)}",
            "delete the files there and run again to download them",
        ) from None
    if name == "svhn":
        return found.data.transpose(0, 2, 3, 1), found.labels
    images = np.asarray(found.data)
    return images.reshape(*images.shape[:3], -1), np.asarray(found.targets)


def _sized(
    images_NHWC: Pixels, size: int | None, on_progress: OnProgress, done: int, total: int
) -> Pixels:
    """Resize decoded images to a square of `size` pixels a side, if they have another size."""
    if size is None or images_NHWC.shape[1:3] == (size, size):
        on_progress(done + len(images_NHWC), total)
        return images_NHWC
    from PIL import Image

    channels = images_NHWC.shape[-1]

    def one(i: int) -> Pixels:
        image = Image.fromarray(images_NHWC[i, :, :, 0] if channels == 1 else images_NHWC[i])
        return _resized(image, (size, size)).reshape(size, size, channels)

    return _gather(len(images_NHWC), one, lambda count: on_progress(done + count, total))


def _folder(
    root: Path, source: Source, on_progress: OnProgress
) -> tuple[Split, Split, Split | None]:
    listed = [_listed(root / split, source.classes) for split in source.splits.folders]
    if source.held_out:
        paths, labels_N = listed[0]
        names = (path.relative_to(root).as_posix() for path in paths)
        is_test_N = np.array([name in source.held_out for name in names])
        listed = [
            ([path for path, is_test in zip(paths, is_test_N, strict=True) if is_test == wanted],
             labels_N[is_test_N == wanted])
            for wanted in (False, True)
        ]  # fmt: skip
    first, total = listed[0][0][0], sum(len(paths) for paths, _ in listed)
    shape, threads = _read(first, source).shape, _threads(first)
    check_memory(total, shape)

    def read(path: Path) -> Pixels:
        pixels = _read(path, source)
        if pixels.shape != shape:
            raise DataError(
                f"the images differ in size: `{first}` is {shape[1]}x{shape[0]},"
                f" `{path}` is {pixels.shape[1]}x{pixels.shape[0]}",
                "`data.image_size=32 data.crop=true` takes the centre of each at 32x32 pixels;"
                " `moist init ROOT` chooses a size",
            )
        return pixels

    def load(paths: list[Path], labels_N: Labels, done: int) -> Split:
        images_NHWC = _gather(
            len(paths),
            lambda i: read(paths[i]),
            lambda count: on_progress(done + count, total),
            threads,
        )
        return _split(images_NHWC, labels_N)

    done, loaded = 0, []
    for paths, labels_N in listed:
        loaded.append(load(paths, labels_N, done))
        done += len(paths)
    return loaded[0], loaded[1], loaded[2] if source.splits.val else None


def _listed(folder: Path, classes: tuple[str, ...]) -> tuple[list[Path], Labels]:
    """List the images of a split, by class and name, and their classes."""
    found = [[Path(entry.path) for entry in images_in(folder / name)] for name in classes]
    labels_N = np.repeat(np.arange(len(classes)), [len(paths) for paths in found])
    return [path for paths in found for path in paths], labels_N


def _gather(
    n: int, one: Callable[[int], Pixels], tick: Callable[[int], None], threads: int = 1
) -> Pixels:
    """Stack `one(i)` for i below n. Raises the error of the lowest i."""
    images_NHWC = np.empty((n, *one(0).shape), dtype=np.uint8)

    def fill(start: int) -> int:
        stop = min(start + CHUNK, n)
        for i in range(start, stop):
            images_NHWC[i] = one(i)
        return stop

    with ThreadPoolExecutor(threads) as pool:
        for stop in pool.map(fill, range(0, n, CHUNK)):
            tick(stop)
    return images_NHWC


def _threads(path: Path) -> int:
    """Return the number of threads to decode with.

    Pillow releases the GIL while it decodes, which pays off from about 100x100 pixels.
    """
    from PIL import Image

    with Image.open(path) as image:
        width, height = image.size
    return (os.cpu_count() or 1) if width * height >= 10_000 else 1


def check_memory(images: int, shape: Sequence[int]) -> None:
    """Raise DataError if the decoded images would fill the memory: photos kept at full size."""
    need, free = images * math.prod(shape), psutil.virtual_memory().available
    if need > free:
        raise DataError(
            f"{images:,} images of {shape[1]}x{shape[0]} pixels need {need / 1e9:.1f} GB of"
            f" memory, and {free / 1e9:.1f} GB are free",
            "set `data.image_size=64 data.crop=true` to take the centre of each at 64x64 pixels",
        )


def _read(path: Path, source: Source) -> Pixels:
    image, side = opened(path), source.image_size
    if side is None and source.crop:
        side = min(image.size)
    return _resized(image, None if side is None else (side, side), source.crop)


def opened(path: Path) -> Image:
    """Decode an image to RGB, turned as its EXIF orientation says. Raises DataError."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            return _upright(image)
    except Image.DecompressionBombError:
        raise DataError(
            f"`{path}` has more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels, which Pillow"
            " does not decode",
            "make it smaller, or remove it",
        ) from None
    except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
        raise DataError(f"can't read the image `{path}`: {error.strerror}") from None
    except Exception as error:  # decoders raise errors of any type on damaged bytes
        raise DataError(
            f"can't decode `{path}`: {brief(error)}",
            "remove the file, or re-encode it as 8-bit png or jpeg; `moist data check ROOT` lists"
            " all such files",
        ) from None


def _upright(image: Image) -> Image:
    """Return an image as RGB, turned as its camera was held."""
    from PIL import ImageOps

    return _rgb(ImageOps.exif_transpose(image))


def _rgb(image: Image) -> Image:
    from PIL import Image as pil

    if image.mode.startswith("I"):  # I;16 and its variants, and 16 bits widened to 32
        grey = np.asarray(image).astype(np.float64) / 257
        image = pil.fromarray(np.rint(grey.clip(0, 255)).astype(np.uint8))
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range")
    if image.has_transparency_data:
        black = pil.new("RGBA", image.size, (0, 0, 0, 255))
        image = pil.alpha_composite(black, image.convert("RGBA"))
    return image.convert("RGB")


def _resized(image: Image, size: tuple[int, int] | None, crop: bool = False) -> Pixels:
    """Resize an image, or the part in its centre of that shape, to `size`: (W, H) as in Pillow."""
    from PIL.Image import Resampling

    if size is not None and image.size != size:
        if crop:
            image = image.crop(_centre(image.size, size))
        image = image.resize(size, Resampling.BICUBIC)
    return np.asarray(image)


def _centre(size: tuple[int, int], shape: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return the largest centred box of a shape within a size: left, upper, right, lower."""
    scale = min(have / want for have, want in zip(size, shape, strict=True))
    width, height = (max(round(want * scale), 1) for want in shape)
    left, upper = (size[0] - width) // 2, (size[1] - height) // 2
    return left, upper, left + width, upper + height
