"""Trials read back from W&B: from a project or a sweep on its server, or from files here.

They equal those in the study's database, for the same queries; only the learning curves and
attempts of a trial are in the database alone.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moist.disk import expanded
from moist.errors import ConfigError, did_you_mean, first_line
from moist.results.objectives import PREFIX, QUANTITIES, SPREAD, TEST, Objective
from moist.results.report import Baselines
from moist.results.trials import State, Trial
from moist.tracking.files import LoggedRun, Warn, logs, read
from moist.tracking.files import State as RunState
from moist.tracking.journal import LIMIT, OFFLINE, STUDY, TRIAL
from moist.tracking.mode import why_unreachable

if TYPE_CHECKING:
    import wandb

REPORTED = ("accuracy", *Baselines.model_fields, "routing")
"""In the order of `moist.results.objectives.reported`, which a server does not keep."""
NOT_SETTINGS = {"study", "trial", "params", "moist", "commit"}
"""Entries of a run's config that are not settings of moist."""

STATES: dict[str, State] = {
    "COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed", "KILLED": "failed",
    "finished": "complete", "failed": "failed", "killed": "failed", "running": "running",
}  # fmt: skip
"""By trial/state, or by the state of a run that has none."""

SERVER: dict[str, RunState] = {"finished": "finished", "running": "running", "pending": "running"}
"""By the state on the server; in all others the run ended before it was complete."""


def load(
    source: str, group: str | None, objectives: Sequence[Objective], warn: Warn
) -> tuple[str, list[Trial]]:
    """Return the name of a study and its trials, in order of number.

    `source` is a folder with runs, or on the server ENTITY/PROJECT or ENTITY/PROJECT/SWEEP.
    `group` selects a study by its name, or by the prefix of its runs' ids. Raises ConfigError for
    a source that does not exist, has no runs, or has runs of several studies.
    """
    folder = expanded(Path(source), "--wandb ")
    if folder.is_dir():
        if not logs(folder):
            raise ConfigError(f"there are no runs of W&B in `{folder}`", "they are in HOME/wandb")
        runs, searched = read(folder, warn), list[str]()
    else:
        runs, searched = _from_server(source)
    name, chosen = _selected(runs, group, source)
    return name, trials_of(chosen, objectives, searched)


def _from_server(source: str) -> tuple[list[LoggedRun], list[str]]:
    """Return runs, by one query a page, and the parameters that a sweep searches."""
    import requests
    import wandb
    from wandb.sdk.lib.service.service_connection import WandbApiFailedError

    entity, project, sweep = _path(source)
    if problem := why_unreachable():
        raise ConfigError(
            f"can't read `{source}` from W&B: {problem}", "a folder of runs needs no server"
        )
    filters = {"sweep": sweep} if sweep else None
    api: Any = wandb.Api()
    try:
        found = api.runs(f"{entity}/{project}", filters=filters, lazy=False, per_page=200)
        runs = [_logged(run) for run in found]
        searched = _searched(api.sweep(source).config) if sweep else []
    except (wandb.Error, WandbApiFailedError, ValueError, requests.RequestException) as error:
        raise ConfigError(
            f"W&B has no `{source}`: {first_line(error)}", "check its spelling and your access"
        ) from None
    return sorted(runs, key=lambda run: (run.started, run.id)), searched


def _path(source: str) -> tuple[str, str, str | None]:
    parts = source.split("/")
    if len(parts) not in {2, 3} or not all(parts):
        raise ConfigError(
            f"`--wandb {source}` is neither a folder nor a project of W&B",
            "give a folder of runs, ENTITY/PROJECT or ENTITY/PROJECT/SWEEP",
        )
    return parts[0], parts[1], parts[2] if len(parts) == 3 else None


def _logged(run: wandb.apis.public.Run) -> LoggedRun:
    """Convert a run on the server to the form of those read from files."""
    return LoggedRun(
        id=run.id, name=run.name, project=run.project, entity=run.entity, group=run.group,
        job_type=run.job_type,
        sweep=run.sweep_name, tags=tuple(run.tags or ()), config=dict(run.config),
        summary=dict(run.summary_metrics), state=SERVER.get(run.state, "failed"), exit_code=None,
        started=run.created_at, paths=(),
    )  # fmt: skip


