"""A searched key and its values, as Optuna counts and draws them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from moist.errors import ConfigError

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution


@dataclass(frozen=True)
class Parameter:
    """A key that is searched.

    A categorical has `choices`, typed as the config shows them. A range has `low` and `high`,
    both of which can be drawn, perhaps a `step`, and `log` if it is drawn by its logarithm.
    `when` holds keys and values: the parameter applies where each of the keys has one of them.
    """

    name: str
    kind: Literal["categorical", "int", "float"]
    choices: tuple[Any, ...] = ()
    low: float = 0
    high: float = 0
    step: float | None = None
    log: bool = False
    when: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    @property
    def finite(self) -> bool:
        return self.kind != "float" or self.step is not None

    def values(self) -> Sequence[Any]:
        """All values, in order. Raises ConfigError for a range of reals without a step."""
        if self.kind == "categorical":
            return self.choices
        if self.kind == "int":
            return range(int(self.low), int(self.high) + 1, int(self.step or 1))
        if self.step is None:
            raise ConfigError(
                f"`{self.name}` is a range of reals, whose values have no end",
                "write `values`, or `distribution: q_uniform` with `q`",
            )
        count = round((self.high - self.low) / self.step)
        return [min(i * self.step + self.low, self.high) for i in range(count + 1)]

    def ends(self) -> Sequence[Any]:
        """Its choices, or the two bounds of its range."""
        return self.choices if self.kind == "categorical" else (self.low, self.high)


def distribution(parameter: Parameter) -> BaseDistribution:
    """The parameter in Optuna's terms, which are those of W&B's own converter."""
    from optuna import distributions

    p = parameter
    if p.kind == "categorical":
        return distributions.CategoricalDistribution(p.choices)
    if p.kind == "int":
        return distributions.IntDistribution(int(p.low), int(p.high), p.log, int(p.step or 1))
    return distributions.FloatDistribution(p.low, p.high, p.log, p.step)
