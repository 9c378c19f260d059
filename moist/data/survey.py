"""Examine a folder of images in one pass: sizes, modes, and everything that is wrong with it."""

from __future__ import annotations

import os
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from moist.config import DataConfig
from moist.data.fingerprint import digest, read, stat
from moist.data.sources import (
    IMAGES,
    LAYOUT,
    check_names,
    files_below,
    folders,
    locate,
    no_size_warning,
    root_of,
    splits_of,
    suffix,
)  # fmt: skip
from moist.errors import ConfigError

FEW = 10
"""Images of a class below which its accuracy can hardly be measured."""
LARGE = 4096
"""Side in pixels above which decoding a photo takes a noticeable time."""
LONG = 3
"""Ratio of the sides above which the centre square is a small part of an image."""
SMALLEST = 16
"""Side in pixels below which an image has hardly any detail."""


@dataclass(frozen=True)
class Finding:
    """What is wrong with a folder, and where; an `error` makes a run impossible."""

    severity: Literal["error", "warning", "note"]
    what: str
    files: tuple[str, ...]
    remedy: str


@dataclass
class Survey:
    """What is in a folder of images, and what is wrong with it.

    `summary` says how the images would be split; it is empty if a run is impossible.
    """

    root: str
    summary: str = ""
    classes: dict[str, dict[str, int]] = field(default_factory=dict)
    """The number of images by class and by folder of a split; `all` without splits."""
    sizes: dict[str, int] = field(default_factory=dict)
    """The number of images of each size, as `640x480`; the most frequent first."""
    modes: dict[str, int] = field(default_factory=dict)
    """The number of images of each of Pillow's modes, as `RGB`."""
    findings: list[Finding] = field(default_factory=list)

    @property
    def possible(self) -> bool:
        """Return whether a run is possible."""
        return not any(one.severity == "error" for one in self.findings)

    @property
    def images(self) -> int:
        return sum(sum(counts.values()) for counts in self.classes.values())

    def shorter_sides(self) -> list[int]:
        """Return the shorter side of each image in pixels."""
        return [min(map(int, size.split("x"))) for size in Counter(self.sizes).elements()]

    def add(
        self,
        severity: Literal["error", "warning", "note"],
        what: str,
        files: Iterable[str],
        remedy: str,
    ) -> None:
        """Add a finding unless there is no file of it."""
        if listed := tuple(sorted(files)):
            self.findings.append(Finding(severity, what, listed, remedy))


@dataclass(frozen=True)
class _Image:
    """A file with the suffix of an image: its content's digest, and what decoding it gave."""

    name: str
    split: str
    label: str
    content: str = ""
    size: tuple[int, int] = (0, 0)
    mode: str = ""
    frames: int = 1
    error: str = ""


@no_size_warning()
def survey(root: Path, home: Path) -> Survey:
    """Examine a folder of images and list all that is wrong with it; write nothing.

    Every image is decoded. Raises DataError only if the folder can't be read at all.
    """
    data = DataConfig(name="folder", root=root)
    root = root_of(data, home)
    found = Survey(str(root))
    images: list[_Image] = []
    with _noted(found):
        splits = splits_of(root)
        names = {split: folders(root / split) for split in splits.folders}
        every = sorted({name for listed in names.values() for name in listed})
        with _noted(found):
            check_names(root, every)
        found.add("error", "fewer than 2 class folders", [str(root)] * (len(every) < 2), LAYOUT)
        for name in every:
            lacking = [f"{split}/{name}" for split in names if name not in names[split]]
            found.add("error", "a class is not in each split", lacking, "add its folder there")
            counts = {}
            for split in [split for split in names if name in names[split]]:
                with _noted(found):
                    listed = _listed(found, root, split, name)
                    images += listed
                    counts[split or "all"] = len(listed)
            found.classes[name] = counts
        images = _decoded(root, images)
        _examine(found, images, test="".join(splits.folders[1:2]))
    if found.possible:
        with _noted(found):
            source = locate(data, home, fetch=False)
            found.summary = source.summary
    found.findings.sort(key=lambda one: ("error", "warning", "note").index(one.severity))
    return found


@contextmanager
def _noted(found: Survey) -> Iterator[None]:
    """Turn an error into a finding."""
    try:
        yield
    except ConfigError as error:
        found.add("error", str(error.args[0]), [str(found.root)], error.hint)


