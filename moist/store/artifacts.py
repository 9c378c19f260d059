"""The outputs of stages, and their form on disk: tensors as safetensors, the rest as JSON.

An artifact is a frozen dataclass of JSON values, tensors, dicts of tensors and other artifacts,
or a frozen pydantic record. No pickle is written or read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from pydantic import BaseModel

State = Mapping[str, torch.Tensor]
Row = Mapping[str, float]


class NotFinite(ValueError):
    """A tensor or a number that is not finite; the message names it."""


@dataclass(frozen=True)
class Split:
    """N images, uint8 (N, H, W, C), and their classes, int64 (N,)."""

    images_NHWC: torch.Tensor
    labels_N: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels_N)


@dataclass(frozen=True)
class Dataset:
    """Images in memory, with mean and std per channel (of pixels in [0, 1]) of the training split.

    `val` is empty without a validation split. Only `evaluate` reads `test`, and the comparison of
    an exported model with the trained one.
    """

    name: str
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    train: Split
    val: Split
    test: Split
    crop: bool = False
    """Whether the centre of an image of another size was taken; else all of it was stretched."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Return the shape of one image: (C, H, W)."""
        _, height, width, channels = self.train.images_NHWC.shape
        return channels, height, width


@dataclass(frozen=True)
class Spec:
    """The description of a network: registry name, image shape (C, H, W), outputs, options."""

    name: str
    image_shape: tuple[int, int, int]
    outputs: int
    options: dict[str, Any]


@dataclass(frozen=True)
class Network:
    """A trained network and one row of scalars an epoch."""

    spec: Spec
    state: dict[str, torch.Tensor]
    history: tuple[Row, ...]


class Teacher(Network):
    """The large network."""


class Student(Network):
    """The small network; copies of it become experts."""


class Router(Network):
    """A network from images to cluster logits. The oracle has no weights: it knows the class."""


@dataclass(frozen=True)
class Logits:
    """The teacher's logits on V augmented views of the N training images: float16 (V, N, C)."""

    train_VNC: torch.Tensor


@dataclass(frozen=True)
class Levels:
    """The teacher's features and predictions at each of its M levels, and its last linear layer.

    D channels in all, `widths` per level; F inputs of the last layer, C classes.
    """

    features_VND: torch.Tensor
    """Pooled outputs of the levels on V views of the N training images: float16."""
    widths: tuple[int, ...]
    tables_MCC: torch.Tensor
    """Row z, column y: probability of class y given that the level predicts z; float32."""
    weight_CF: torch.Tensor
    bias_C: torch.Tensor


@dataclass(frozen=True)
class Clusters:
    """The cluster `of_class[c]` of each class c; clusters are numbered by their smallest class."""

    of_class: tuple[int, ...]
    silhouette: dict[str, float]

    @property
    def k(self) -> int:
        return max(self.of_class) + 1


@dataclass(frozen=True)
class Mixture:
    """A router, k students that share a spec, and the clusters they serve.

    `shared`: all students have the same trunk, and the router reads its output. Without a router
    the first model of a cascade routes, by the probability that it gives to each cluster.
    """

    router: Router | None
    students: tuple[Student, ...]
    clusters: Clusters
    masked: bool
    gated: bool
    history: tuple[Row, ...]
    shared: bool = False


@dataclass(frozen=True)
class Ensemble:
    """Students whose probabilities are averaged; student i sees images through `views[i]`."""

    students: tuple[Student, ...]
    views: tuple[str, ...]
    history: tuple[Row, ...]


@dataclass(frozen=True)
class Cascade:
    """A model that defers images on which its confidence is below `threshold`.

    They are deferred to `fallback`, of a mixture to the student that `first` routes them to; if
    None, to the mixture's first and second expert together.
    """

    first: Mixture | Ensemble | Student
    fallback: Network | Mixture | None
    threshold: float


ARTIFACTS: dict[str, type[Any]] = {
    cls.__name__: cls
    for cls in (
        Split, Dataset, Spec, Network, Teacher, Student, Router, Logits, Levels, Clusters,
        Mixture, Ensemble, Cascade,
    )
}  # fmt: skip


def pack(value: Any) -> tuple[Any, dict[str, torch.Tensor]]:
    """Split an artifact into a JSON tree and named tensors; `unpack` is the inverse.

    Raises TypeError for what could not be read back: other values, dict keys that are not text,
    and two tensors with the same name. Raises NotFinite for NaN and infinity.
    """
    tensors: dict[str, torch.Tensor] = {}

    def tree(value: Any, name: str) -> Any:
        if isinstance(value, torch.Tensor):
            if name in tensors:
                raise TypeError(f"{name}: two tensors have this name")
            tensors[name] = value.detach().cpu().contiguous()
            if what := not_finite(tensors[name]):
                raise NotFinite(f"`{_plain(name)}` has {what}")
            return {"$tensor": name}
        if is_dataclass(value) and not isinstance(value, type):
            inner = {
                f.name: tree(getattr(value, f.name), f"{name}.{f.name}") for f in fields(value)
            }
            return {"$type": type(value).__name__, **inner}
        if isinstance(value, BaseModel):
            return {
                "$type": type(value).__name__,
                "$json": value.model_dump(mode="json", by_alias=True),
            }
        if isinstance(value, Mapping):
            if odd := [key for key in value if not isinstance(key, str)]:
                raise TypeError(f"{name}: the key {odd[0]!r} is not text")
            return {key: tree(inner, f"{name}.{key}") for key, inner in value.items()}
        if isinstance(value, tuple | list):
            return [tree(inner, f"{name}.{i}") for i, inner in enumerate(value)]
        if value is None or isinstance(value, bool | int | float | str):
            if isinstance(value, float) and not math.isfinite(value):
                raise NotFinite(f"`{_plain(name)}` is {value}")
            return value
        raise TypeError(
            f"{name}: {type(value).__name__} is neither JSON, a tensor nor an artifact"
        )

    return tree(value, "root"), tensors


def not_finite(tensor: torch.Tensor) -> str:
    """Return `NaN` or `infinity` if a tensor has one, else nothing."""
    if not tensor.is_floating_point() or not tensor.numel():
        return ""
    low, high = tensor.aminmax()  # NaN if one value is; makes no copy, as isfinite does
    if low.isnan() or high.isnan():
        return "NaN"
    return "" if low.isfinite() and high.isfinite() else "infinity"


def _plain(name: str) -> str:
    return name.rpartition("root.")[2]


def unpack(tree: Any, tensors: Mapping[str, torch.Tensor], records: Mapping[str, Any]) -> Any:
    """Rebuild what `pack` split; `records` has the pydantic record classes by name."""
    if isinstance(tree, list):
        return tuple(unpack(inner, tensors, records) for inner in tree)
    if not isinstance(tree, dict):
        return tree
    if "$tensor" in tree:
        return tensors[tree["$tensor"]]
    if "$json" in tree:
        return records[tree["$type"]].model_validate(tree["$json"])
    values = {k: unpack(v, tensors, records) for k, v in tree.items() if k != "$type"}
    return ARTIFACTS[tree["$type"]](**values) if "$type" in tree else values
