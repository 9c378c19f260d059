"""`moist sweep`: many runs from one file, told to a study."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from moist.cli.options import (
    EACH_THREADS,
    HOME,
    JSON,
    OVERRIDES,
    QUIET,
    STORAGE,
    WANDB,
    check_together,
    print_json,
    study_ref,
)
from moist.cli.upkeep import doctor, retry, status
from moist.reporting import study_tables, terminal
from moist.results.objectives import DEFAULT, parse_limits, parse_objectives, parse_values
from moist.study.policy import BEST, SAMPLERS

if TYPE_CHECKING:
    from moist.study.settings import Settings
    from moist.study.storage import Described
    from moist.study.workers import Slot
    from moist.sweepfile import Sweep

FILE = click.argument("file", type=click.Path(path_type=Path))


@click.group()
def sweep() -> None:
    """Search the hyperparameters that a sweep file names.

    \b
    moist sweep optuna sweeps/quickstart.yaml
    moist sweep status quickstart
    moist pareto quickstart
    moist best quickstart --max mflops=0.3
    """


@sweep.command()
@FILE
@OVERRIDES
@click.option("--trials", type=click.IntRange(1), help="Complete trials to end with, in all.")
@click.option("--workers", default=1, show_default=True, type=click.IntRange(1), help="At once.")
@click.option("--study", help="Name of the study; default: the file's.")
@STORAGE
@click.option(
    "--sampler",
    type=click.Choice(SAMPLERS),
    default="auto",
    show_default=True,
    help="auto: the file's grid or random; else tpe, or gp for few trials of a minute or more.",
)
@click.option(
    "--objective",
    "goals",
    multiple=True,
    metavar="NAME:max|min",
    help="Several times; default: accuracy:max (on validation) and mflops:min.",
)
@click.option(
    "--max",
    "at_most",
    multiple=True,
    metavar="NAME=VALUE",
    help="A limit on trials from now on: one that can't keep it is not trained.",
)
@click.option(
    "--best",
    multiple=True,
    metavar="NAME=VALUE",
    help="What no trial exceeds; default: accuracy=1. Who can't reach the frontier even so is"
    " not trained.",
)
@click.option("--timeout", type=click.FloatRange(0, min_open=True), metavar="SECONDS")
@click.option("--seed", default=0, show_default=True, help="The sampler's; a run's is `seed=N`.")
@click.option(
    "--retries",
    default=2,
    show_default=True,
    type=click.IntRange(0),
    help="Further attempts at a trial whose worker was lost or out of memory.",
)
@click.option("--prune", is_flag=True, help="Stop trials that can hardly reach the frontier.")
@click.option(
    "--prune-audit", is_flag=True, help="Stop none, but say how --prune would have done."
)
@click.option("--no-reuse", is_flag=True, help="Compute every stage of every trial anew.")
@click.option("--devices", metavar="DEVICE,...", help="To spread workers over: cuda:0,cuda:1")
@EACH_THREADS
@click.option("--dry-run", is_flag=True, help="Say what would be computed; compute nothing.")
@click.option("--plot", type=click.Path(path_type=Path), help="Default: HOME/plots/STUDY.html")
@WANDB
@JSON
@QUIET
@HOME
def optuna(file: Path, overrides: tuple[str, ...], home: Path, **options: Any) -> None:
    """Search with Optuna until enough trials are complete, then print the Pareto frontier.

    Killed or interrupted, the same command continues. No stage is computed twice. What the
    architecture decides (mflops, latency) is known before training: a trial beyond --max, or
    that could not reach the frontier even with --best, is not trained. Objectives are those of
    --objective, or the file's `metrics`; its `metric` and `early_terminate` are for W&B alone.

    \b
    moist sweep optuna sweeps/quickstart.yaml
    moist sweep optuna sweeps/quickstart.yaml k=2 --study two --trials 8 --dry-run
    moist sweep optuna sweeps/pareto.yaml --workers 2 --max mflops=15 --prune
    """
    check_together(apart=[("--prune", "--prune-audit")])
    from moist.sweepfile import read_sweep

    read = read_sweep(file, overrides)
    if not options["quiet"]:
        _say_what_is_not_heeded(read, bool(options["goals"]))
    if options["dry_run"]:
        _rehearse(read, home, options)
    else:
        _search(read, home, options)


def _say_what_is_not_heeded(read: Sweep, has_goals: bool) -> None:
    """One line on stderr, if the file asks for what only W&B does."""
    said = [
        f"`{word}` (here: `{option}`)"
        for word, option in read.for_wandb.items()
        if not (word == "metric" and has_goals)
    ]
    if said:
        click.echo(f"{read.path}: for W&B only: {', '.join(said)}", err=True)


def _search(read: Sweep, home: Path, options: dict[str, Any]) -> None:
    from moist.reporting.plots import check_plot_path, plot_study
    from moist.reporting.wandb_summary import log_summary
    from moist.results.queries import members
    from moist.study import search
    from moist.tracking.tracker import tracker

    check_plot_path(options["plot"])
    described, settings, slots = _asked(read, options)
    ref = study_ref(options["study"] or read.name, options["storage"], home)
    plot = options["plot"] or home / "plots" / f"{ref.name}.html"
    watcher = terminal.Watcher(options["quiet"])
    with tracker(options["wandb"], home, watcher.said, watcher.warned) as tracked:
        outcome = search.search(
            ref, read, described, settings, slots=slots, quiet=options["quiet"], tracker=tracked,
        )  # fmt: skip
        if front := members(outcome.trials, described.objectives):
            plot.parent.mkdir(parents=True, exist_ok=True)
            plot_study(plot, ref)
            if outcome.tally.told and not tracked.off:
                log_summary(tracked, ref, plot)
        if options["as_json"]:
            print_json(outcome.record(front))
        else:
            study_tables.print_outcome(ref, outcome, front, described.objectives, plot)


def _rehearse(read: Sweep, home: Path, options: dict[str, Any]) -> None:
    from moist.study import search

    described, settings, slots = _asked(read, options)
    ref = study_ref(options["study"] or read.name, options["storage"], home)
    found = search.rehearse(ref, read, described, settings, slots=slots)
    if options["as_json"]:
        print_json(found.record())
        return
    workers = options["workers"]
    click.echo(
        f"{found.trials} trials to run, {found.complete} complete before\n"
        f"{found.called} stages called, {found.distinct} distinct, {len(found.missing)} to compute"
    )
    never = sum(call.seconds is None for call in found.missing)
    said = f"about {terminal.duration(found.seconds / workers)} with --workers {workers}"
    click.echo(f"{said}; {never} never timed here" if never else said)


def _asked(read: Sweep, options: dict[str, Any]) -> tuple[Described, Settings, Sequence[Slot]]:
    """The study to make or to continue, how far to take it, and where."""
    from moist.study import search
    from moist.study.ref import masked
    from moist.study.settings import Settings

    goals = parse_objectives(options["goals"]) if options["goals"] else read.objectives or DEFAULT
    command = shlex.join(["moist", *map(masked, sys.argv[1:])])
    slots = search.slots(options["devices"], options["workers"], options["threads"])
    settings = Settings(
        trials=search.requested(read, options["trials"]),
        sampler=options["sampler"],
        retries=options["retries"],
        timeout=options["timeout"],
        limits=parse_limits(options["at_most"]),
        best=BEST | parse_values(options["best"], "--best"),
        prune=options["prune"],
        audit=options["prune_audit"],
        reuse=not options["no_reuse"],
    )
    return search.describe(read, goals, options["seed"], command, slots), settings, slots


@sweep.command()
@FILE
@JSON
def check(file: Path, as_json: bool) -> None:
    """Say all that is wrong with a sweep file; exit code 2 if anything is.

    \b
    moist sweep check sweeps/pareto.yaml
    """
    from moist.sweepfile import problems, read_sweep, size

    found = problems(file)
    if as_json:
        print_json([{"problem": problem} for problem in found])
    else:
        for problem in found:
            click.echo(problem)
    if found:
        raise click.exceptions.Exit(2)
    if not as_json:
        read = read_sweep(file)
        points = size(read)
        click.echo(
            f"{read.name}: {len(read.parameters)} parameters, {len(read.fixed)} fixed,"
            f" {'endlessly many' if points is None else points} points"
        )


for command in (status, retry, doctor):
    sweep.add_command(command)