def _searched(config: Mapping[str, Any]) -> list[str]:
    """List the parameters of a W&B sweep that vary."""
    parameters = config.get("parameters", {})
    return [name for name, one in parameters.items() if "value" not in one]


def _selected(
    runs: Sequence[LoggedRun], group: str | None, source: str
) -> tuple[str, list[LoggedRun]]:
    """Select the runs of one study, or all if there is no study. Raises ConfigError."""
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
        of = f" of `{name}`" if name else ""
        raise ConfigError(
            f"`{source}` has no runs{of}",
            did_you_mean(name or "", groups, f"studies there: {listed}"),
        )
    return name or source, chosen


def trials_of(
    runs: Sequence[LoggedRun], objectives: Sequence[Objective], searched: Sequence[str] = ()
) -> list[Trial]:
    """Convert runs to trials, in order of number, which defaults to the position.

    A trial's parameters are those that its run lists as searched, else `searched`, else those
    that differ between the runs. Raises ConfigError if two runs are the same trial.
    """
    runs = _without_duplicates(runs)
    _check_distinct(runs)
    names = searched or _differing([run.config for run in runs])
    trials = [_trial(run, index, names, objectives) for index, run in enumerate(runs)]
    return sorted(trials, key=lambda trial: trial.number)


def _without_duplicates(runs: Sequence[LoggedRun]) -> list[LoggedRun]:
    """Drop duplicates of runs that the server rejected and that were then logged to files.

    Keeps the complete one.
    """
    found: dict[str, LoggedRun] = {}
    for run in runs:
        id = run.id.removesuffix(OFFLINE)
        if id not in found or _state(run) == "complete":
            found[id] = run
    return [*found.values()]


def _digest(run: LoggedRun) -> str:
    """Return the prefix that the ids of a study's runs share."""
    return run.id.partition("-")[0]


def _check_distinct(runs: Sequence[LoggedRun]) -> None:
    """Raise ConfigError if two runs are the same trial."""
    seen: dict[int, LoggedRun] = {}
    for run in (run for run in runs if "trial" in run.config):
        other = seen.setdefault(run.config["trial"], run)
        if other is not run:
            raise ConfigError(
                f"two runs are trial {run.config['trial']}: `{other.id}` and `{run.id}`",
                "two studies have this name: choose one with `--group` and the prefix of its ids",
            )


def _differing(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """List the settings that differ between runs, in order of appearance."""
    names = dict.fromkeys(
        name for config in configs for name in config if name not in NOT_SETTINGS
    )
    texts = {name: {json.dumps(config.get(name)) for config in configs} for name in names}
    return [name for name, different in texts.items() if len(different) > 1]


def _trial(
    run: LoggedRun, index: int, names: Iterable[str], objectives: Sequence[Objective]
) -> Trial:
    summary, config = run.summary, run.config
    state = _state(run)
    results = summary if state == "complete" else {}
    quantities = _numbers(results, PREFIX, (*QUANTITIES, SPREAD))
    killed = "killed" if summary.get(f"{TRIAL}state", run.state.upper()) == "KILLED" else None
    return Trial(
        number=config.get("trial", index),
        state=state,
        params={name: config[name] for name in config.get("params", names) if name in config},
        values={o.name: quantities[o.name] for o in objectives if o.name in quantities},
        quantities=quantities,
        reported=_numbers(results, TEST, REPORTED),
        constraints=_numbers(summary, LIMIT, QUANTITIES),
        key=summary.get(f"{TRIAL}key"),
        reason=summary.get(f"{TRIAL}reason") or killed,
        command=summary.get(f"{TRIAL}command"),
        seconds=summary.get(f"{TRIAL}seconds", 0.0),
        saved=summary.get(f"{TRIAL}saved", 0.0),
    )


def _state(run: LoggedRun) -> State:
    """Return the state of a run; one that continues is running, however it ended before."""
    if run.state == "running":
        return "running"
    return STATES.get(str(run.summary.get(f"{TRIAL}state")), STATES[run.state])


def _numbers(summary: Mapping[str, Any], prefix: str, names: Iterable[str]) -> dict[str, float]:
    """Return the finite numbers of a summary under a prefix, in the order of `names`."""
    found = {name: summary.get(f"{prefix}{name}") for name in names}
    return {
        name: float(value)
        for name, value in found.items()
        if isinstance(value, int | float) and math.isfinite(value)
    }
