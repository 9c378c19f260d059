"""From a sweep file to the search that it describes, or to everything that is wrong with it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from moist.config import Config, flat
from moist.config.files import document, flattened, included, locate
from moist.config.overrides import given, read
from moist.config.unread import no_effect
from moist.errors import ConfigError
from moist.sweepfile.entries import read_entries
from moist.sweepfile.errors import noted, raised_together
from moist.sweepfile.header import check_header, present, read_objectives, wandb_only
from moist.sweepfile.space import Parameter, Sweep, config_of, ends, grid, in_order, possible, size

EXHAUSTIVE = 1000
"""Most points of a space that is searched exhaustively for one that is a valid config."""


def read_sweep(path: Path, overrides: Iterable[str] = ()) -> Sweep:
    """Read a file as a search; `KEY=VALUE` and `@FILE` overrides fix keys, also searched ones.

    `path` may name a file that comes with moist, as `quickstart`. The values of a recipe that the
    file's `command` includes are fixed, unless the file has a parameter of that name. A parameter
    that can't apply any more, given what is fixed, is dropped. Raises ConfigError with all
    mistakes, a line each: what was requested, what was found and what to write.
    """
    path = locate(str(path))
    overrides = list(overrides)
    fixes = {key: read(key, value) for key, value in given(overrides).items()}
    content = document(path)
    if not isinstance(content, dict):
        raise ConfigError(f"`{path}` is not a W&B sweep", "`moist sweep list` has examples")
    content = present(content)
    mistakes: list[str] = []
    with noted(mistakes):
        check_header(content)
    with noted(mistakes):
        entries = _with_recipes(path, content)
        every = read_entries(entries, grid=content.get("method") == "grid")
    if not mistakes:
        constants = [one for one in every if "value" in entries[one] and not every[one].when]
        sweep = _sweep(path, content, every, constants, fixes)
        own = flattened(content["parameters"])
        mistakes = [
            *_infeasible(sweep),
            *_without_effect(sweep, {*own, *given(one for one in overrides if one[:1] != "@")}),
        ]
    if mistakes:
        raise ConfigError("\n".join(dict.fromkeys(mistakes)), f"correct `{path}`")
    return sweep


def problems(path: Path, check: Callable[[Sweep], None] = lambda sweep: None) -> list[str]:
    """Return each mistake for which `read_sweep`, and then `check`, rejects a file, as a line."""
    try:
        check(read_sweep(path))
    except ConfigError as error:
        return str(error.args[0]).splitlines()
    return []


def _with_recipes(path: Path, content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the file's entries by key, after those of the recipes that its `command` includes.

    An entry of the file takes the place of a recipe's. Raises ConfigError.
    """
    own = content.get("parameters")
    own = flattened(own) if isinstance(own, dict) else {}
    recipe: dict[str, Any] = {}
    with raised_together() as mistakes:
        for word in included(content):
            with noted(mistakes, f"`{word}`: " if word.startswith("@") else "`command`: "):
                values = given([word], (path.resolve(),))
                recipe |= {key: {"value": read(key, value)} for key, value in values.items()}
        mistakes += [
            f"`{name}`: it has a `when`, and where that does not hold a W&B agent would use the"
            " value of the included recipe; leave out one of them"
            for name in recipe
            if "when" in (own.get(name) or ())
        ]
    return {key: entry for key, entry in recipe.items() if key not in own} | own


def _sweep(
    path: Path,
    content: Mapping[str, Any],
    every: Mapping[str, Parameter],
    constants: Collection[str],
    fixes: dict[str, Any],
) -> Sweep:
    """Return what remains to search once the constants and `fixes` are fixed."""
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
        wandb_only=wandb_only(content),
    )


def _infeasible(sweep: Sweep) -> Iterator[str]:
    """Yield why values can't work with what is fixed, or why no point of a small space can.

    Some combinations of searched values may be invalid: these trials fail, the others do not.
    """
    searched = {parameter.name for parameter in sweep.parameters}
    for key in sorted(searched & {"data.name", "data.root"}):
        yield f"`{key}`: all trials of a study have one data set; write `value`, not a search"
    found = False
    for parameter in sweep.parameters:
        for value in parameter.ends():
            conflict = _conflict(sweep, {parameter.name: value})
            named = set(re.findall(r"`([\w.]+)", conflict))
            if conflict and not named & (searched - {parameter.name}):
                found = True
                yield conflict
    if not found and (size(sweep) or math.inf) <= EXHAUSTIVE:
        conflicts = [_conflict(sweep, point) for point in grid(sweep)]
        if all(conflicts):
            first = conflicts[0]
            yield f"no combination of values works: {first}" if searched else first


def _without_effect(sweep: Sweep, own: Collection[str]) -> Iterator[str]:
    """Yield which of the keys that are given, and not by a recipe, no point of the space reads."""
    defaults = flat(Config())
    searched = {one.name for one in sweep.parameters}
    for key in (*sweep.fixed, *(one.name for one in sweep.parameters)):
        if key in own and (key in searched or sweep.fixed[key] != defaults[key]):
            yield from filter(None, [no_effect(key, partial(ends, sweep))])


def _conflict(sweep: Sweep, params: Mapping[str, Any]) -> str:
    """Return why a point is not a valid config, an empty text if it is."""
    try:
        config_of(sweep, params)
    except ConfigError as error:
        return str(error.args[0])
    return ""
