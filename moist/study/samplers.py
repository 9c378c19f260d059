"""Which point to try next: Optuna's samplers, reseeded for each trial; no point is drawn twice.

A sampler is created for each trial, from the study's seed and the number of draws so far, and so
depends on the study's trials alone: an interrupted study continues like an unbroken one.
"""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import count
from typing import TYPE_CHECKING, Any

from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from moist.errors import ConfigError
from moist.results.trials import Trial
from moist.sweepfile import Parameter, Sweep, active, distribution, grid, size

if TYPE_CHECKING:
    from optuna import Study
    from optuna import Trial as LiveTrial

GP_SECONDS, GP_TRIALS, GP_AFTER = 60.0, 300, 10
"""When `auto` takes a Gaussian process, which needs seconds a draw: the least median seconds of a
trial, the most trials requested, and the least complete trials."""

DRAWS, GP_DRAWS = 20, 3
"""Draws that may repeat a point that was tried, before an untried one is picked at random. A
Gaussian process is slow, and draws its best point again and again."""

GP_PROPOSAL = "gp:relative_params:"
"""Prefix of the attributes by which Optuna's Gaussian process knows of running trials."""

MAKERS: dict[str, Callable[[int, bool], BaseSampler]] = {
    "tpe": lambda seed, alone: TPESampler(seed=seed, constant_liar=not alone),
    "gp": lambda seed, alone: GPSampler(seed=seed, warn_independent_sampling=False),
    "nsga2": lambda seed, alone: NSGAIISampler(seed=seed),
    "random": lambda seed, alone: RandomSampler(seed=seed),
    "grid": lambda seed, alone: RandomSampler(seed=seed),
}
"""Makers of samplers from a seed. One that draws `alone` has no running trials to avoid, which is
half of the work of constant-liar TPE."""


def chosen(name: str, sweep: Sweep, trials: Sequence[Trial], requested: int) -> str:
    """Return the sampler that `name` means now.

    `auto` is the file's grid or random, else TPE, or GP once trials are expensive. GP (Optuna's
    qLogEHVI) finds more in few trials, and takes seconds to draw one. It can't learn from trials
    under different limits: raises ConfigError if it was chosen by name.
    """
    kept = [sorted(trial.constraints) for trial in trials if trial.state == "complete"]
    same_limits = all(limits == kept[0] for limits in kept)
    if name == "gp" and not same_limits:
        raise ConfigError(
            "`--sampler gp` can't learn from trials under different limits: there are"
            f" {' and '.join(sorted({', '.join(limits) or 'none' for limits in kept}))}",
            "use the `--max` that the study began with, or another sampler",
        )
    if name != "auto":
        return name
    if sweep.method in {"grid", "random"}:
        return str(sweep.method)
    seconds = [trial.seconds for trial in trials if trial.state == "complete" and trial.seconds]
    expensive = len(seconds) >= GP_AFTER and statistics.median(seconds) >= GP_SECONDS
    return "gp" if expensive and same_limits and requested <= GP_TRIALS else "tpe"


def seed_of(*parts: object) -> int:
    """Hash all parts to a seed of 32 bits."""
    digest = hashlib.sha256(":".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:4], "big")


def suggest(sweep: Sweep, trial: LiveTrial) -> dict[str, Any]:
    """Draw a value for each parameter that applies to a trial."""
    params: dict[str, Any] = {}
    for parameter in sweep.parameters:
        if active(sweep, params, parameter):
            params[parameter.name] = _take(trial, parameter)
    return params


def _take(trial: LiveTrial, p: Parameter) -> Any:
    if p.kind == "categorical":
        return trial.suggest_categorical(p.name, p.choices)
    take: Callable[..., Any] = trial.suggest_int if p.kind == "int" else trial.suggest_float
    step = {} if p.step is None else {"step": p.step}
    return take(p.name, p.low, p.high, log=p.log, **step)


class Untried(BaseSampler):
    """A sampler that repeats the draws of another until the point is an untried one.

    A point that was tried would give the same result from its stored stages. In a finite space
    the last points are found by enumeration; the caller has checked that there are any.
    """

    def __init__(
        self, sweep: Sweep, name: str, seed: int, tried: Collection[str], alone: bool = False
    ) -> None:
        self.sweep, self.name, self.seed, self.tried = sweep, name, seed, tried
        self.base = MAKERS[name](seed, alone)
        self.space = {p.name: distribution(p) for p in sweep.parameters}

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return self.space

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Draw all parameters at once, so that the point can be compared."""
        self._forget(study, trial)
        for params in self._candidates(study, trial):
            if point(params) not in self.tried:
                return params
        raise RuntimeError("every point of this finite space has been tried")

    def sample_independent(
        self, study: Study, trial: FrozenTrial, name: str, distribution: BaseDistribution
    ) -> Any:
        return self.base.sample_independent(study, trial, name, distribution)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        self.base.before_trial(study, trial)

    def after_trial(
        self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        self.base.after_trial(study, trial, state, values)

    def _draw(self, study: Study, trial: FrozenTrial) -> dict[str, Any]:
        """Draw a value for each parameter that applies, as the base sampler would."""
        space = self.base.infer_relative_search_space(study, trial)
        together = self.base.sample_relative(study, trial, space)
        params: dict[str, Any] = {}
        for parameter in self.sweep.parameters:
            name = parameter.name
            if active(self.sweep, params, parameter):
                params[name] = (
                    together[name]
                    if name in together
                    else self.base.sample_independent(study, trial, name, self.space[name])
                )
        return params

    def _forget(self, study: Study, trial: FrozenTrial) -> None:
        """Delete a lost driver's proposals, which a Gaussian process takes for running trials."""
        for name in trial.system_attrs:
            if name.startswith(GP_PROPOSAL):
                study._storage.set_trial_system_attr(trial._trial_id, name, "")

    def _candidates(self, study: Study, trial: FrozenTrial) -> Iterator[dict[str, Any]]:
        """Yield draws of the base sampler, then random ones, then all points of a finite space."""
        if self.name == "grid":
            yield from grid(self.sweep)
        for _ in range(GP_DRAWS if self.name == "gp" else DRAWS):
            yield self._draw(study, trial)
        self.base = MAKERS["random"](seed_of(self.seed), True)
        for _ in count() if size(self.sweep) is None else range(DRAWS):
            yield self._draw(study, trial)
        yield from sorted(grid(self.sweep), key=lambda params: seed_of(self.seed, point(params)))


def point(params: Mapping[str, Any]) -> str:
    """Serialize parameters, in an order of their own."""
    return json.dumps(dict(params), sort_keys=True)
