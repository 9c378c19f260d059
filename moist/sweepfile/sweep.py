"""A sweep file as a space of configs: read, counted, walked through."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from moist.config import Config
from moist.config.files import document, included, locate
from moist.config.overrides import build, given, read
from moist.errors import ConfigError
from moist.results.objectives import Objective
from moist.sweepfile.conditions import check_possible, in_order, possible, read_when
from moist.sweepfile.entries import read_entry
from moist.sweepfile.errors import noted, together
from moist.sweepfile.header import check_head, for_wandb, read_objectives
from moist.sweepfile.parameters import Parameter

ALL_TRIED = 1000
"""A space of at most so many points is searched for one that is a valid config, and refused
without any."""


@dataclass(frozen=True)
class Sweep:
    """What a file asks for, after overrides.

    `objectives` are the file's `metrics`; None without: a single `metric` is what W&B's `bayes`
    optimizes, and only checked. `fixed` holds values as the config shows them. A parameter
    comes after those that its `when` names; otherwise they are in the file's order. `for_wandb`
    names what of the file only W&B heeds, and the option that plays its part in a study.
    """

    name: str
    path: Path
    method: str
    objectives: tuple[Objective, ...] | None
    fixed: dict[str, Any]
    parameters: tuple[Parameter, ...]
    run_cap: int | None = None
    for_wandb: Mapping[str, str] = field(default_factory=dict)


def read_sweep(path: Path, overrides: Iterable[str] = ()) -> Sweep:
    """Read a file as a search; `KEY=VALUE` and `@FILE` overrides fix keys, also searched ones.

    `path` may name a file that comes with moist, as `quickstart`. The values of a recipe that the
    file's `command` includes are fixed, unless the file has a parameter of that name. A parameter
    that can't apply any more, given what is fixed, is dropped. Raises ConfigError with all
    mistakes, a line each: what was asked, what was found and what to write.
    """
    path = locate(str(path))
    fixes = {key: read(key, value) for key, value in given(overrides).items()}
    content = document(path)
    if not isinstance(content, dict):
        raise ConfigError(f"`{path}` holds no W&B sweep", "sweeps/ has some to start from")
    wrong: list[str] = []
    with noted(wrong):
        check_head(content)
    with noted(wrong):
        entries = _entries(path, content)
        every = _parameters(content, entries)
    if not wrong:
        constants = [one for one in every if "value" in entries[one] and not every[one].when]
        sweep = _sweep(path, content, every, constants, fixes)
        wrong = list(_hopeless(sweep))
    if wrong:
        raise ConfigError("\n".join(dict.fromkeys(wrong)), f"correct `{path}`")
    return sweep


def problems(path: Path) -> list[str]:
    """All that `read_sweep` refuses a file for, a line each; none if it can be searched."""
    try:
        read_sweep(path)
    except ConfigError as error:
        return str(error.args[0]).splitlines()
    return []


def active(sweep: Sweep, chosen: Mapping[str, Any], parameter: Parameter) -> bool:
    """Whether a parameter applies, given the values chosen for those before it."""
    known = {**sweep.fixed, **chosen}
    return all(key in known and known[key] in values for key, values in parameter.when.items())


def grid(sweep: Sweep) -> Iterator[dict[str, Any]]:
    """Every point once, the last parameter varying fastest. Raises ConfigError without an end."""

    def points(chosen: dict[str, Any], left: tuple[Parameter, ...]) -> Iterator[dict[str, Any]]:
        if not left:
            yield chosen
        elif active(sweep, chosen, left[0]):
            for value in left[0].values():
                yield from points({**chosen, left[0].name: value}, left[1:])
        else:
            yield from points(chosen, left[1:])

    for parameter in sweep.parameters:
        parameter.values()  # raises now, not at some point of the grid
    return points({}, sweep.parameters)


def size(sweep: Sweep) -> int | None:
    """How many points `grid` has; None where a range of reals has no end of values."""
    if not all(parameter.finite for parameter in sweep.parameters):
        return None
    deciders = {key for parameter in sweep.parameters for key in parameter.when}

    def count(chosen: dict[str, Any], left: tuple[Parameter, ...]) -> int:
        if not left:
            return 1
        first, rest = left[0], left[1:]
        if not active(sweep, chosen, first):
            return count(chosen, rest)
        if first.name not in deciders:
            return len(first.values()) * count(chosen, rest)
        return sum(count({**chosen, first.name: value}, rest) for value in first.values())

    return count({}, sweep.parameters)


def config_of(sweep: Sweep, params: Mapping[str, Any]) -> Config:
    """The config of a point. Raises ConfigError for values that don't go together."""
    return build({**sweep.fixed, **params})


