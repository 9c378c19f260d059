"""The teacher: trained here, or supplied as a file."""

from __future__ import annotations

import re
import zipfile
from argparse import Namespace
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path, PosixPath
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from moist.config import AugmentConfig, TeacherConfig
from moist.config.plugins import split_name
from moist.data.augment import Batch, normalize
from moist.data.random import seeded
from moist.disk import expanded, sha256
from moist.env import Env
from moist.errors import ConfigError, first_line
from moist.nets.build import fresh, module
from moist.nets.cnn import TEACHERS
from moist.nets.entry import Shape
from moist.nets.fastnet import whiten
from moist.stages import stage
from moist.store.artifacts import Dataset, Spec, Teacher, not_finite
from moist.training.job import Job

HEADLESS = "all but the head"
WHITENED = 5000
"""Training images from whose patches a whitening stem is made."""

SAVE = "save the state dict alone: `torch.save(net.state_dict(), FILE)`"
FORMS = (
    (b"version https://git-lfs", "it is a Git LFS pointer, not the file", "run `git lfs pull`"),
    (b"<", "it is a web page, not the file", "download the file itself"),
    (b"\x1f\x8b", "it is a gzip archive", "unpack it"),
)
"""First bytes of what is no file of weights, what that is, and what to do."""
PREFIXES = ("module.", "model.", "net.", "_orig_mod.")
"""Prefixes that wrappers of a network put before the names of all its tensors."""
CIFAR = {".shortcut.": ".downsample.", "linear.": "fc."}
"""Parts of names of pytorch-cifar's ResNet-18, and torchvision's."""
NUMBERS = "?" + np.typecodes["AllInteger"] + np.typecodes["AllFloat"] + "SU"
MAKERS = {"scalar": np.float64().__reduce__()[0], "_reconstruct": np.empty(0).__reduce__()[0]}
BESIDE: list[Any] = [
    *((PosixPath, f"{module}.PosixPath") for module in ("pathlib", "pathlib._local")),
    *(
        (make, f"{package}.multiarray.{name}")
        for package in ("numpy._core", "numpy.core")
        for name, make in MAKERS.items()
    ),
    np.ndarray, np.dtype, *{type(np.dtype(code)) for code in NUMBERS}, Namespace,
]  # fmt: skip
"""What people store beside a state dict, and how it is made: none of it runs code of the file.

A pair has the name in the file; numpy 2 renamed its `core`, Python 3.13 a module of `pathlib`.
"""


@dataclass(frozen=True)
class WeightsFile:
    """A trained state dict; its content is its key."""

    path: Path
    key: str = field(init=False)

    def __post_init__(self) -> None:
        try:
            stat = self.path.stat()
            facts = (stat.st_size, stat.st_mtime_ns, stat.st_ino)
            object.__setattr__(self, "key", _digest(self.path.absolute(), facts))
        except OSError as error:
            raise ConfigError(
                f"can't read teacher.weights `{self.path}`: {error.strerror}"
            ) from None


class Start(WeightsFile):
    """A trained state dict with a head for other classes: the teacher is trained from it."""


def weights_of(teacher: TeacherConfig) -> WeightsFile | None:
    """Find the file of a teacher's weights, if it has one. Raises ConfigError if it is missing."""
    path = teacher.weights and expanded(teacher.weights, "teacher.weights=")
    return WeightsFile(path) if path else None


@lru_cache(maxsize=256)
def _digest(path: Path, facts: tuple[int, ...]) -> str:
    """Return the digest of a file, computed once for each `facts` of it."""
    return sha256(path)


def spec_of(arch: str, data: Dataset) -> Spec:
    """Describe the network of a teacher."""
    options = {"mean": data.mean, "std": data.std} if TEACHERS[arch].normalizes else {}
    return Spec(arch, data.image_shape, len(data.classes), options)


