"""Find a data set's raw files, and identify their content.

`locate` does both without decoding an image, in well under a second once the files have been
read before; `moist.data.decode.decode` turns them into tensors. Nothing heavy is imported at the
top of this file: a run that only reuses results calls `locate`, too.
"""

from __future__ import annotations

import importlib.util
import json
import os
import unicodedata
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from moist import config
from moist.data.fingerprint import File, digest, fingerprint, read, signature_of, stat
from moist.data.torchvision_sets import DIGITS, PUBLIC, public_files
from moist.disk import check_text, expanded
from moist.errors import DataError

IMAGES = frozenset(
    """.apng .avif .avifs .blp .bmp .bw .cur .dcx .dds .dib .fit .fits .flc .fli .ftc .ftu .gbr
    .gif .icb .icns .ico .iim .im .j2c .j2k .jfif .jp2 .jpc .jpe .jpeg .jpf .jpg .jpx .mpo .msp
    .pbm .pcd .pcx .pfm .pgm .png .pnm .ppm .psd .pxr .qoi .ras .rgb .rgba .sgi .tga .tif .tiff
    .vda .vst .webp .xbm .xpm""".split()
)
"""The suffixes of the pixel formats that Pillow opens; of animations it reads the first frame.

A list of our own, so that a folder's key does not depend on Pillow's version. PDF, PostScript,
metafiles, MPEG and scientific containers are no images.
"""
OF_SYSTEMS = frozenset({"thumbs.db", "desktop.ini"})
"""Files that Windows writes; like hidden ones they are skipped without a warning."""
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
    channels: int = 3
    pixels: tuple[int, int] | None = None
    """Height and width, if known before decoding."""
    signature: str | None = None
    """A digest of names, sizes and times of the files below `root` when they were read."""
    images: int | None = None
    """How many there are, if known before decoding."""
    skipped: str = ""
    """A warning about what is below `root` and not read; empty if there is nothing."""

    def __str__(self) -> str:
        """Describe the content, so that two data sets that differ read differently."""
        images = "" if self.images is None else f", {self.images:,} images"
        return f"`{self.name}` with {len(self.classes)} classes{images} (content {self.key[:12]})"


@dataclass(frozen=True)
class _Found:
    """The classes and raw files below a root, and a warning about what is not read."""

    classes: tuple[str, ...]
    files: list[File]
    skipped: str = ""


def locate(data: config.DataConfig, home: Path, fetch: bool = True) -> Source:
    """Find the raw files, downloading a public set that is missing, and digest their content.

    With `fetch=False` nothing is written. Raises DataError if they are missing (with
    `fetch=False`: not downloaded yet), unreadable or not laid out as classes.
    """
    root, signature, images, skipped, channels = None, None, None, "", 3
    pixels: tuple[int, int] | None
    if data.name == "digits":
        classes, pixels, channels = DIGITS, (8, 8), 1
        content = digest(read(_digits_file()))
    else:
        root = _root_of(data, home)
        found = _found(data.name, root, fetch)
        classes, files, skipped = found.classes, found.files, found.skipped
        signature = signature_of(files)
        content = fingerprint(root, files, signature, home, write=fetch)
        if data.name == "folder":
            images = len(files)
            _check_held_out(root, data.val_fraction, found)
        public = PUBLIC.get(data.name)
        channels = public.channels if public else 3
        pixels = (public.side,) * 2 if public else size_of(root / files[0].name)
    key = digest(json.dumps([data.name, content, data.image_size]).encode())
    if data.image_size is not None:
        pixels = (data.image_size, data.image_size)
    return Source(
        data.name, root, data.image_size, classes, key=key, channels=channels, pixels=pixels,
        signature=signature, images=images, skipped=skipped,
    )  # fmt: skip


def check_untouched(source: Source) -> None:
    """Raise DataError if files were changed, added or removed since they were digested."""
    if source.root is None:
        return
    if signature_of(_found(source.name, source.root, fetch=False).files) != source.signature:
        raise DataError(f"the files in `{source.root}` changed while they were read", "run again")


def _root_of(data: config.DataConfig, home: Path) -> Path:
    if data.root is None:
        if data.name != "folder":
            return home / "data" / "downloads" / data.name
        raise DataError("`data.name=folder` needs `data.root`", f"`data.root=ROOT`; {LAYOUT}")
    root = expanded(data.root, "data.root=")
    try:
        exists = root.exists()
    except OSError as error:
        raise DataError(f"can't read `data.root={root}`: {error.strerror}") from None
    if data.name != "folder":
        return root
    if not exists:
        raise DataError(f"`data.root={root}` does not exist", LAYOUT)
    if not root.is_dir():
        raise DataError(f"`data.root={root}` is a file, not a folder", LAYOUT)
    return root


def _found(name: str, root: Path, fetch: bool) -> _Found:
    """List the classes and raw files below a root, of a folder data set or a public one."""
    if name == "folder":
        return _survey(root)
    return _Found(PUBLIC[name].classes, public_files(name, root, fetch))


@contextmanager
def no_size_warning() -> Iterator[None]:
    """Open images up to Pillow's limit without the warning from half of it, which names no file.

    Used around whole data sets, since filters of warnings belong to all threads.
    """
    from PIL.Image import DecompressionBombWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DecompressionBombWarning)
        yield