def _listed(found: Survey, root: Path, split: str, label: str) -> list[_Image]:
    """List the images of a class; note files that are none, and a class without one."""
    files = files_below(root / split / label)
    names = {entry.path[len(str(root)) :].lstrip("/"): entry for entry in files}
    images = [name for name in names if suffix(name) in IMAGES]
    for name in images:
        stat(name, names[name])
    others = [name for name in names if name not in images]
    found.add("note", "not read: no image by its suffix", others, "convert it, or ignore this")
    if not images:
        place = f"{split}/{label}" if split else label
        found.add("error", "a class folder without images", [place], "add images or remove it")
    return [_Image(name, split, label) for name in images]


def _decoded(root: Path, images: list[_Image]) -> list[_Image]:
    from PIL import Image

    from moist.data.decode import opened

    def one(image: _Image) -> _Image:
        try:
            content = digest(read(root / image.name))
            size = opened(root / image.name).size
            with Image.open(root / image.name) as raw:
                mode, frames = raw.mode, getattr(raw, "n_frames", 1)
        except ConfigError as error:
            return _Image(image.name, image.split, image.label, error=str(error.args[0]))
        return _Image(image.name, image.split, image.label, content, size, mode, frames)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(one, images))


def _examine(found: Survey, images: list[_Image], test: str) -> None:
    """Add what is wrong with images one by one, and with all of them together."""
    good = [image for image in images if not image.error]
    found.sizes = _counted(f"{one.size[0]}x{one.size[1]}" for one in good)
    found.modes = _counted(one.mode for one in good)
    broken = [image.name for image in images if image.error]
    found.add("error", "can't be decoded", broken, "remove or replace")
    _copies(found, good, test)
    counts = [(f"{label} ({split}: {n})", n) for label, every in found.classes.items()
              for split, n in every.items() if 0 < n < FEW]  # fmt: skip
    needed = 1 if test else 2
    short = [place for place, n in counts if n < needed]
    found.add("error", "a class with too few images for a test split", short, "add images")
    few = [place for place, n in counts if n >= needed]
    found.add("warning", f"a class with fewer than {FEW} images", few, "add images")
    sides = {image.name: sorted(image.size) for image in good}

    def those(holds: Iterable[bool]) -> list[str]:
        return [name for name, is_one in zip(sides, holds, strict=True) if is_one]

    small = those(short < SMALLEST for short, _ in sides.values())
    found.add("warning", f"a side below {SMALLEST} pixels", small, "check that it is no icon")
    large = those(long > LARGE for _, long in sides.values())
    found.add("note", f"a side above {LARGE} pixels", large, "slow to decode, once")
    lengthy = those(long > LONG * short for short, long in sides.values())
    found.add("note", f"sides of more than {LONG}:1", lengthy, "the centre square is used")
    moving = [image.name for image in good if image.frames > 1]
    found.add("note", "animated or of several pages", moving, "only the first is read")
    if len(found.sizes) > 1:
        common = next(iter(found.sizes))
        others = [one.name for one in good if f"{one.size[0]}x{one.size[1]}" != common]
        remedy = "`data.image_size=32 data.crop=true`, as `moist init` writes"
        found.add("note", f"another size than {common}", others, remedy)
    grey = [one.name for one in good if one.mode in {"1", "L", "LA"} or one.mode[:2] == "I;"]
    if len(grey) < len(good):
        found.add("note", "grey among colour images", grey, "fine, unless one class is grey")
    alpha = [one.name for one in good if one.mode in {"RGBA", "LA", "PA"}]
    found.add("note", "with an alpha channel", alpha, "what is transparent becomes black")


def _copies(found: Survey, images: list[_Image], test: str) -> None:
    """Add images of equal content: in two classes, in training and test, or elsewhere."""
    equal: dict[str, list[_Image]] = {}
    for image in images:
        equal.setdefault(image.content, []).append(image)
    groups = [group for group in equal.values() if len(group) > 1]
    classes = [g for g in groups if len({image.label for image in g}) > 1]
    found.add("warning", "one image in two classes", _pairs(classes), "keep the right one")
    rest = [group for group in groups if group not in classes]
    leaked = [g for g in rest if test and len({image.split == test for image in g}) > 1]
    found.add("warning", "test image = training image", _pairs(leaked), "remove one: it leaks")
    others = [group for group in rest if group not in leaked]
    found.add("note", "copies of an image", _pairs(others), "kept in one split of those drawn")


def _counted(values: Iterable[str]) -> dict[str, int]:
    return dict(Counter(values).most_common())


def _pairs(groups: list[list[_Image]]) -> list[str]:
    return [" = ".join(sorted(image.name for image in group)) for group in groups]


def small_side(found: Survey, largest: int) -> int:
    """Return a side to resize to: the median of the shorter sides, at most `largest` pixels."""
    sides = found.shorter_sides()
    return max(min(round(statistics.median(sides)), largest), SMALLEST)
