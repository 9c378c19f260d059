"""Quantities that a sweep can optimize or limit: names, directions, values of a report."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from moist.errors import ConfigError, unknown
from moist.results.report import Report

Direction = Literal["max", "min"]


class Quantity(NamedTuple):
    """A number of a run: the better direction, and its meaning."""

    better: Direction
    means: str


QUANTITIES: dict[str, Quantity] = {
    "accuracy": Quantity("max", "share of the validation images that are classified correctly"),
    "mflops": Quantity("min", "fvcore's flops (a multiply-add is one) of an image, in millions"),
    "mmacs": Quantity("min", "multiply-adds of convolution and linear layers alone, in millions"),
    "params": Quantity("min", "weights of all networks that the model may run"),
    "bytes": Quantity("min", "size of these weights"),
    "latency_ms": Quantity("min", "median milliseconds of a call with one image"),
}
SPREAD = "latency_spread"
"""Beside the quantities of a run: how far off its `latency_ms` may be, as a share of it."""
TRAINED = {"accuracy"}
"""Quantities that only training determines; the architecture determines all others."""

PREFIX = "objective/"
"""Prefix of an objective's name in W&B's summaries, and therefore in sweep files."""
TEST = "test/"
"""Prefix of accuracies on the test split, as in `test/accuracy`: they are only reported."""


@dataclass(frozen=True)
class Objective:
    """A quantity and the direction in which it is optimized, as `accuracy:max`."""

    name: str
    direction: Direction

    def __str__(self) -> str:
        return f"{self.name}:{self.direction}"

    def loss(self, value: float) -> float:
        """Return the value with its sign such that less is better."""
        return -value if self.direction == "max" else value


@dataclass(frozen=True)
class Limit:
    """A bound on a quantity; `side` is "max" for `name <= value`."""

    name: str
    side: Direction
    value: float

    def __str__(self) -> str:
        return f"{self.name} {'<=' if self.side == 'max' else '>='} {self.value:.15g}"

    def excess(self, values: Mapping[str, float]) -> float:
        """Return how far a run's value is beyond the bound, at most 0 if it is kept.

        A latency within its spread of the bound is a tie with it, and keeps it.
        """
        value, near = values[self.name], margin(values, self.name)
        return (value - self.value if self.side == "max" else self.value - value) - near


DEFAULT = (Objective("accuracy", "max"), Objective("mflops", "min"))


def parse_objectives(texts: Iterable[str]) -> tuple[Objective, ...]:
    """Parse `accuracy:max`, or `accuracy` for its better direction. Raises ConfigError."""
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
    """Parse the `NAME=VALUE`s of --max and --min. Raises ConfigError."""
    sides: tuple[tuple[Direction, Iterable[str]], ...] = (("max", at_most), ("min", at_least))
    return tuple(
        Limit(name, side, value)
        for side, texts in sides
        for name, value in (_valued(text, f"--{side}") for text in texts)
    )


def parse_values(texts: Iterable[str], option: str) -> dict[str, float]:
    """Parse the `NAME=VALUE`s of an option into values by name. Raises ConfigError."""
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
    """Return every quantity of a run by name; `accuracy` only if it has validation images.

    Costs of a model that defers are those of the validation images, because models are selected
    by quantities. The spread of its latency is beside it, if that is known.
    """
    found = {
        "accuracy": report.val_accuracy,
        "mflops": report.deferral.chosen.val_mflops if report.deferral else report.mflops,
        "mmacs": report.deferral.chosen.val_mmacs if report.deferral else report.mmacs,
        "params": report.params,
        "bytes": report.bytes,
        "latency_ms": (report.latency_ms or {}).get("batch_1"),
        SPREAD: (report.latency_spread or {}).get("batch_1"),
    }
    return {name: float(value) for name, value in found.items() if value is not None}


def reported(report: Report) -> dict[str, float]:
    """Return accuracies on the test split, of the model and its baselines: never selected by."""
    baselines = {name: row.accuracy for name, row in report.baselines if row is not None}
    found = {"accuracy": report.accuracy, **baselines, "routing": report.routing_accuracy}
    return {name: value for name, value in found.items() if value is not None}


def check_measured(names: Iterable[str], val_fraction: float) -> None:
    """Raise ConfigError for a quantity that a run without validation images can't give."""
    if not val_fraction and (missing := TRAINED.intersection(names)):
        raise ConfigError(
            f"`{missing.pop()}` is measured on validation images, and"
            " `data.val_fraction=0` leaves none",
            "set `data.val_fraction=0.1`: the test split is never used for selection",
        )


def check_honest(router: str) -> None:
    """Raise ConfigError for the oracle router, which would lead every frontier."""
    if router == "oracle":
        raise ConfigError(
            "`router=oracle` knows each image's class: an upper bound, not a model to search",
            "measure it alone: `moist run router=oracle`",
        )


def margin(values: Mapping[str, float], name: str) -> float:
    """Return how far off a run's value may be, in its unit: the spread of a latency, else 0.

    At most half the latency, so that a wild measurement does not tie with all others. Also 0 for
    a latency whose spread is unknown.
    """
    return values[name] * min(values.get(SPREAD, 0.0), 0.5) if name == "latency_ms" else 0.0


def losses(values: Mapping[str, float], objectives: Sequence[Objective]) -> list[float]:
    """Return a point of the objective space, with less being better in each coordinate."""
    return [objective.loss(values[objective.name]) for objective in objectives]
