"""What a sweep can optimize or limit: names, directions, and where a report says them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from moist.errors import ConfigError, unknown
from moist.results.report import Report

Direction = Literal["max", "min"]


class Quantity(NamedTuple):
    """A number of a run: which way is better, and what it is."""

    better: Direction
    means: str


QUANTITIES: dict[str, Quantity] = {
    "accuracy": Quantity("max", "share of the validation images classified right"),
    "mflops": Quantity("min", "fvcore's count an image, a multiply-add is one, in millions"),
    "mmacs": Quantity("min", "its convolution and linear part, in millions"),
    "params": Quantity("min", "weights of all networks that the model may ask"),
    "bytes": Quantity("min", "size of these weights"),
    "latency_ms": Quantity("min", "median milliseconds a call with one image"),
}
TRAINED = {"accuracy"}
"""What only training tells; everything else is known from the architecture."""

PREFIX = "objective/"
"""Before an objective's name in W&B's summaries, and so in sweep files."""
TEST = "test/"
"""Before the name of what is only reported: `test/accuracy`."""


@dataclass(frozen=True)
class Objective:
    """A quantity and the direction to push it: `accuracy:max`."""

    name: str
    direction: Direction

    def __str__(self) -> str:
        return f"{self.name}:{self.direction}"

    def loss(self, value: float) -> float:
        """The value such that less is better."""
        return -value if self.direction == "max" else value


@dataclass(frozen=True)
class Limit:
    """A bound that a model must keep: `side` is "max" for `name <= value`."""

    name: str
    side: Direction
    value: float

    def __str__(self) -> str:
        return f"{self.name} {'<=' if self.side == 'max' else '>='} {self.value:.15g}"

    def excess(self, value: float) -> float:
        """How far `value` is beyond the bound; at most 0 where it is kept."""
        return value - self.value if self.side == "max" else self.value - value


DEFAULT = (Objective("accuracy", "max"), Objective("mflops", "min"))


def parse_objectives(texts: Iterable[str]) -> tuple[Objective, ...]:
    """From `accuracy:max`, or `accuracy` for its natural direction. Raises ConfigError."""
    found = []
    for text in texts:
        name, _, direction = text.partition(":")
        better = known(name).better
        if direction not in {"", "max", "min"}:
            raise ConfigError(
                f"objective `{text}`: expected NAME:max or NAME:min, found `{direction}`",
                f"for example: {name}:{better}",
            )
        found.append(Objective(name, "max" if (direction or better) == "max" else "min"))
    names = [objective.name for objective in found]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ConfigError(f"objective `{twice.pop()}` is given twice")
    return tuple(found) or DEFAULT


def parse_limits(at_most: Iterable[str], at_least: Iterable[str] = ()) -> tuple[Limit, ...]:
    """From the `NAME=VALUE`s of --max and --min. Raises ConfigError."""
    sides: tuple[tuple[Direction, Iterable[str]], ...] = (("max", at_most), ("min", at_least))
    return tuple(
        Limit(name, side, value)
        for side, texts in sides
        for name, value in (_valued(text, f"--{side}") for text in texts)
    )


def parse_values(texts: Iterable[str], option: str) -> dict[str, float]:
    """Quantities by name, from the `NAME=VALUE`s of an option. Raises ConfigError."""
    return dict(_valued(text, option) for text in texts)


def _valued(text: str, option: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    known(name)
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ConfigError(
            f"`{option} {text}`: expected NAME=NUMBER", f"for example: {option} {name}=10"
        )
    return name, number


def known(name: str) -> Quantity:
    """Return a quantity by name. Raises ConfigError for an unknown one."""
    if name not in QUANTITIES:
        raise unknown("quantity", name, QUANTITIES)
    return QUANTITIES[name]


def quantities(report: Report) -> dict[str, float]:
    """Every quantity of a run by name; `accuracy` only if it has validation images.

    What second opinions cost is that of the validation images: quantities are chosen by.
    """
    found = {
        "accuracy": report.val_accuracy,
        "mflops": report.deferral.chosen.val_mflops if report.deferral else report.mflops,
        "mmacs": report.deferral.chosen.val_mmacs if report.deferral else report.mmacs,
        "params": report.params,
        "bytes": report.bytes,
        "latency_ms": (report.latency_ms or {}).get("batch_1"),
    }
    return {name: float(value) for name, value in found.items() if value is not None}


def reported(report: Report) -> dict[str, float]:
    """Accuracies on the test split, the model's and those beside it: told, never selected by."""
    beside = {name: row.accuracy for name, row in report.baselines if row is not None}
    found = {"accuracy": report.accuracy, **beside, "routing": report.routing_accuracy}
    return {name: value for name, value in found.items() if value is not None}


def check_measured(objectives: Iterable[Objective], val_fraction: float) -> None:
    """Raise ConfigError for an objective that a run without validation images can't give."""
    if not val_fraction and (names := {one.name for one in objectives} & TRAINED):
        raise ConfigError(
            f"objective `{names.pop()}` is measured on validation images, and"
            " `data.val_fraction=0` leaves none",
            "set `data.val_fraction=0.1`: the test split is never selected on",
        )


def check_honest(router: str) -> None:
    """Raise ConfigError for a router that is told the label: it would top every frontier."""
    if router == "oracle":
        raise ConfigError(
            "`router=oracle` is told each image's class: an upper bound, not a model to find",
            "measure it alone: `moist run router=oracle`",
        )


def losses(values: Mapping[str, float], objectives: Sequence[Objective]) -> list[float]:
    """One point of the objectives' space, less being better in each."""
    return [objective.loss(values[objective.name]) for objective in objectives]