@no_size_warning()
def size_of(path: Path) -> tuple[int, int] | None:
    """Read height and width from an image's header; None for a file that can't be decoded."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            return image.height, image.width
    except Exception:  # decoders raise errors of any type; decoding it then names the file
        return None


def images_in(folder: Path) -> list[os.DirEntry[str]]:
    """List the images in a folder and in all folders below it, by path, without hidden ones."""
    return [entry for entry in _files_below(folder) if _suffix(entry.name) in IMAGES]


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


def _survey(root: Path) -> _Found:
    """List the classes and images of a folder data set. Raises DataError for another layout."""
    listed = _folders(root)
    for split in SPLITS:
        if split not in listed:
            raise DataError(f"`{root}` has no folder `{split}`; found {_named(listed)}", LAYOUT)
    classes = _same_classes(root)
    images: list[File] = []
    others: list[str] = []
    for split, name in product(SPLITS, classes):
        folder, before = root / split / name, len(images)
        for entry in _files_below(folder):
            if _suffix(entry.name) not in IMAGES:
                others.append(entry.path)
                continue
            check_text(entry.path)
            images.append(stat(f"{split}/{name}{entry.path[len(str(folder)) :]}", entry))
        if len(images) == before:
            listed = [entry.name for entry in _scan(folder)]
            raise DataError(
                f"`{folder}` contains no image; found {_named(listed)}",
                "images are files named `*.png`, `*.jpg` or as another format of Pillow's",
            )
    return _Found(classes, images, _skipped(root, others))


def _skipped(root: Path, others: Iterable[str]) -> str:
    """Describe what is below a root and not read: `others`, loose files and further folders."""
    loose = [e.path for one in SPLITS for e in _scan(root / one) if not _is_folder(e)]
    found: dict[str, list[str]] = {}
    for kind, paths in (("(no images)", others), ("(in no class folder)", loose)):
        for path in sorted(paths):
            suffix = f"*{_suffix(path)}" if _suffix(path) else "files without suffix"
            found.setdefault(f"{suffix} {kind}", []).append(path)
    listed = [f"{kind}: {len(paths)}, as `{paths[0]}`" for kind, paths in found.items()]
    folders = [f"folder `{root / one}`" for one in _folders(root) if one not in SPLITS]
    return f"not read: {'; '.join([*listed, *folders])}" if listed or folders else ""


def _check_held_out(root: Path, fraction: float, found: _Found) -> None:
    """Raise DataError if no class has an image to hold out besides its training image."""
    images = sum(file.name.startswith(f"{SPLITS[0]}/") for file in found.files)
    if fraction and images == len(found.classes):
        raise DataError(
            f"`data.val_fraction={fraction}` holds out nothing of `{root}`: each class has one"
            " training image",
            "add images, or set `data.val_fraction=0` (then nothing can be selected or searched)",
        )


def _same_classes(root: Path) -> tuple[str, ...]:
    train, test = (_folders(root / split) for split in SPLITS)
    _check_names(root, {*train, *test})
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


def _check_names(root: Path, names: Iterable[str]) -> None:
    """Raise DataError for class names that a table can't show, or can't tell from each other."""
    shown: dict[str, str] = {}
    for name in sorted(names):
        check_text(str(root / name))
        categories = {unicodedata.category(character) for character in name}
        if "Cc" in categories:
            raise DataError(
                f"the class folder {name!a} of `{root}` has a control character", "rename it"
            )
        visible = "".join(one for one in name if unicodedata.category(one) != "Cf")
        look = " ".join(unicodedata.normalize("NFC", visible).split())
        if other := shown.get(look):
            raise DataError(
                f"the class folders {other!a} and {name!a} of `{root}` print alike",
                "give one class one spelling in `train` and `test`, and two classes two names",
            )
        shown[look] = name


def _files_below(folder: Path) -> list[os.DirEntry[str]]:
    """List the files in a folder and in all folders below it, by path, without hidden ones.

    Links to folders are followed; a folder that several links lead to is read once. Raises
    DataError for a link to a folder that contains the link.
    """
    found: list[os.DirEntry[str]] = []
    folders, seen = [folder], set[Path]()
    while folders:
        real = (at := folders.pop()).resolve()
        if real in seen:
            continue
        seen.add(real)
        for entry in _scan(at):
            if not _is_folder(entry):
                found.append(entry)
                continue
            inner = Path(entry.path)
            if entry.is_symlink() and real.is_relative_to(inner.resolve()):
                raise DataError(
                    f"`{inner}` is a link to a folder that contains it", "remove the link"
                )
            folders.append(inner)
    return sorted(found, key=lambda entry: entry.path)


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError as error:  # a link to itself
        raise DataError(f"can't read `{entry.path}`: {error.strerror}") from None


def _folders(root: Path) -> list[str]:
    return [entry.name for entry in _scan(root) if _is_folder(entry)]


def _scan(folder: Path) -> list[os.DirEntry[str]]:
    """List a folder's entries by name, without hidden ones."""
    try:
        with os.scandir(folder) as entries:
            visible = [entry for entry in entries if not _is_hidden(entry.name)]
    except OSError as error:
        raise DataError(f"can't read `{folder}`: {error.strerror}") from None
    return sorted(visible, key=lambda entry: entry.name)


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in OF_SYSTEMS


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
