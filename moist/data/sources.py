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
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moist import config
from moist.config.plugins import split_name
from moist.data.external import DATASETS
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
LAYOUT = (
    "the layout is `ROOT/<class>/*.png`, or `ROOT/train/<class>/*.png` and"
    " `ROOT/test/<class>/*.png`"
)
VALIDATION = ("val", "valid", "validation")
TEST_SEED = 1
"""The seed that draws test images; it never changes, and is not that of validation images."""


@dataclass(frozen=True)
class Splits:
    """The folders below a root that hold the splits; all are empty if classes lie in the root.

    `val` is empty, too, where validation images are drawn from the training images.
    """

    train: str = ""
    test: str = ""
    val: str = ""

    @property
    def folders(self) -> tuple[str, ...]:
        """Return the folders to read, relative to the root."""
        return tuple(dict.fromkeys((self.train, self.test, self.val or self.train)))


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
    train: int | None = None
    """How many of these are training images, and validation images drawn from them."""
    crop: bool = False
    splits: Splits = Splits()
    held_out: frozenset[str] = frozenset()
    """The test images, by path below `root`, where they are drawn from all images."""
    summary: str = ""
    """A line that says what was found and how it is split; empty if the data set has its own."""
    warnings: tuple[str, ...] = ()
    """What is below `root` and not read, and test images that are training images, too."""

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
    splits: Splits = Splits()

    def of(self, split: str) -> list[str]:
        """Return the names of the files in one of the folders of `splits`."""
        names = [file.name for file in self.files]
        return [name for name in names if name.startswith(f"{split}/")] if split else names


def locate(data: config.DataConfig, home: Path, fetch: bool = True) -> Source:
    """Find the raw files, downloading a public set that is missing, and digest their content.

    With `fetch=False` nothing is written. Raises DataError if they are missing (with
    `fetch=False`: not downloaded yet), unreadable or not laid out as classes.
    """
    if data.name == "folder":
        return _locate_folder(data, root_of(data, home), home, fetch)
    if split_name(data.name)[1]:
        return _locate_external(data, home, fetch)
    root, signature, channels = None, None, 3
    pixels: tuple[int, int] | None
    if data.name == "digits":
        classes, pixels, channels = DIGITS, (8, 8), 1
        content = digest(read(_digits_file()))
    else:
        root, public = root_of(data, home), PUBLIC[data.name]
        files = public_files(data.name, root, fetch)
        signature = signature_of(files)
        content = fingerprint(root, files, signature, home, write=fetch).key
        classes, channels, pixels = public.classes, public.channels, (public.side,) * 2
    key = digest(json.dumps([data.name, content, data.image_size]).encode())
    if data.image_size is not None:
        pixels = (data.image_size, data.image_size)
    return Source(
        data.name, root, data.image_size, classes, key=key, channels=channels, pixels=pixels,
        signature=signature,
    )  # fmt: skip


def _locate_folder(data: config.DataConfig, root: Path, home: Path, fetch: bool) -> Source:
    """Find the images of a folder and their splits, and digest their content.

    Raises DataError for a fraction without effect, and for splits that can't be had.
    """
    found = _survey(root)
    splits, signature = found.splits, signature_of(found.files)
    _check_fractions(root, data, splits)
    content = fingerprint(root, found.files, signature, home, write=fetch)
    parts: list[Any] = [data.name, content.key, data.image_size]
    parts += ["crop"] * data.crop
    held_out: frozenset[str] = frozenset()
    if not splits.test:
        held_out = _drawn(root, found, data.test_fraction, content.copies)
        parts.append({"test_fraction": data.test_fraction})
    train = [name for name in found.of(splits.train) if name not in held_out]
    if not splits.val:
        _check_held_out(root, data.val_fraction, len(train), len(found.classes))
    side, pixels = data.image_size, size_of(root / found.files[0].name)
    if side or (data.crop and pixels):
        pixels = (side or min(pixels or ()),) * 2
    leaked = "" if held_out else _leaked(splits, content.copies)
    return Source(
        data.name, root, side, found.classes, key=digest(json.dumps(parts).encode()),
        pixels=pixels, signature=signature, images=len(found.files), train=len(train),
        crop=data.crop,
        splits=splits, held_out=held_out, summary=_summary(data, found, train, held_out),
        warnings=tuple(filter(None, (found.skipped, leaked))),
    )  # fmt: skip


def _locate_external(data: config.DataConfig, home: Path, fetch: bool) -> Source:
    """Find a data set of another package's: its version is its content, with the files in a root.

    Raises DataError if it is unfit, and for a root that is not there.
    """
    entry, root, signature = DATASETS[data.name], None, None
    parts: list[Any] = [data.name, data.image_size]
    if data.root is not None:
        root = root_of(data, home)
        files = _all_files(root)
        signature = signature_of(files)
        parts.append(fingerprint(root, files, signature, home, write=fetch).key)
    channels, *pixels = entry.image_shape
    return Source(
        data.name, root, data.image_size, entry.classes, key=digest(json.dumps(parts).encode()),
        channels=channels, pixels=(data.image_size or pixels[0], data.image_size or pixels[1]),
        signature=signature,
    )  # fmt: skip


