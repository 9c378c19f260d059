"""Registration of a sweep file on W&B's server."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from moist.config.files import flattened, included
from moist.config.overrides import given
from moist.errors import ConfigError, StoreError
from moist.study.search import requested_trials
from moist.sweepfile import read_sweep, size
from moist.sweepfile.header import present
from moist.tracking.client import PROJECT
from moist.tracking.mode import choose_mode

ENGINE = Path(__file__).with_name("engine.py")
"""The file that W&B's Optuna scheduler searches with."""


AGENT = {
    "program": "program: moist",
    "command": 'command: ["${env}", moist, run, "${args_no_hyphens}"]',
}
"""What W&B's agents read, and the line to write."""


@dataclass(frozen=True)
class Registration:
    """A sweep file with its overrides: the content for the server, and the number of runs."""

    path: Path
    overrides: tuple[str, ...]
    content: Mapping[str, Any]
    budget: int

    @property
    def scheduled(self) -> bool:
        """Return whether a process on this machine draws the parameters, not the server."""
        return bool(self.content.get("scheduler"))


def registration(
    path: Path, overrides: Iterable[str] = (), count: int | None = None
) -> Registration:
    """Read a file for W&B's server, with the values of its recipes among its parameters.

    So every agent can run it, whether or not it has the files of this machine. Raises ConfigError
    for a file that W&B could not search.
    """
    overrides = tuple(overrides)
    search = read_sweep(path, overrides)
    path = search.path
    content = present(yaml.safe_load(path.read_bytes()))
    if missing := [line for word, line in AGENT.items() if word not in content]:
        raise ConfigError(
            f"`{path}` does not say how W&B's agents start a run",
            f"add {' and '.join(f'`{line}`' for line in missing)}; `moist sweep optuna` needs"
            " neither",
        )
    overridden = given(overrides)
    own = flattened(content["parameters"])
    parameters = own | {
        key: {"value": value}
        for key, value in search.fixed.items()
        if key in overridden or key not in own
    }
    words = included(content)
    content["command"] = [word for word in content["command"] if word not in words]
    engine = content.get("scheduler", {}).get("engine")
    conditional = [name for name, entry in parameters.items() if "when" in entry]
    if conditional and engine != "optuna":
        raise ConfigError(
            f"`{path}`: W&B's own search does not support the `when` of `{conditional[0]}`",
            "search with Optuna: use `moist sweep optuna`, or write `method: custom` and"
            " `scheduler: {engine: optuna}`",
        )
    if engine == "optuna":
        names = {"source": str(ENGINE), "optimizer": "make_study", "search_space": "space"}
        content["scheduler"] |= names
    content["parameters"] = {
        name: {word: value for word, value in entry.items() if word != "when"}
        for name, entry in parameters.items()
    }
    budget = min(requested_trials(search, count), size(search) or sys.maxsize)
    return Registration(path, overrides, content, budget)


def check_online(path: Path | None) -> None:
    """Raise ConfigError if W&B's server can't be used."""
    try:
        mode = choose_mode()
        why = "" if mode.name == "online" else f"runs are kept in files: {mode.reason}"
    except ConfigError as error:
        why = str(error.args[0])
    if why:
        raise ConfigError(
            f"W&B sweeps need its server, but {why}",
            f"search the same file without one: `moist sweep optuna {path or 'FILE'}`",
        )


def register(sweep: Registration, entity: str | None, project: str | None) -> str:
    """Create a sweep on the server; return its path, `ENTITY/PROJECT/ID`. Raises StoreError."""
    import wandb
    from wandb.errors import CommError, UsageError

    project = project or sweep.content.get("project") or PROJECT
    try:
        entity = entity or sweep.content.get("entity") or wandb.Api().default_entity
        with redirect_stdout(sys.stderr):
            sweep_id = wandb.sweep(dict(sweep.content), entity=entity, project=project)
    except (CommError, UsageError, ValueError) as error:
        raise StoreError(f"W&B rejected the sweep: {error}") from error
    return f"{entity}/{project}/{sweep_id}"
