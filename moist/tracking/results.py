"""Trials read back from where W&B keeps them: a project or a sweep on its server, or files here.

The same trials as a study's database gives, for the same queries; only the curves and attempts of
a trial stay in the database.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moist.errors import ConfigError, did_you_mean, first_line
from moist.results.objectives import PREFIX, QUANTITIES, TEST, Objective
from moist.results.report import Baselines
from moist.results.trials import State, Trial
from moist.tracking.files import Logged, Say, logs, read
from moist.tracking.files import State as Logging
from moist.tracking.journal import LIMIT, OFFLINE, STUDY, TRIAL

if TYPE_CHECKING:
    import wandb

REPORTED = ("accuracy", *Baselines.model_fields, "routing")
"""The order of `moist.results.objectives.reported`: a server has its own."""
FACTS = {"study", "trial", "params", "moist", "commit"}
"""In a run's config, and no setting of it."""

STATES: dict[str, State] = {
    "COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed", "KILLED": "failed",
    "finished": "complete", "failed": "failed", "killed": "failed", "running": "running",
}  # fmt: skip
"""By trial/state, or by the state of a run that has none."""

SERVER: dict[str, Logging] = {"finished": "finished", "running": "running", "pending": "running"}
"""States on the server; in each other one the run was ended before it was done."""


def load(
    source: str, group: str | None, objectives: Sequence[Objective], warned: Say
) -> tuple[str, list[Trial]]:
    """The trials of a source, in order of number, and what they are called.

    `source` is a folder with runs, or on the server ENTITY/PROJECT or ENTITY/PROJECT/SWEEP.
    `group` says which study: its name, or what the ids of its runs begin with. Raises ConfigError
    for a source that isn't there, that has no runs, or those of several studies.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        runs, searched = _from_files(folder, warned), list[str]()
    else:
        runs, searched = _from_server(source)
    name, chosen = _chosen(runs, group, source)
    return name, trials_of(chosen, objectives, searched)


def _from_files(folder: Path, warned: Say) -> list[Logged]:
    if not logs(folder):
        raise ConfigError(f"there are no runs of W&B in `{folder}`", "they lie in HOME/wandb")
    return read(folder, warned)


def _from_server(source: str) -> tuple[list[Logged], list[str]]:
    """Runs, one query a page, and what a sweep searches."""
    import requests
    import wandb
    from wandb.sdk.lib.service.service_connection import WandbApiFailedError

    from moist.tracking.mode import hindrance

    entity, project, sweep = _path(source)
    if why := hindrance():
        raise ConfigError(f"can't ask W&B for `{source}`: {why}", "a folder of runs needs none")
    filters = {"sweep": sweep} if sweep else None
    api = wandb.Api()
    try:
        found = api.runs(f"{entity}/{project}", filters=filters, lazy=False, per_page=200)
        runs = [_logged(run) for run in found]
        searched = _searched(_sweep(api, source)) if sweep else []
    except (wandb.Error, WandbApiFailedError, ValueError, requests.RequestException) as error:
        reason = first_line(error)
        raise ConfigError(f"W&B has no `{source}`: {reason}", "is it spelled right?") from None
    return sorted(runs, key=lambda run: (run.started, run.id)), searched


def _path(source: str) -> tuple[str, str, str | None]:
    parts = source.split("/")
    if len(parts) not in {2, 3} or not all(parts):
        raise ConfigError(
            f"`--wandb {source}` is no folder, and no project of W&B",
            "give a folder of runs, ENTITY/PROJECT or ENTITY/PROJECT/SWEEP",
        )
    return parts[0], parts[1], parts[2] if len(parts) == 3 else None


def _logged(run: wandb.apis.public.Run) -> Logged:
    """A run of the server's as one that was read from files."""
    return Logged(
        id=run.id, name=run.name, project=run.project, entity=run.entity, group=run.group,
        job_type=run.job_type,
        sweep=run.sweep_name, tags=tuple(run.tags or ()), config=dict(run.config),
        summary=dict(run.summary_metrics), state=SERVER.get(run.state, "failed"), exit_code=None,
        started=run.created_at, paths=(),
    )  # fmt: skip


def _sweep(api: Any, path: str) -> dict[str, Any]:
    config: dict[str, Any] = api.sweep(path).config
    return config


def _searched(config: Mapping[str, Any]) -> list[str]:
    """The parameters of a W&B sweep that vary."""
    parameters = config.get("parameters", {})
    return [name for name, one in parameters.items() if "value" not in one]


