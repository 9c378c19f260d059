"""Names that other packages add to moist's registries, by entry points.

| entry point group | key | what the entry point names |
|---|---|---|
| `moist.routers` | `router` | `build(image_shape, outputs)`, or a `RouterEntry` |
| `moist.students` | `student.arch` | `build(image_shape, outputs)`, or a `NetworkEntry` |
| `moist.teachers` | `teacher.arch` | `build(image_shape, outputs)`, or a `NetworkEntry` |
| `moist.losses` | `distill.loss` | `loss(student_BC, teacher_BC, labels_B, *, temperature)` |
| `moist.datasets` | `data.name` | a `DataEntry(classes, image_shape, load)` |

`build` is called with (C, H, W) and a number of outputs, under a seed, and returns a fresh
`torch.nn.Module` that maps float images (B, C, H, W), normalized by mean and deviation of the
training images, to logits (B, outputs): one row an image, never probabilities, without lazy
parameters. A router's outputs are the clusters. `NetworkEntry` and `RouterEntry`
(`moist.nets.entry`) also say what only some options need; `distill.loss=moe_kd` needs the last
layer of a student, and of a teacher that and its levels.

`loss` gets float32 logits (B, C) and int64 labels (B,), and returns a scalar with a gradient, the
mean over the images; `distill.alpha` weighs it.

`load(root)` of a `DataEntry` (`moist.data.external`) gets `data.root`, or None, and returns
`{"train": (images, labels), "test": (images, labels)}`, uint8 (N, H, W, C) and classes (N,) from
0, the same in each call.

Names are listed without importing a package; it is imported where its name is used, and what it
returns is checked before anything trains. A key holds the package and its version: raise the
version with each change of what is computed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, PackageNotFoundError, entry_points, version
from typing import Any, TypeVar

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from moist.errors import ConfigError, brief, did_you_mean

E = TypeVar("E")
ZOOS = {"teachers": ("torchvision", "timm")}
"""Packages whose networks are named `PACKAGE:NAME`, by registry."""
CONTRACT = "`python -m pydoc moist.config.plugins` shows what is expected"
UNFIT = "unfit_name"
"""The type of pydantic's error for a name that is known, but can't be used."""


@cache
def offered(registry: str) -> Mapping[str, tuple[EntryPoint, ...]]:
    """Return the entry points of a registry by name, without importing what they name."""
    found: dict[str, tuple[EntryPoint, ...]] = {}
    for point in sorted(entry_points(group=f"moist.{registry}")):
        found[point.name] = (*found.get(point.name, ()), point)
    return found


@dataclass(frozen=True)
class Names:
    """Marks a text field that names an entry of a registry, built in or of another package.

    In memory the name of another package's has that and its version, `gated (acme 1.2)`, so that
    every key which the name enters has them too. Dumped it is the bare name.
    """

    registry: str
    builtin: tuple[str, ...]

    def known(self) -> list[str]:
        """List the names. Raises ConfigError for a package that takes a name of moist's."""
        others = offered(self.registry)
        if taken := sorted(others.keys() & {*self.builtin}):
            raise ConfigError(
                f"{_package(others[taken[0]][0])} adds `{taken[0]}` to moist.{self.registry},"
                " and moist has that name itself",
                "give it another name in that package, or uninstall it",
            )
        return [*self.builtin, *others]

    def pinned(self, name: str) -> str:
        """Return a name with its package and version. Raises what pydantic turns into an error."""
        bare, _ = split_name(name)
        if bare in self.builtin:
            return bare
        try:
            full = f"{bare} ({package_of(self.registry, bare)})"
            _check_version(self.registry, name, full)
        except ConfigError as error:
            raise PydanticCustomError(UNFIT, "{text}", {"text": str(error)}) from None
        except KeyError:
            raise ValueError("unknown name") from None
        return full

    def __get_pydantic_core_schema__(self, _: Any, __: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(
            self.pinned,
            core_schema.str_schema(),
            serialization=core_schema.plain_serializer_function_ser_schema(bare_name),
        )

    def __get_pydantic_json_schema__(
        self, _: CoreSchema, __: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        zoos = [f"{zoo}:NAME" for zoo in ZOOS.get(self.registry, ())]
        facts = {"type": "string", "enum": self.known(), "registry": f"moist.{self.registry}"}
        return {**facts, **({"forms": zoos} if zoos else {})}


class Registry(dict[str, E]):
    """The built-in entries of a registry; one of another package is loaded where it is used.

    `adapt` makes an entry of what an entry point names, or raises ConfigError; it is given a text
    that says what and whose that is. `zoos` make an entry of a network's name, by package.
    """

    def __init__(
        self,
        name: str,
        builtin: Mapping[str, E],
        adapt: Callable[[Any, str], E],
        zoos: Mapping[str, Callable[[str], E]] | None = None,
    ) -> None:
        super().__init__(builtin)
        self.name, self.adapt, self.zoos = name, adapt, zoos or {}
        self.loaded: dict[str, E] = {}

    def __missing__(self, name: str) -> E:
        """Return the entry of another package, by its name with or without the version.

        Raises ConfigError if it is not installed, of another version, fails or is unfit.
        """
        bare, made_with = split_name(name)
        try:
            full = f"{bare} ({package_of(self.name, bare)})"
        except KeyError:
            of = f" of {made_with}" if made_with else ""
            raise ConfigError(
                f"no installed package adds `{bare}`{of} to moist.{self.name}",
                f"`pip install {made_with.replace(' ', '==')}`"
                if made_with
                else did_you_mean(bare, [*self, *offered(self.name)]),
            ) from None
        _check_version(self.name, name, full)
        if bare not in self.loaded:
            self.loaded[bare] = self._load(bare)
        return self.loaded[bare]

    def _load(self, bare: str) -> E:
        zoo, _, network = bare.partition(":")
        if zoo in self.zoos:
            return self.zoos[zoo](network)
        [point] = offered(self.name)[bare]
        what = f"`{bare}` of {_package(point)} (moist.{self.name}, {point.value})"
        try:
            found = point.load()
        except Exception as error:
            raise ConfigError(
                f"can't import {what}: {brief(error)}", "repair or uninstall that package"
            ) from error
        return self.adapt(found, what)


def package_of(registry: str, name: str) -> str:
    """Return package and version of a name that is not built in. Raises KeyError if unknown.

    Raises ConfigError if two packages add it, or its package is not installed.
    """
    zoo, colon, network = name.partition(":")
    if colon and network and zoo in ZOOS.get(registry, ()):
        try:
            return _versioned(zoo, version(zoo))
        except PackageNotFoundError:
            raise ConfigError(
                f"`{name}` needs {zoo}, which is not installed", f"`pip install 'moist[{zoo}]'`"
            ) from None
    points = offered(registry)[name]
    if len(points) > 1:
        raise ConfigError(
            f"`{name}` is ambiguous: {' and '.join(map(_package, points))} add it to"
            f" moist.{registry}",
            "uninstall one of them",
        )
    return _package(points[0])


def split_name(name: str) -> tuple[str, str]:
    """Split a name from its package and version, `gated (acme 1.2)`; empty if it has none."""
    found = re.fullmatch(r"(.+) \((\S+ \S+)\)", name)
    return (found[1], found[2]) if found else (name, "")


def bare_name(name: str) -> str:
    """Return a name without its package and version."""
    return split_name(name)[0]


def _check_version(registry: str, name: str, full: str) -> None:
    """Raise ConfigError for a name with a package or version other than the installed one."""
    bare, made_with = split_name(name)
    if made_with and name != full:
        raise ConfigError(
            f"`{bare}` of moist.{registry} was of {made_with}, and {split_name(full)[1]} is"
            " installed",
            f"`pip install {made_with.replace(' ', '==')}`, or train again with the installed one",
        )


def _package(point: EntryPoint) -> str:
    assert point.dist is not None
    return _versioned(point.dist.name, point.dist.version)


def _versioned(package: str, release: str) -> str:
    """Join package and version, without a build's label: `0.29+cpu` computes what 0.29 does."""
    return f"{package} {release.partition('+')[0]}"