@stage(version=1, added=("start",))
def train_teacher(
    env: Env,
    *,
    data: Dataset,
    teacher: TeacherConfig,
    augment: AugmentConfig,
    precision: str,
    seed: int,
    start: Start | None = None,
) -> Teacher:
    """Train a teacher on the labels, from random weights or from those of `start`."""
    spec = spec_of(teacher.arch, data)
    with seeded(seed, "teacher"):
        net = module(fresh(Teacher, spec), env.device)
    if start:
        state, _ = fitted(start, spec.name, spec.image_shape, spec.outputs)
        check_unchanged(start)
        net.load_state_dict(state, strict=False)
    entry, bias = TEACHERS[spec.name], None
    if entry.stem:
        stem = net.get_submodule(entry.stem)
        assert isinstance(stem, nn.Conv2d)
        whiten(stem, sample(data, WHITENED))
        bias = stem.bias

    def loss(batch: Batch) -> torch.Tensor:
        if bias is not None:
            bias.requires_grad_(batch.epoch < teacher.stem_epochs)
        return F.cross_entropy(
            net(batch.images_BCHW).float(), batch.labels_B,
            label_smoothing=teacher.label_smoothing,
        )  # fmt: skip

    job = Job(env, data, augment=augment, precision=precision, seed=seed)
    history = job.fit(net, loss, teacher)
    return Teacher(spec, net.state_dict(), history)


def sample(data: Dataset, count: int) -> torch.Tensor:
    """Return `count` training images, normalized, at equal distances: folders are sorted."""
    index_B = torch.linspace(0, len(data.train) - 1, min(count, len(data.train))).long()
    return normalize(data.train.images_NHWC[index_B], data.mean, data.std)


@stage(version=1)
def load_teacher(env: Env, *, data: Dataset, arch: str, weights: WeightsFile) -> Teacher:
    """Load a teacher's state dict, as float32. Raises ConfigError naming what does not fit."""
    spec = spec_of(arch, data)
    state, done = fitted(weights, arch, spec.image_shape, spec.outputs)
    check_unchanged(weights)
    if done:
        env.progress.warned(f"teacher.weights `{weights.path}`: took {', '.join(done)}")
    return Teacher(spec, state, ())


def check_unchanged(weights: WeightsFile) -> None:
    """Raise ConfigError for a file that is no longer the one whose content is the key."""
    if sha256(weights.path) != weights.key:
        raise ConfigError(f"`{weights.path}` changed while it was read", "run again")


@lru_cache(maxsize=256)
def other_head(weights: WeightsFile, arch: str, image_shape: Shape, classes: int) -> str:
    """Describe what does not fit in weights whose head alone is for other classes, else nothing.

    Raises ConfigError for weights that `load_teacher` will reject; reads each file once.
    """
    _, done = fitted(weights, arch, image_shape, classes)
    return next((one for one in done if one.startswith(HEADLESS)), "")


def fitted(
    weights: WeightsFile, arch: str, image_shape: Shape, classes: int
) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Read a state dict for a teacher's network; return it, and how it was unwrapped.

    A head for other classes is left out of it, if the network is another package's. Raises
    ConfigError naming what does not fit.
    """
    wanted = TEACHERS[arch].build(image_shape, classes).state_dict()
    found, done = read_state(weights.path)
    if "fc.weight" in wanted and "linear.weight" in found:
        done.append("with pytorch-cifar's names as torchvision's")
        for old, new in CIFAR.items():
            found = {name.replace(old, new): tensor for name, tensor in found.items()}
    counters = {name for name in wanted if name.endswith("num_batches_tracked")}
    state = {name: wanted[name] for name in counters} | found
    unfit = [
        name
        for name in sorted(wanted.keys() | state.keys())
        if _shape(wanted, name) != _shape(state, name)
    ]
    differ = [
        f"`{name}`: the network has {_shape(wanted, name)}, the file {_shape(state, name)}"
        for name in unfit
    ]
    if split_name(arch)[1] and (other := _other_classes(wanted, state, unfit, classes)):
        done.append(f"{HEADLESS} `{', '.join(unfit)}`: of {other} classes, not {classes}")
        state = {name: tensor for name, tensor in state.items() if name not in unfit}
    elif differ:
        rest = f"\n  and {len(differ) - 5} more" if len(differ) > 5 else ""
        raise ConfigError(
            f"`{weights.path}` does not fit teacher.arch={arch} on {classes} classes of"
            f" {image_shape} images:\n  " + "\n  ".join(differ[:5]) + rest,
            "choose the teacher.arch and the data set it was trained for",
        )
    return {name: state[name].to(wanted[name].dtype) for name in wanted if name in state}, done


def _other_classes(
    wanted: dict[str, torch.Tensor],
    state: dict[str, torch.Tensor],
    unfit: list[str],
    classes: int,
) -> int:
    """Return the number of classes of a file's head, if nothing else does not fit; else 0."""
    if not all(name in wanted and name in state for name in unfit):
        return 0
    heads = {
        state[name].shape[0]
        if state[name].dim() and wanted[name].shape == (classes, *state[name].shape[1:])
        else 0
        for name in unfit
    }
    return heads.pop() if len(heads) == 1 else 0


