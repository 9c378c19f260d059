"""`moist sync`, `browse` and `wandb`: upload, view and summarize runs logged to W&B."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from moist.cli.options import HOME, JSON, QUIET, print_json
from moist.errors import ConfigError, StoreError
from moist.reporting import terminal
from moist.results import queries
from moist.results.objectives import DEFAULT
from moist.store.runs import pick
from moist.tracking.mode import host, why_unreachable

if TYPE_CHECKING:
    from moist.tracking.files import LoggedRun
    from moist.tracking.upload import UploadResult


@click.command()
@click.argument("runs", nargs=-1, metavar="[RUN]...")
@click.option("--dry-run", is_flag=True, help="List what would be uploaded; upload nothing.")
@click.option("--project", help="Project to upload to; default: the one the runs were logged for.")
@click.option("--entity", help="Owner of the project; default: your default entity.")
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
    """Upload runs that are missing on W&B's server.

    They are read from HOME/wandb; each is uploaded once. RUN is an id, a unique prefix of one, or
    `last`; default: all. Runs that are still being written are skipped.

    \b
    moist sync --dry-run
    moist sync
    """
    from moist.tracking.upload import Destination, Outbox, UploadResult

    progress = terminal.TerminalProgress(quiet)
    outbox = Outbox(home, progress.warned)
    running, due = (_selected(found, runs, home) for found in (outbox.running(), outbox.due()))
    results: list[UploadResult] = []

    def report(result: UploadResult) -> None:
        results.append(result)
        reason = f": {result.reason}" if result.reason else ""
        progress.noted(f"{result.state:<8} {result.id}  {result.name}{reason}")

    for run in running:
        report(UploadResult.of(run, "running", "skipped for now"))
    if dry_run:
        for run in due:
            report(UploadResult.of(run, "due"))
    elif due:
        outbox.upload(due, Destination(_host(len(due)), project, entity), report)
    _print_results(results, as_json)


def _selected(found: Sequence[LoggedRun], runs: Sequence[str], home: Path) -> list[LoggedRun]:
    """Return the runs whose ids start with one of `runs`. Raises ConfigError for an unknown id."""
    ids = {_find(home, run) for run in runs}
    return [run for run in found if not runs or run.id in ids]


def _host(count: int) -> str:
    """Return the server's name. Raises ConfigError if it can't be reached."""
    if why := why_unreachable():
        raise ConfigError(
            f"can't upload {count} run{'s'[: count > 1]} to W&B's server: {why}",
            "they are kept here; run `moist sync` once the server can be reached",
        )
    return host()


def _print_results(results: Sequence[UploadResult], as_json: bool) -> None:
    """Print how each upload ended, or their counts. Raises StoreError if one failed."""
    failed = [result for result in results if result.state == "failed"]
    if as_json:
        print_json(results)
    else:
        counts: Counter[str] = Counter(result.state for result in results)
        words = {"due": "to upload", "sent": "uploaded", "running": "still running"}
        listed = [f"{counts[state]} {text}" for state, text in words.items() if counts[state]]
        click.echo(", ".join(listed) or "nothing to upload")
    if failed:
        raise StoreError(
            f"{len(failed)} of {len(results)} runs could not be uploaded, first"
            f" `{failed[0].id}`: {failed[0].reason}",
            "the others are uploaded; run `moist sync` again for the rest",
        )


@click.command()
@click.argument("run", required=False)
@HOME
def browse(run: str | None, home: Path) -> None:
    """View logged runs in this terminal.

    Shows charts, configs and summaries of the runs in HOME/wandb with `wandb leet`, which needs
    no server. RUN is an id, a unique prefix of one, or `last`.

    \b
    moist browse
    moist browse last
    """
    found = _logs(home)
    if not found:
        raise _no_runs(home)
    folder = home / "wandb"
    if run:
        id = _find(home, run)
        folder = [path for path in found if _id(path) == id][-1].parent
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise ConfigError(
            "`moist browse` needs a terminal, and stdin or stdout is not one",
            f"`wandb leet inspect --json {folder}` prints a run's records",
        )
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", "wandb", "leet", str(folder)])


def _find(home: Path, prefix: str) -> str:
    """Return the id of the logged run that starts with `prefix`. Raises ConfigError."""
    found = _logs(home)
    if not found:
        raise _no_runs(home)
    if prefix in {"last", "latest"}:
        return _id(found[-1])
    ids = dict.fromkeys(map(_id, found))
    return prefix if prefix in ids else pick(prefix, ids, "runs")


def _logs(home: Path) -> list[Path]:
    """List logs in order of start, which the folders' names give."""
    from moist.tracking.files import logs

    found = logs(home / "wandb")
    return sorted(found, key=lambda path: path.parent.name.removeprefix("offline-"))


def _id(path: Path) -> str:
    return path.stem.removeprefix("run-")


def _no_runs(home: Path) -> ConfigError:
    return ConfigError(
        f"there are no W&B runs in `{home / 'wandb'}`",
        "`moist run` and `moist sweep` log them there, unless with `--wandb off`",
    )


@click.group()
def wandb() -> None:
    """Create views in W&B's dashboard.

    \b
    moist wandb workspace me/moist
    """


@wandb.command()
@click.argument("place", metavar="ENTITY/PROJECT")
@click.option("--group", metavar="STUDY", help="Show one study or sweep; default: all runs.")
@JSON
def workspace(place: str, group: str | None, as_json: bool) -> None:
    """Save a workspace in W&B's dashboard.

    It has accuracy over cost, parallel coordinates, importances and learning curves.

    The runs on the Pareto frontier of accuracy and mflops get the tag `pareto`; it is removed
    from all others.

    \b
    moist wandb workspace me/moist --group quickstart
    """
    entity, _, project = place.partition("/")
    if not entity or not project or "/" in project:
        raise ConfigError(f"`{place}` is not a W&B project", "write ENTITY/PROJECT")
    from moist.tracking.results import load
    from moist.tracking.workspace import build, save, tag

    name, trials = load(place, group, DEFAULT, terminal.TerminalProgress().warned)
    front = queries.members(trials, DEFAULT)
    panels = build(entity, project, group)
    changed = tag(place, group, {trial.key for trial in front if trial.key})
    url = save(panels)
    if as_json:
        print_json({"url": url, "study": name, "frontier": [t.number for t in front]})
    else:
        click.echo(f"{url}\n{len(front)} runs are tagged `pareto` ({changed} changed)")
