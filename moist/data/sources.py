"""Find a data set's raw files, and identify their content.

`locate` does both without decoding an image, in well under a second once the files have been
read before; `moist.data.decode.decode` turns them into tensors. Nothing heavy is imported at the
top of this file: a run that only reuses results calls `locate`, too.
"""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from moist import config
from moist.data.fingerprint import File, digest, fingerprint, read, signature_of, stat
from moist.data.torchvision_sets import DIGITS, PUBLIC, public_files
from moist.errors import DataError

EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff")
LAYOUT = "the layout is `ROOT/train/<class>/*.png` and `ROOT/test/<class>/*.png`"
SPLITS = ("train", "test")


@dataclass(frozen=True)
class Source:
    """A data set's raw files; `key` digests their content, format and `image_size`, not the path.

    Classes are known before anything is decoded, so that a config can be checked against them.
    """

    name: str
    root: Path | None
    image_size: int | None
    classes: tuple[str, ...]
    key: str
    pixels: tuple[int, int] | None = None
    """Height and width, if known before decoding."""
    signature: str | None = None
    """A digest of names, sizes and times of the files below `root` when they were read."""
    images: int | None = None
    """How many there are, if known before decoding."""

    def __str__(self) -> str:
        """Describe the content, so that two data sets that differ read differently."""
        images = "" if self.images is None else f", {self.images:,} images"
        return f"`{self.name}` with {len(self.classes)} classes{images} (content {self.key[:12]})"


def locate(data: config.DataConfig, home: Path, fetch: bool = True) -> Source:
    """Find the raw files, downloading a public set that is missing, and digest their content.

    Raises DataError if they are missing (with `fetch=False`: not downloaded yet), unreadable or
    not laid out as classes.
    """
    root, signature, images = None, None, None
    pixels: tuple[int, int] | None
    if data.name == "digits":
        classes, pixels, content = DIGITS, (8, 8), digest(read(_digits_file()))
    else:
        root = _root_of(data, home)
        classes, files = _found(data.name, root, fetch)
        signature = signature_of(files)
        content = fingerprint(root, files, signature, home)
        images = len(files) if data.name == "folder" else None
        side = PUBLIC[data.name].side if data.name in PUBLIC else None
        pixels = (side, side) if side else size_of(root / files[0].name)
    key = digest(json.dumps([data.name, content, data.image_size]).encode())
    if data.image_size is not None:
        pixels = (data.image_size, data.image_size)
    return Source(
        data.name, root, data.image_size, classes, key=key, pixels=pixels, signature=signature,
        images=images,
    )  # fmt: skip


def check_untouched(source: Source) -> None:
    """Raise DataError if files were changed, added or removed since they were digested."""
    if source.root is None:
        return
    _, files = _found(source.name, source.root, fetch=False)
    if signature_of(files) != source.signature:
        raise DataError(f"the files in `{source.root}` changed while they were read", "run again")


def _root_of(data: config.DataConfig, home: Path) -> Path:
    if data.name != "folder":
        return _expanded(data.root or home / "data" / "downloads" / data.name)
    if data.root is None:
        raise DataError("`data.name=folder` needs `data.root`", f"`data.root=ROOT`; {LAYOUT}")
    root = _expanded(data.root)
    if not root.exists():
        raise DataError(f"`data.root={root}` does not exist", LAYOUT)
    if not root.is_dir():
        raise DataError(f"`data.root={root}` is a file, not a folder", LAYOUT)
    return root


def _found(name: str, root: Path, fetch: bool) -> tuple[tuple[str, ...], list[File]]:
    """List the classes and raw files below a root, of a folder data set or a public one."""
    if name == "folder":
        return _survey(root)
    return PUBLIC[name].classes, public_files(name, root, fetch)