def _chosen(runs: Sequence[Logged], group: str | None, source: str) -> tuple[str, list[Logged]]:
    """The runs of one study, or all where there is no study. Raises ConfigError."""
    trials = [run for run in runs if run.job_type != STUDY]
    groups = sorted({name for run in trials if (name := run.group or run.sweep)})
    listed = ", ".join(f"`{name}`" for name in groups) or "none"
    if group is None and len(groups) > 1:
        raise ConfigError(
            f"`{source}` has runs of {len(groups)} studies: {listed}",
            "choose with `--group STUDY`",
        )
    name = group or (groups[0] if groups else None)
    chosen = [run for run in trials if name in {None, run.group, run.sweep, _digest(run)}]
    if not chosen:
        asked = f" of `{name}`" if name else ""
        raise ConfigError(
            f"`{source}` has no runs{asked}",
            did_you_mean(name or "", groups, f"studies there: {listed}"),
        )
    return name or source, chosen


def trials_of(
    runs: Sequence[Logged], objectives: Sequence[Objective], searched: Sequence[str] = ()
) -> list[Trial]:
    """Runs as trials, in order of number. Those without one are numbered in the given order.

    Their parameters are those that the run says were searched, else `searched`, else what
    differs between the runs. Raises ConfigError where two runs are the same trial.
    """
    runs = _one_of_twins(runs)
    _check_apart(runs)
    names = searched or _differing([run.config for run in runs])
    trials = [_trial(run, index, names, objectives) for index, run in enumerate(runs)]
    return sorted(trials, key=lambda trial: trial.number)


def _one_of_twins(runs: Sequence[Logged]) -> list[Logged]:
    """Of a run and what was told of it offline when its server refused it, the one that ended."""
    found: dict[str, Logged] = {}
    for run in runs:
        id = run.id.removesuffix(OFFLINE)
        if id not in found or _state(run) == "complete":
            found[id] = run
    return [*found.values()]


def _digest(run: Logged) -> str:
    """What the ids of a study's runs begin with."""
    return run.id.partition("-")[0]


def _check_apart(runs: Sequence[Logged]) -> None:
    """Raise ConfigError where two runs are the same trial."""
    seen: dict[int, Logged] = {}
    for run in (run for run in runs if "trial" in run.config):
        other = seen.setdefault(run.config["trial"], run)
        if other is not run:
            raise ConfigError(
                f"trial {run.config['trial']} is there twice: `{other.id}` and `{run.id}`",
                "studies of one name: choose one with `--group` and what its ids begin with",
            )


def _differing(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """The settings that are not the same in all runs, in order of appearance."""
    names = dict.fromkeys(name for config in configs for name in config if name not in FACTS)
    texts = {name: {json.dumps(config.get(name)) for config in configs} for name in names}
    return [name for name, different in texts.items() if len(different) > 1]


def _trial(
    run: Logged, index: int, names: Iterable[str], objectives: Sequence[Objective]
) -> Trial:
    summary, config = run.summary, run.config
    state = _state(run)
    done = summary if state == "complete" else {}
    quantities = _numbers(done, PREFIX, QUANTITIES)
    killed = "killed" if summary.get(f"{TRIAL}state", run.state.upper()) == "KILLED" else None
    return Trial(
        number=config.get("trial", index),
        state=state,
        params={name: config[name] for name in config.get("params", names) if name in config},
        values={o.name: quantities[o.name] for o in objectives if o.name in quantities},
        quantities=quantities,
        reported=_numbers(done, TEST, REPORTED),
        constraints=_numbers(summary, LIMIT, QUANTITIES),
        key=summary.get(f"{TRIAL}key"),
        reason=summary.get(f"{TRIAL}reason") or killed,
        command=summary.get(f"{TRIAL}command"),
        seconds=summary.get(f"{TRIAL}seconds", 0.0),
        saved=summary.get(f"{TRIAL}saved", 0.0),
    )


def _state(run: Logged) -> State:
    """A run that goes on is running, whatever an attempt before it came to."""
    if run.state == "running":
        return "running"
    return STATES.get(str(run.summary.get(f"{TRIAL}state")), STATES[run.state])


def _numbers(summary: Mapping[str, Any], prefix: str, names: Iterable[str]) -> dict[str, float]:
    """The numbers behind a prefix, in the order of their names; NaN is none."""
    found = {name: summary.get(f"{prefix}{name}") for name in names}
    return {
        name: float(value)
        for name, value in found.items()
        if isinstance(value, int | float) and math.isfinite(value)
    }
