"""The data sets that torchvision downloads: their files, their classes, and the download."""

from __future__ import annotations

import os
import sys
import tempfile
from contextlib import redirect_stdout
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any

from moist.data.fingerprint import File, stat
from moist.disk import UNFINISHED
from moist.errors import DataError

DIGITS = tuple("0123456789")


@dataclass(frozen=True)
class Public:
    """A data set of torchvision's: its class there, its images' side in pixels and channels."""

    builder: str
    side: int
    files: tuple[str, ...]
    classes: tuple[str, ...]
    channels: int = 3


PUBLIC = {
    "cifar10": Public(
        "CIFAR10",
        32,
        (
            *(f"cifar-10-batches-py/data_batch_{i}" for i in range(1, 6)),
            "cifar-10-batches-py/test_batch",
            "cifar-10-batches-py/batches.meta",
        ),
        tuple("airplane automobile bird cat deer dog frog horse ship truck".split()),
    ),
    "cifar100": Public(
        "CIFAR100",
        32,
        tuple(f"cifar-100-python/{name}" for name in ("train", "test", "meta")),
        tuple(
            """apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge
            bus butterfly camel can castle caterpillar cattle chair chimpanzee clock cloud
            cockroach couch crab crocodile cup dinosaur dolphin elephant flatfish forest fox girl
            hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man
            maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree
            pear pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray road
            rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel
            streetcar sunflower sweet_pepper table tank telephone television tiger tractor train
            trout tulip turtle wardrobe whale willow_tree wolf woman worm""".split()
        ),
    ),
    "fashion_mnist": Public(
        "FashionMNIST",
        28,
        tuple(
            f"FashionMNIST/raw/{part}-{kind}"
            for part in ("train", "t10k")
            for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")
        ),
        (
            "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
            "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
        ),
        channels=1,
    ),
    "svhn": Public("SVHN", 32, ("train_32x32.mat", "test_32x32.mat"), DIGITS),
}  # fmt: skip


def public_files(name: str, root: Path, fetch: bool = True) -> list[File]:
    """List the raw files of a public set below a root, downloading it if one is missing.

    Raises DataError if that fails, or with `fetch=False`.
    """
    files = PUBLIC[name].files
    if not all(os.path.isfile(root / file) for file in files):  # False, too, without permission
        if not fetch:
            raise DataError(
                f"`{name}` is not in `{root}` yet", f"`moist data prepare {name}` downloads it"
            )
        _download(name, root)
    return [stat(file, root / file) for file in files]


def _download(name: str, root: Path) -> None:
    """Download to a temporary folder, then rename file by file, so that a kill leaves no part."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        with (
            tempfile.TemporaryDirectory(prefix=UNFINISHED, dir=root) as tmp,
            redirect_stdout(sys.stderr),
        ):
            for train in (True, False):
                open_public(name, Path(tmp), train=train, download=True)
            for file in PUBLIC[name].files:
                (root / file).parent.mkdir(parents=True, exist_ok=True)
                os.replace(Path(tmp) / file, root / file)
    except (OSError, RuntimeError, HTTPException) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise DataError(
            f"`{name}` is not in `{root}`, and downloading it failed: {reason}",
            f"point `data.root` at a copy (`moist run data.name={name} data.root=DIR`), or use"
            " a folder of images (`data.name=folder data.root=DIR`)",
        ) from None


def open_public(name: str, root: Path, *, train: bool, download: bool = False) -> Any:
    """Return torchvision's object for one split of a public set."""
    from torchvision import datasets

    if name == "svhn":
        split = "train" if train else "test"
        return datasets.SVHN(root, split=split, download=download)
    return getattr(datasets, PUBLIC[name].builder)(root, train=train, download=download)