def _all_files(root: Path) -> list[File]:
    """List all files below a root, hidden ones left out."""
    entries = files_below(root)
    return [stat(os.path.relpath(entry.path, root), entry) for entry in entries]


def check_untouched(source: Source) -> None:
    """Raise DataError if files were changed, added or removed since they were digested."""
    if source.root is None:
        return
    if source.name == "folder":
        files = _survey(source.root).files
    elif split_name(source.name)[1]:
        files = _all_files(source.root)
    else:
        files = public_files(source.name, source.root, fetch=False)
    if signature_of(files) != source.signature:
        raise DataError(f"the files in `{source.root}` changed while they were read", "run again")


def root_of(data: config.DataConfig, home: Path) -> Path:
    """Return the folder of a data set's raw files. Raises DataError for one that is not there."""
    if data.root is None:
        if data.name != "folder":
            return home / "data" / "downloads" / data.name
        raise DataError("`data.name=folder` needs `data.root`", f"`data.root=ROOT`; {LAYOUT}")
    root = expanded(data.root, "data.root=")
    try:
        exists = root.exists()
    except OSError as error:
        raise DataError(f"can't read `data.root={root}`: {error.strerror}") from None
    if data.name in PUBLIC:
        return root
    if not exists:
        raise DataError(f"`data.root={root}` does not exist", LAYOUT)
    if not root.is_dir():
        raise DataError(f"`data.root={root}` is a file, not a folder", LAYOUT)
    return root


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
    return [entry for entry in files_below(folder) if suffix(entry.name) in IMAGES]


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
    splits = splits_of(root)
    classes = _same_classes(root, splits)
    images: list[File] = []
    others: list[str] = []
    for split, name in product(splits.folders, classes):
        folder, before = root / split / name, len(images)
        for entry in files_below(folder):
            if suffix(entry.name) not in IMAGES:
                others.append(entry.path)
                continue
            check_text(entry.path)
            images.append(stat(entry.path[len(str(root)) :].lstrip("/"), entry))
        if len(images) == before:
            listed = [entry.name for entry in _scan(folder)]
            raise DataError(
                f"`{folder}` contains no image; found {_named(listed)}",
                "images are files named `*.png`, `*.jpg` or as another format of Pillow's",
            )
    return _Found(classes, images, _skipped(root, splits, others), splits)


def splits_of(root: Path) -> Splits:
    """Find the folders that hold the splits. Raises DataError for a split that is missing.

    A validation split without a test split is the test split: nothing is selected on it, so that
    its accuracy is comparable with that of others, and no training image is given up.
    """
    listed = folders(root)
    vals = [name for name in VALIDATION if name in listed]
    if not {"train", "test"}.intersection(listed) and {*listed} - {*vals}:
        return Splits()
    if len(vals) > 1:
        raise DataError(
            f"`{root}` has more than one validation split: {_named(vals)}", "rename or merge them"
        )
    missing = "train" if "train" not in listed else "" if "test" in listed or vals else "test"
    if missing:
        alone = f"; to have a test split drawn, give `data.root={root / 'train'}`"
        raise DataError(
            f"`{root}` has no folder `{missing}`; found {_named(listed)}",
            LAYOUT + (alone if missing == "test" else ""),
        )
    if "test" in listed:
        return Splits("train", "test", *vals)
    return Splits("train", vals[0])


def _skipped(root: Path, splits: Splits, others: Iterable[str]) -> str:
    """Describe what is below a root and not read: `others`, loose files and further folders."""
    loose = [e.path for one in splits.folders for e in _scan(root / one) if not _is_folder(e)]
    found: dict[str, list[str]] = {}
    for kind, paths in (("(no images)", others), ("(in no class folder)", loose)):
        for path in sorted(paths):
            named = f"*{suffix(path)}" if suffix(path) else "files without suffix"
            found.setdefault(f"{named} {kind}", []).append(path)
    listed = [f"{kind}: {len(paths)}, as `{paths[0]}`" for kind, paths in found.items()]
    read = splits.folders if splits.test else folders(root)
    unread = [f"folder `{root / one}`" for one in folders(root) if one not in read]
    return f"not read: {'; '.join([*listed, *unread])}" if listed or unread else ""


def _check_fractions(root: Path, data: config.DataConfig, splits: Splits) -> None:
    """Raise DataError for a fraction that was changed although the folder has that split."""
    for key, split in (("test_fraction", splits.test), ("val_fraction", splits.val)):
        value, default = getattr(data, key), type(data).model_fields[key].get_default()
        if split and value != default:
            raise DataError(
                f"`data.{key}={value}` has no effect: `{root}` has its own split `{split}`",
                f"leave out `data.{key}`, or move `{split}` elsewhere",
            )


