"""The rest of a run that was on W&B's server when it was broken off.

`wandb sync` would put all its rows behind those that the server has. So the run is continued by
wandb's own client, with the rows of its log that come after the last one there.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from moist.errors import first_line
from moist.tracking.client import About
from moist.tracking.files import Logged, Row, Say, history
from moist.tracking.journal import ENDS, TRIAL
from moist.tracking.mode import Mode
from moist.tracking.tracker import Tracker

if TYPE_CHECKING:
    import wandb

ONLINE = Mode("online", "to complete a run")


def is_online(path: Path) -> bool:
    """Whether a log is of a run that a server was told of."""
    return not path.parent.name.startswith("offline-")


def complete(
    run: Logged, home: Path, project: str | None, entity: str | None, warned: Say
) -> str | None:
    """Tell the server the rest; empty, or why that could not be. None if it knows no such run."""
    import wandb
    from wandb.sdk.lib.service.service_connection import WandbApiFailedError

    api = wandb.Api()
    troubles: list[str] = []
    try:
        project, entity = project or run.project, entity or run.entity or api.default_entity
        found = api.runs(f"{entity}/{project}", filters={"name": run.id}, per_page=1, lazy=False)
        there = next(iter(found), None)
        last = there.lastHistoryStep if there is not None else None
    except (wandb.Error, WandbApiFailedError, ValueError) as error:
        said = first_line(error)
        return None if "not find" in said or "not found" in said else said
    if last is None:
        return None
    rest = [row for row in history(run.paths, warned) if row["_step"] > last]
    about = About(run.id, run.name, run.job_type or "run", run.config, run.group, run.tags)
    with Tracker(ONLINE, home, troubles.append, project, entity, True) as tracker:
        journal = tracker.open(about)
        journal.show(lambda told: _log(told, rest))
        journal.note(_own(run.summary))
        journal.end(_end(run))
    return troubles[0] if troubles else ""


def _end(run: Logged) -> str:
    """How it ended here, if it did."""
    told = run.summary.get(f"{TRIAL}state")
    return next((end for end, word in ENDS.items() if word == told), "killed")


def _log(run: wandb.Run, rows: list[Row]) -> None:
    for row in rows:
        run.log(_own(row), step=row["_step"], commit=True)


def _own(values: Row) -> Row:
    """What moist logged, without wandb's own."""
    return {name: value for name, value in values.items() if not name.startswith("_")}
