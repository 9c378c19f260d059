"""Where a data set's raw files are, and what identifies their content.

`locate` answers both without decoding an image, in well under a second once the files have been
read before; `moist.data.decode.decode` turns what it found into tensors. Nothing heavy is imported
here at the top: a run that only reuses results passes through `locate`.
"""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from moist import config
from moist.data.fingerprint import File, fingerprint, read, sha, signed, stated
from moist.data.torchvision_sets import DIGITS, PUBLIC, public_files
from moist.errors import DataError

EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff")
LAYOUT = "the layout is `ROOT/train/<class>/*.png` and `ROOT/test/<class>/*.png`"
SPLITS = ("train", "test")


@dataclass(frozen=True)
class Source:
    """Raw files found; `key` digests their content, the format and `image_size`, never the path.

    Classes are known before anything is decoded, so that a request can be checked against them.
    """

    name: str
    root: Path | None
    image_size: int | None
    classes: tuple[str, ...]
    key: str
    pixels: tuple[int, int] | None = None
    """Height and width, where known before decoding."""
    signature: str | None = None
    """Names, sizes and times of the files below `root`, as they were digested."""


def locate(data: config.DataConfig, home: Path, fetch: bool = True) -> Source:
    """Find the raw files, downloading a public set that isn't there, and digest their content.

    Raises DataError when they are missing (with `fetch=False`: not downloaded yet), unreadable or
    not laid out as classes.
    """
    root, signature = None, None
    pixels: tuple[int, int] | None
    if data.name == "digits":
        classes, pixels, content = DIGITS, (8, 8), sha(read(_digits_file()))
    else:
        root = _root_of(data, home)
        classes, files = _found(data.name, root, fetch)
        signature = signed(files)
        content = fingerprint(root, files, signature, home)
        side = PUBLIC[data.name].side if data.name in PUBLIC else None
        pixels = (side, side) if side else size_of(root / files[0].name)
    key = sha(json.dumps([data.name, content, data.image_size]).encode())
    if data.image_size is not None:
        pixels = (data.image_size, data.image_size)
    return Source(data.name, root, data.image_size, classes, key, pixels, signature)


def check_untouched(source: Source) -> None:
    """Raise DataError if files were changed, added or removed since they were digested."""
    if source.root is None:
        return
    _, files = _found(source.name, source.root, fetch=False)
    if signed(files) != source.signature:
        raise DataError(f"the files in `{source.root}` changed while they were read", "run again")


def _root_of(data: config.DataConfig, home: Path) -> Path:
    if data.name == "folder":
        return _given_root(data)
    return _expanded(data.root or home / "data" / "downloads" / data.name)


def _found(name: str, root: Path, fetch: bool) -> tuple[tuple[str, ...], list[File]]:
    """The classes and raw files below a root, of a folder data set or a public one."""
    if name == "folder":
        return _survey(root)
    return PUBLIC[name].classes, public_files(name, root, fetch)


def size_of(path: Path) -> tuple[int, int] | None:
    """Height and width by an image's header; None of a file that decoding will refuse."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            return image.height, image.width
    except (OSError, ValueError, Image.DecompressionBombError):
        return None


def images_in(folder: Path) -> list[os.DirEntry[str]]:
    """The images right in a folder, by name: neither hidden files nor other extensions."""
    return [e for e in _scan(folder) if e.name.lower().endswith(EXTENSIONS) and not e.is_dir()]


def stratified_split(
    labels_N: NDArray[np.int64], fraction: float, seed: int = 0
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Sorted indices of the training and of the validation images, class by class.

    Each class of n images gives round(fraction * n) to validation: at least one of two or more
    unless the fraction is 0, and never its last training image. The seed isn't the run's, so
    that every run of a sweep, whatever its seed, is selected on the same images. RandomState
    because numpy promises its stream for good, which it doesn't of `default_rng`.
    """
    random = np.random.RandomState(seed)
    held_out = np.zeros(len(labels_N), dtype=bool)
    for label in np.unique(labels_N):
        members = random.permutation(np.flatnonzero(labels_N == label))
        wanted = max(round(fraction * len(members)), 1) if fraction > 0 else 0
        held_out[members[: min(wanted, len(members) - 1)]] = True
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def _given_root(data: config.DataConfig) -> Path:
    if data.root is None:
        raise DataError("`data.name=folder` needs `data.root`", f"`data.root=ROOT`; {LAYOUT}")
    root = _expanded(data.root)
    if not root.exists():
        raise DataError(f"`data.root={root}` does not exist", LAYOUT)
    if not root.is_dir():
        raise DataError(f"`data.root={root}` is a file, not a folder", LAYOUT)
    return root


def _expanded(root: Path) -> Path:
    """Shells don't expand the `~` of `data.root=~/x`; a root out of reach is a DataError."""
    try:
        root = root.expanduser()
        root.exists()
    except (OSError, RuntimeError) as error:
        raise DataError(f"can't read `data.root={root}`: {error}") from None
    return root


def _survey(root: Path) -> tuple[tuple[str, ...], list[File]]:
    """The classes of a folder data set and its images, or a DataError that says what is off."""
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
                _no_images(root / split / name)
            files += [stated(f"{split}/{name}/{entry.name}", entry) for entry in images]
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
            f"`{root / 'train'}` needs 2 or more class folders; found {_named(train)}",
            LAYOUT,
        )
    return tuple(train)


def _no_images(folder: Path) -> NoReturn:
    raise DataError(
        f"`{folder}` holds no image; found {_named(entry.name for entry in _scan(folder))}",
        f"images are files named {' '.join('*' + extension for extension in EXTENSIONS)}",
    )


def _folders(root: Path) -> list[str]:
    return [entry.name for entry in _scan(root) if entry.is_dir()]


def _scan(folder: Path) -> list[os.DirEntry[str]]:
    """What lies in a folder, by name, hidden entries aside."""
    try:
        with os.scandir(folder) as entries:
            visible = [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise DataError(f"can't read `{folder}`: {error.strerror}") from None
    return sorted(visible, key=lambda entry: entry.name)


def _named(names: Iterable[str], shown: int = 5) -> str:
    """`a`, `b` and 3 more"""
    every = sorted(names)
    more = f" and {len(every) - shown} more" if len(every) > shown else ""
    return ", ".join(f"`{name}`" for name in every[:shown]) + more if every else "none"


def _digits_file() -> Path:
    """The digits inside scikit-learn, found without importing it."""
    spec = importlib.util.find_spec("sklearn")
    folders = spec.submodule_search_locations if spec else None
    if not folders:
        raise DataError("`data.name=digits` needs scikit-learn", "`pip install scikit-learn`")
    return Path(folders[0]) / "datasets" / "data" / "digits.csv.gz"