def _drawn(
    root: Path, found: _Found, fraction: float, copies: Mapping[str, str]
) -> frozenset[str]:
    """Draw the test images from all, by class; copies of an image go to the same split.

    Raises DataError for a class with too few different images.
    """
    once = [file.name for file in found.files if file.name not in copies]
    labels_N = np.array([found.classes.index(name.partition("/")[0]) for name in once])
    counts = np.bincount(labels_N, minlength=len(found.classes)).tolist()
    for name, count in zip(found.classes, counts, strict=True):
        if count < 2:
            raise DataError(
                f"the class `{name}` of `{root}` has {count or 'no'} image"
                f"{' of its own' * (not count)}; a training and a test image are needed",
                "add images, or remove the class",
            )
    drawn = {once[i] for i in stratified_split(labels_N, fraction, TEST_SEED)[1]}
    return frozenset(f.name for f in found.files if copies.get(f.name, f.name) in drawn)


def _leaked(splits: Splits, copies: Mapping[str, str]) -> str:
    """Describe the test images of which training or validation images are copies."""
    equal: dict[str, list[str]] = {}
    for name, first in copies.items():
        equal.setdefault(first, [first]).append(name)
    pairs = [
        (one, other[0])
        for names in equal.values()
        if (other := [name for name in names if not name.startswith(f"{splits.test}/")])
        for one in names
        if one.startswith(f"{splits.test}/")
    ]
    if not pairs:
        return ""
    return (
        f"test images that are copies of training images: {len(pairs)}, as `{pairs[0][0]}` of"
        f" `{pairs[0][1]}`; the accuracy on test images is not that on new ones"
    )


def _summary(
    data: config.DataConfig, found: _Found, train: Sequence[str], held_out: Collection[str]
) -> str:
    """Say in a line how many images were found, how they are split and how they are resized."""
    splits = found.splits
    test = len(held_out) or len(found.of(splits.test))
    if splits.val:
        val = f", {len(found.of(splits.val)):,} validation"
    else:
        depth = bool(splits.train)
        labels_N = np.array([found.classes.index(name.split("/")[depth]) for name in train])
        count = len(stratified_split(labels_N, data.val_fraction)[1])
        val = f" ({count:,} of them for validation)" if count else ""
    how = "" if splits.test == "test" else f" (`{splits.test}/`, as there is no `test/`)"
    how = how if splits.test else f" (data.test_fraction={data.test_fraction})"
    text = (
        f"data: {len(found.classes)} classes, {len(found.files):,} images:"
        f" {len(train):,} training{val}, {test:,} test{how}"
    )
    side = f"{data.image_size}x{data.image_size} pixels" if data.image_size else ""
    if data.crop:
        return f"{text}; the centre square of each{', at ' * bool(side)}{side}"
    return f"{text}; stretched to {side}" if side else text


def _check_held_out(root: Path, fraction: float, images: int, classes: int) -> None:
    """Raise DataError if no class has an image to hold out besides its training image."""
    if fraction and images == classes:
        raise DataError(
            f"`data.val_fraction={fraction}` holds out nothing of `{root}`: each class has one"
            " training image",
            "add images, or set `data.val_fraction=0` (then nothing can be selected or searched)",
        )


def _same_classes(root: Path, splits: Splits) -> tuple[str, ...]:
    train, *others = (folders(root / split) for split in splits.folders)
    check_names(root, {name for names in (train, *others) for name in names})
    for split, names in zip(splits.folders[1:], others, strict=True):
        if names != train:
            raise DataError(
                f"the classes of `{root}` differ: only in `train`"
                f" {_named({*train} - {*names})}, only in `{split}` {_named({*names} - {*train})}",
                "give both the same class folders",
            )
    if len(train) < 2:
        inner = [name for name in train if len(folders(root / splits.train / name)) > 1]
        raise DataError(
            f"`{root / splits.train}` needs 2 or more class folders; found {_named(train)}",
            f"`data.root={root / splits.train / inner[0]}`, whose folders would be the classes"
            if inner and not splits.train
            else LAYOUT,
        )
    return tuple(train)


def check_names(root: Path, names: Iterable[str]) -> None:
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


def files_below(folder: Path) -> list[os.DirEntry[str]]:
    """List the files in a folder and in all folders below it, by path, without hidden ones.

    Links to folders are followed; a folder that several links lead to is read once. Raises
    DataError for a link to a folder that contains the link.
    """
    found: list[os.DirEntry[str]] = []
    todo, seen = [folder], set[Path]()
    while todo:
        real = (at := todo.pop()).resolve()
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
            todo.append(inner)
    return sorted(found, key=lambda entry: entry.path)


def suffix(name: str) -> str:
    """Return the suffix of a file's name in lower case."""
    return os.path.splitext(name)[1].lower()


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError as error:  # a link to itself
        raise DataError(f"can't read `{entry.path}`: {error.strerror}") from None


def folders(root: Path) -> list[str]:
    """List the names of the folders in a folder, without hidden ones."""
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
