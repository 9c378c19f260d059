"""Types of config values: how they are read from text, and their bounds."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer

from moist.config.plugins import Names
from moist.disk import URL

LOCATION: dict[str, Any] = {"keyed": False}
"""Marks a field that is only a location: it enters no key."""


def only(**choices: str | tuple[str, ...]) -> dict[str, Any]:
    """Mark a field that is used only under certain values of other fields of its section.

    Under other values a stage's key has the field's default.
    """
    each = {name: [one] if isinstance(one, str) else list(one) for name, one in choices.items()}
    return {"only": each}


def unless(**choices: str) -> dict[str, Any]:
    """Mark a field that is used except under one value of another field of its section.

    So entries of other packages, whose names are not known here, use it, too.
    """
    return {"unless": choices}


def added(**choices: str | tuple[str, ...]) -> dict[str, Any]:
    """Mark a field that a section got after keys of it were stored; `choices` are those of `only`.

    Its default must do what was done before the field existed, and never change: a key leaves it
    out while it has its default, so what earlier versions stored keeps its key.
    """
    return {"added": True} | (only(**choices) if choices else {})


def needs(key: str, *values: object) -> dict[str, Any]:
    """Mark a field that is read only where another key has one of some values.

    Unlike with `only`, the field's own value is in a stage's key all the same.
    """
    return {"needs": {key: list(values)}}


def _numbers(value: object) -> object:
    """Split `32,64`, `[32, 64]` or `(32, 64)`; return other values as they are.

    Text in another notation, such as `32 64` or `[32`, stays whole, so that it is rejected.
    """
    if not isinstance(value, str):
        return value
    text = value.strip()
    if brackets := re.fullmatch(r"\[(.*)\]|\((.*)\)", text, re.DOTALL):
        text = (brackets[1] or brackets[2] or "").strip()
    text = text.removesuffix(",")  # Python's tuple of one
    return [part.strip() for part in text.split(",")] if text else []


def _nothing(value: object) -> object:
    """Return None for the ways in which YAML, Python and a shell write 'no value'."""
    return None if isinstance(value, str) and value.lower() in {"", "none", "null"} else value


def _local(value: object) -> object:
    """Reject a URL, which as a path would lose a slash: no file is found, no password masked."""
    if isinstance(value, str) and URL.match(value):
        raise ValueError("a URL is no path")
    return _nothing(value)


Widths = Annotated[
    tuple[Annotated[int, Field(ge=1, le=65536)], ...],
    BeforeValidator(_numbers),
    PlainSerializer(lambda widths: ",".join(map(str, widths)), return_type=str),
]
Epochs = Annotated[int, Field(ge=1, le=10_000)]
Fraction = Annotated[float, Field(ge=0, le=1)]
OptionalInt = Annotated[Annotated[int, Field(ge=1, le=1024)] | None, BeforeValidator(_nothing)]
OptionalEpochs = Annotated[Epochs | None, BeforeValidator(_nothing)]
Weight = Annotated[float, Field(ge=0, le=100)]
OptionalPath = Annotated[Path | None, BeforeValidator(_local)]

Residual = Literal["residual_2mf", "residual_7mf", "residual_9mf", "residual_26mf"]
"""Narrow residual networks, named by their multiply-adds on 32x32 pixels in millions."""
Peer = Literal["resnet8", "resnet20", "shufflenetv2_x0_5", "mobilenetv2_x0_5", Residual]
"""Small networks of fixed size, as teacher, student, expert or fallback."""
PEERS = get_args(Peer)
RouterName = Annotated[str, Names("routers", ("cnn", "linear", "transformer", "shared", "oracle"))]
StudentName = Annotated[str, Names("students", ("cnn", "residual", *PEERS))]
TeacherName = Annotated[str, Names("teachers", ("resnet18", "fastnet", "fastnet_wide", *PEERS))]
LossName = Annotated[str, Names("losses", ("kd", "dkd", "dist", "moe_kd"))]
DataName = Annotated[
    str,
    Names("datasets", ("digits", "cifar10", "cifar100", "fashion_mnist", "svhn", "folder")),
]


class Section(BaseModel):
    """A group of config fields: frozen, and without unknown names."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
