"""What W&B was told: sent to its server later, looked at here, asked for its frontier."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from moist.cli.options import HOME, JSON, QUIET, print_json
from moist.errors import ConfigError, StoreError
from moist.reporting import terminal
from moist.results import queries
from moist.results.objectives import DEFAULT, Objective
from moist.results.trials import Trial

if TYPE_CHECKING:
    from moist.tracking.files import Logged
    from moist.tracking.sync import Told


@click.command()
@click.argument("runs", nargs=-1, metavar="[RUN]...")
@click.option("--dry-run", is_flag=True, help="Only say what would be sent.")
@click.option("--project", help="To this project; default: the one they were logged for.")
@click.option("--entity", help="Whose project; default: your own.")
@JSON
@QUIET
@HOME
def sync(
    runs: tuple[str, ...],
    dry_run: bool,
    project: str | None,
    entity: str | None,
    as_json: bool,
    quiet: bool,
    home: Path,
) -> None:
    """Send the runs in HOME/wandb that W&B's server has not got: each once.

    RUN is an id, a unique prefix of one, or `last`; default: all. Runs that are still being
    written are left for later.

    \b
    moist sync --dry-run
    moist sync
    """
    from moist.tracking.sync import Outbox, Place, told

    watcher = terminal.Watcher(quiet)
    outbox = Outbox(home, watcher.warned)
    running, due = (_asked(found, runs, home) for found in (outbox.running(), outbox.due()))
    said = [told(run, "running", "left for later") for run in running]
    for one in said:
        watcher.said(_line(one))

    def tell(one: Told) -> None:
        said.append(one)
        watcher.said(_line(one))

    if dry_run:
        for run in due:
            tell(told(run, "due"))
    elif due:
        where = Place(_host(len(due)), project, entity)
        outbox.send(due, where, tell)
    _summed_up(said, as_json)


def _asked(found: Sequence[Logged], runs: Sequence[str], home: Path) -> list[Logged]:
    """Those of the runs that were asked for. Raises ConfigError for a name that is none's."""
    ids = {_find(home, run) for run in runs}
    return [run for run in found if not runs or run.id in ids]


def _host(count: int) -> str:
    """The server, if it can be had. Raises ConfigError."""
    from moist.tracking.mode import hindrance, host

    if why := hindrance():
        raise ConfigError(
            f"can't send {count} run{'s'[: count > 1]} to W&B's server: {why}",
            "they stay here; `moist sync` sends them once it can be had",
        )
    return host()


def _line(one: Told) -> str:
    reason = f": {one.reason}" if one.reason else ""
    return f"{one.state:<8} {one.id}  {one.name}{reason}"


def _summed_up(said: Sequence[Told], as_json: bool) -> None:
    """Data, or a line. Raises StoreError if a run could not be sent."""
    failed = [one for one in said if one.state == "failed"]
    if as_json:
        print_json([one.model_dump(mode="json") for one in said])
    else:
        counts = {state: sum(one.state == state for one in said) for state in ("due", "sent")}
        counts |= {"still running": len(said) - sum(counts.values()) - len(failed)}
        listed = [f"{n} {state}" for state, n in counts.items() if n]
        click.echo(", ".join(listed) or "nothing to send")
    if failed:
        raise StoreError(
            f"{len(failed)} of {len(said)} runs could not be sent, first"
            f" `{failed[0].id}`: {failed[0].reason}",
            "what was sent stays sent; `moist sync` tries the rest again",
        )


@click.command()
@click.argument("run", required=False)
@HOME
def browse(run: str | None, home: Path) -> None:
    """Look at the runs in HOME/wandb in this terminal: charts, configs, summaries.

    RUN is an id, a unique prefix of one, or `last`. Needs no server: it is `wandb leet`.

    \b
    moist browse
    moist browse last
    """
    folder = _folder(home, _find(home, run)) if run else home / "wandb"
    if not _logs(home):
        raise _none(home)
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise ConfigError(
            "`moist browse` draws on a terminal, and there is none",
            f"`wandb leet inspect --json {folder}` prints a run's records",
        )
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", "wandb", "leet", str(folder)])


def _find(home: Path, prefix: str) -> str:
    """The id that starts so, of the runs in files here. Raises ConfigError, listing them."""
    from moist.store.runs import pick

    found = _logs(home)
    if not found:
        raise _none(home)
    if prefix in {"last", "latest"}:
        return _id(found[-1])
    ids = dict.fromkeys(map(_id, found))
    return prefix if prefix in ids else pick(prefix, ids, "runs")


def _folder(home: Path, run: str) -> Path:
    """Where a run's last log is."""
    return [path for path in _logs(home) if _id(path) == run][-1].parent


def _logs(home: Path) -> list[Path]:
    """Logs in order of start, which the folders' names say."""
    from moist.tracking.files import logs

    found = logs(home / "wandb")
    return sorted(found, key=lambda path: path.parent.name.removeprefix("offline-"))


def _id(path: Path) -> str:
    return path.stem.removeprefix("run-")


def _none(home: Path) -> ConfigError:
    return ConfigError(
        f"there are no runs of W&B in `{home / 'wandb'}`",
        "`moist run` and `moist sweep` leave them there, unless `--wandb off`",
    )


class Asked(NamedTuple):
    """What a question is put to: a study here, or one that W&B was told."""

    name: str
    objectives: tuple[Objective, ...]
    trials: list[Trial]


def from_wandb(sources: Sequence[str], groups: Sequence[str]) -> list[Asked]:
    """The studies of some sources (see `moist.tracking.results`). Raises ConfigError."""
    if len(groups) not in {0, len(sources)}:
        raise ConfigError(
            f"found {len(sources)} `--wandb` and {len(groups)} `--group`", "give one for each"
        )
    if not sources:
        return []
    from moist.tracking.results import load

    warned = terminal.Watcher().warned
    chosen = zip(sources, groups or [""] * len(sources), strict=True)
    loaded = [load(source, group or None, DEFAULT, warned) for source, group in chosen]
    return [Asked(name, DEFAULT, trials) for name, trials in loaded]


def draw_runs(path: Path, asked: Asked, axes: Sequence[Objective], source: str) -> None:
    """Write a frontier as a page, a PNG or an SVG. Raises ConfigError."""
    from moist.reporting.frontier_plot import COST, frontier_plot
    from moist.reporting.plots import save_plot

    y, x = (*axes, COST)[:2]
    plot = frontier_plot(asked.trials, queries.members(asked.trials, axes), x, y)
    group = [] if asked.name == source else ["--group", asked.name]
    command = shlex.join(["moist", "pareto", "--wandb", source, *group])
    save_plot(path, plot, f"Pareto frontier of {asked.name}", command)