def _entries(path: Path, content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the file's entries by key, after those of the recipes that its `command` includes.

    An entry of the file takes the place of a recipe's. Raises ConfigError.
    """
    own = content.get("parameters")
    own = own if isinstance(own, dict) else {}
    recipe: dict[str, Any] = {}
    with together() as wrong:
        for word in included(content):
            with noted(wrong, f"`{word}`: " if word.startswith("@") else "`command`: "):
                values = given([word], (path.resolve(),))
                recipe |= {key: {"value": read(key, value)} for key, value in values.items()}
        wrong += [
            f"`{name}`: it has a `when`, and where that does not hold a W&B agent would use the"
            " value of the included recipe; leave out one of them"
            for name in recipe
            if "when" in (own.get(name) or ())
        ]
    return {key: entry for key, entry in recipe.items() if key not in own} | own


def _parameters(content: Mapping[str, Any], entries: Mapping[str, Any]) -> dict[str, Parameter]:
    """Return every parameter that the entries name, constants included. Raises ConfigError."""
    every: dict[str, Parameter] = {}
    with together() as wrong:
        for name, entry in entries.items():
            with noted(wrong):
                every[name] = read_entry(name, entry)
        for name, plain in every.items():
            if "when" in entries[name]:
                with noted(wrong):
                    when = read_when(name, entries[name]["when"], every, entries)
                    every[name] = replace(plain, when=when)
        with noted(wrong):
            check_possible(every)
        wrong += [
            f"`{one.name}`: W&B's `method: grid` takes `values`, or whole numbers one by one;"
            " write `values`, or another method"
            for one in every.values()
            if content.get("method") == "grid" and (not one.finite or one.step or one.log)
        ]
    return every


def _sweep(
    path: Path,
    content: Mapping[str, Any],
    every: Mapping[str, Parameter],
    constants: Collection[str],
    fixes: dict[str, Any],
) -> Sweep:
    """Return what is left to search once the constants and `fixes` are fixed."""
    fixed = {**{name: every[name].choices[0] for name in constants}, **fixes}
    searched = [one for one in every.values() if one.name not in fixed]
    return Sweep(
        name=path.stem,
        path=path,
        method=str(content["method"]),
        objectives=read_objectives(content, "metrics") if "metrics" in content else None,
        fixed=fixed,
        parameters=in_order(one for one in searched if possible(one.name, every, fixed)),
        run_cap=content["run_cap"].seen if "run_cap" in content else None,
        for_wandb=for_wandb(content),
    )


def _hopeless(sweep: Sweep) -> Iterator[str]:
    """Why values can't work with what is fixed; for a small space, why no point of it can.

    Some combinations of searched values may be refused: these trials fail, the others don't.
    """
    searched = {parameter.name for parameter in sweep.parameters}
    found = False
    for parameter in sweep.parameters:
        for value in parameter.ends():
            said = _refusal(sweep, {parameter.name: value})
            named = set(re.findall(r"`([\w.]+)", said))
            if said and not named & (searched - {parameter.name}):
                found = True
                yield said
    if not found and (size(sweep) or math.inf) <= ALL_TRIED:
        refusals = [_refusal(sweep, point) for point in grid(sweep)]
        if all(refusals):
            yield f"no combination of values works: {refusals[0]}" if searched else refusals[0]


def _refusal(sweep: Sweep, params: Mapping[str, Any]) -> str:
    """Why a point is no config; empty if it is one."""
    try:
        config_of(sweep, params)
    except ConfigError as error:
        return str(error.args[0])
    return ""