def size_of(path: Path) -> tuple[int, int] | None:
    """Read height and width from an image's header; None for a file that can't be decoded."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            return image.height, image.width
    except (OSError, ValueError, Image.DecompressionBombError):
        return None


def images_in(folder: Path) -> list[os.DirEntry[str]]:
    """List the images directly in a folder, by name, without hidden files."""
    return [e for e in _scan(folder) if e.name.lower().endswith(EXTENSIONS) and not e.is_dir()]


def stratified_split(
    labels_N: NDArray[np.int64], fraction: float, seed: int = 0
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Split each class into training and validation; return the sorted indices of both.

    Each class of n images gives round(fraction * n) to validation: at least one of two or more
    unless the fraction is 0, and never its last training image. The seed is not the run's, so
    that all runs of a sweep are compared on the same images. RandomState, because numpy
    guarantees that its stream never changes, unlike that of `default_rng`.
    """
    random = np.random.RandomState(seed)
    held_out = np.zeros(len(labels_N), dtype=bool)
    for label in np.unique(labels_N):
        members = random.permutation(np.flatnonzero(labels_N == label))
        wanted = max(round(fraction * len(members)), 1) if fraction > 0 else 0
        held_out[members[: min(wanted, len(members) - 1)]] = True
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def _expanded(root: Path) -> Path:
    """Expand `~`, as shells do not in `data.root=~/x`. Raises DataError if access is denied."""
    try:
        root = root.expanduser()
        root.exists()
    except (OSError, RuntimeError) as error:
        raise DataError(f"can't read `data.root={root}`: {error}") from None
    return root


def _survey(root: Path) -> tuple[tuple[str, ...], list[File]]:
    """List the classes and images of a folder data set. Raises DataError for another layout."""
    found = _folders(root)
    for split in SPLITS:
        if split not in found:
            raise DataError(f"`{root}` has no folder `{split}`; found {_named(found)}", LAYOUT)
    classes = _same_classes(root)
    files = []
    for split in SPLITS:
        for name in classes:
            images = images_in(root / split / name)
            if not images:
                folder = root / split / name
                listed = _named(entry.name for entry in _scan(folder))
                raise DataError(
                    f"`{folder}` contains no image; found {listed}",
                    f"images are files named {' '.join(f'*{one}' for one in EXTENSIONS)}",
                )
            files += [stat(f"{split}/{name}/{entry.name}", entry) for entry in images]
    return classes, files


def _same_classes(root: Path) -> tuple[str, ...]:
    train, test = (_folders(root / split) for split in SPLITS)
    if train != test:
        raise DataError(
            f"the classes of `{root}` differ: only in `train` {_named(set(train) - set(test))},"
            f" only in `test` {_named(set(test) - set(train))}",
            "give both the same class folders",
        )
    if len(train) < 2:
        raise DataError(
            f"`{root / 'train'}` needs 2 or more class folders; found {_named(train)}", LAYOUT
        )
    return tuple(train)


def _folders(root: Path) -> list[str]:
    return [entry.name for entry in _scan(root) if entry.is_dir()]


def _scan(folder: Path) -> list[os.DirEntry[str]]:
    """List a folder's entries by name, without hidden ones."""
    try:
        with os.scandir(folder) as entries:
            visible = [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise DataError(f"can't read `{folder}`: {error.strerror}") from None
    return sorted(visible, key=lambda entry: entry.name)


def _named(names: Iterable[str], shown: int = 5) -> str:
    """Join names as in "`a`, `b` and 3 more"."""
    every = sorted(names)
    more = f" and {len(every) - shown} more" if len(every) > shown else ""
    return ", ".join(f"`{name}`" for name in every[:shown]) + more if every else "none"


def _digits_file() -> Path:
    """Find the digits in scikit-learn's folder, without importing it."""
    spec = importlib.util.find_spec("sklearn")
    folders = spec.submodule_search_locations if spec else None
    if not folders:
        raise DataError("`data.name=digits` needs scikit-learn", "`pip install scikit-learn`")
    return Path(folders[0]) / "datasets" / "data" / "digits.csv.gz"
