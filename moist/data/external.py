"""Data sets of other packages. N images, H rows, W columns, C channels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moist.config.plugins import CONTRACT, Registry
from moist.errors import DataError, MoistError, brief

Arrays = tuple[NDArray[np.uint8], NDArray[np.int64]]


@dataclass(frozen=True)
class DataEntry:
    """A data set: what is known of it before it is loaded, and how to load it."""

    classes: tuple[str, ...]
    image_shape: tuple[int, int, int]
    """Channels, height, width."""
    load: Callable[[Path | None], Mapping[str, tuple[Any, Any]]]
    """From `data.root`, or None: uint8 images (N, H, W, C) and labels (N,) of train and test."""
    what: str = ""
    """What and whose it is; moist sets it."""


def data_entry(found: Any, what: str) -> DataEntry:
    """Return the entry of another package's data set. Raises DataError if it is unfit."""
    if not isinstance(found, DataEntry):
        raise DataError(
            f"{what} is unfit: expected a `DataEntry`, found {type(found).__name__}", CONTRACT
        )
    classes, shape = tuple(map(str, found.classes)), tuple(found.image_shape)
    if len(set(classes)) < 2 or len(set(classes)) < len(classes):
        raise DataError(
            f"{what} is unfit: expected 2 or more different classes, found {classes}", CONTRACT
        )
    if len(shape) != 3 or shape[0] not in {1, 3}:
        raise DataError(
            f"{what} is unfit: expected the image shape (1 or 3, H, W), found {shape}", CONTRACT
        )
    return DataEntry(classes, shape, found.load, what)


def arrays_of(entry: DataEntry, root: Path | None) -> tuple[Arrays, Arrays]:
    """Load the training and test images of a data set. Raises DataError if they are unfit."""
    try:
        found = entry.load(root)
        splits = [tuple(map(np.asarray, found[name])) for name in ("train", "test")]
    except MoistError:
        raise
    except Exception as error:
        raise DataError(f"{entry.what} failed: load({root}) raised {brief(error)}") from error
    channels, height, width = entry.image_shape
    for name, (images, labels) in zip(("train", "test"), splits, strict=True):
        expected = ""
        if images.dtype != np.uint8 or images.shape[1:] != (height, width, channels):
            expected = f"uint8 images (N, {height}, {width}, {channels})"
        elif labels.shape != images.shape[:1] or labels.dtype.kind not in "iu":
            expected = f"{len(images)} whole numbers as labels"
        elif not set(np.unique(labels).tolist()) <= set(range(len(entry.classes))):
            expected = f"labels from 0 to {len(entry.classes) - 1}"
        elif len(np.unique(labels)) < len(entry.classes):
            expected = "an image of each class"
        if expected:
            raise DataError(
                f"{entry.what} is unfit: expected {expected} in `{name}`, found images"
                f" {images.dtype} {images.shape} and labels {labels.dtype} {labels.shape}"
                + (f" from {labels.min()} to {labels.max()}" if labels.size else ""),
                CONTRACT,
            )
    (train, train_labels), (test, test_labels) = splits
    return (train, train_labels.astype(np.int64)), (test, test_labels.astype(np.int64))


DATASETS: Registry[DataEntry] = Registry("datasets", {}, data_entry)
"""Those of other packages alone; moist reads its own in ways that differ more."""