def read_state(path: Path) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Read the state dict in a file; return it, and how it was unwrapped.

    Raises ConfigError for other content, and for what is not finite as float32.
    """
    found, done = unwrapped(read_file(path), path)
    for name, tensor in found.items():
        if what := tensor.is_floating_point() and not_finite(tensor.float()):
            raise ConfigError(
                f"teacher.weights `{path}` has {what} in `{name}`", "give another file"
            )
    return found, done


def read_file(path: Path) -> Any:
    """Read what a .safetensors file holds, or a .pth without running any code."""
    from safetensors.torch import load_file

    try:
        with path.open("rb") as file:
            head = file.read(32)
        what, hint = _mistaken(path, head)
        if not what and path.suffix == ".safetensors":
            what, hint = "it is damaged or cut off", "copy it again"
            return load_file(path)
        if not what:
            what, hint = "it is damaged, or not made by `torch.save`", f"copy it again, or {SAVE}"
            with torch.serialization.safe_globals(BESIDE):
                return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        what, hint = error.strerror or first_line(error), ""
    except Exception as error:  # a damaged pickle raises IndexError, KeyError, struct.error, ...
        if found := re.search(r"GLOBAL ([\w.]+)", str(error)):
            what, hint = f"it holds Python objects (`{found[1]}`), not only tensors", SAVE
    raise ConfigError(f"can't read teacher.weights `{path}`: {what}", hint) from None


def _mistaken(path: Path, head: bytes) -> tuple[str, str]:
    """Say what a file is if its first bytes don't fit its name, and what to do."""
    if not head:
        return "it is empty", "copy it again"
    for start, what, hint in FORMS:
        if head.startswith(start):
            return what, hint
    tensors = path.suffix == ".safetensors"
    if head[8:9] == b"{" and not tensors:
        return "it is a safetensors file", "name it .safetensors"
    if head.startswith(b"PK"):
        if not zipfile.is_zipfile(path):
            return "it is damaged or cut off", "copy it again"
        with zipfile.ZipFile(path) as archive:
            names = {Path(name).name for name in archive.namelist()}
        if "constants.pkl" in names:
            return "it is a TorchScript archive", SAVE
        if "data.pkl" not in names:
            return "it is a zip archive, not made by `torch.save`", "unpack it"
    if tensors and head.startswith((b"PK", b"\x80")):
        return "it was made by `torch.save`", "name it .pth"
    return "", ""


def unwrapped(content: Any, path: Path) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Return the only state dict inside, without prefixes of all its names, and what was done."""
    done: list[str] = []
    if isinstance(content, dict) and not _is_state(content):
        inside = [key for key, value in content.items() if _is_state(value)]
        if len(inside) > 1:
            names = ", ".join(f"`{key}`" for key in inside)
            raise ConfigError(f"`{path}` contains several state dicts: {names}", "save one alone")
        if inside:
            content = content[inside[0]]
            done.append(f"`{inside[0]}`")
    if not _is_state(content):
        raise ConfigError(
            f"`{path}` does not contain a state dict of tensors", "save it with `net.state_dict()`"
        )
    prefix = ""
    while more := [p for p in PREFIXES if all(name.startswith(prefix + p) for name in content)]:
        prefix += more[0]
    if prefix:
        done.append(f"names without the prefix `{prefix}`")
    return {name.removeprefix(prefix): tensor for name, tensor in content.items()}, done


def _is_state(value: Any) -> bool:
    return isinstance(value, dict) and bool(value) and all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor)
        for name, tensor in value.items()
    )  # fmt: skip


def _shape(state: dict[str, torch.Tensor], name: str) -> str:
    return str(tuple(state[name].shape)) if name in state else "no such tensor"
