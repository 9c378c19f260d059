"""`moist pareto`: the Pareto frontier of a study, its volume, comparison, reseeding and plot."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import click

from moist.cli import completion
from moist.cli.options import (
    CSV,
    EACH_THREADS,
    HOME,
    JSON,
    PATH,
    QUIET,
    STORAGE,
    STORE,
    WORKERS,
    check_together,
    output,
    print_csv,
    print_json,
    study_ref,
)
from moist.errors import ConfigError
from moist.reporting import study_tables, terminal
from moist.results import queries
from moist.results.frames import trial_frame
from moist.results.objectives import DEFAULT, Objective, known, parse_values
from moist.results.trials import Trial
from moist.study.ref import StudyRef
from moist.study.storage import load

APART = (
    ("--compare", "--hypervolume", "--reseed", "--csv"),
    ("--csv", "--json"),
    ("--compare", "--plot"),
    ("--wandb", "--reseed"),
    ("--wandb", "--storage"),
)
"""Queries and output formats of which at most one may be given."""
NEEDED = {
    "--reference": ("--hypervolume", "--compare"),
    "--workers": ("--reseed",),
    "--threads": ("--reseed",),
    "--dry-run": ("--reseed",),
    "--store": ("--reseed",),
    "--group": ("--wandb",),
}


class Results(NamedTuple):
    """The trials of a study, from its database or from W&B."""

    name: str
    objectives: tuple[Objective, ...]
    trials: list[Trial]


@click.command()
@click.argument("studies", nargs=-1, metavar="[STUDY]...", shell_complete=completion.studies)
@click.option(
    "--wandb",
    "sources",
    multiple=True,
    metavar="SOURCE",
    help="Read W&B instead: ENTITY/PROJECT[/SWEEP], or a folder of runs such as HOME/wandb.",
)
@click.option(
    "--group", "groups", multiple=True, metavar="STUDY", help="Select a study of that SOURCE."
)
@click.option("--x", help="Quantity on the x-axis; default: the study's cost.")
@click.option("--y", help="Quantity on the y-axis; default: the study's first objective.")
@click.option(
    "--plot",
    type=PATH,
    metavar="FILE.html|.png|.svg",
    help="Write a plot of the frontier among all trials.",
)
@CSV
@click.option("--hypervolume", is_flag=True, help="Print the volume that the frontier dominates.")
@click.option(
    "--reference",
    multiple=True,
    metavar="NAME=VALUE",
    help="Reference point of the volume, once for each objective; default: the trials' worst.",
)
@click.option("--compare", is_flag=True, help="Compare the frontiers of two studies.")
@click.option(
    "--reseed",
    type=click.IntRange(2, 1000),
    metavar="N",
    help="Train the members under N new seeds; print mean, deviation, and the probability of"
    " being on the frontier.",
)
@click.option("--dry-run", is_flag=True, help="Say what --reseed would train; train nothing.")
@WORKERS
@EACH_THREADS
@JSON
@QUIET
@STORAGE
@STORE
@HOME
def pareto(
    studies: tuple[str, ...],
    sources: tuple[str, ...],
    groups: tuple[str, ...],
    x: str | None,
    y: str | None,
    plot: Path | None,
    as_csv: bool,
    hypervolume: bool,
    reference: tuple[str, ...],
    compare: bool,
    reseed: int | None,
    dry_run: bool,
    workers: int,
    threads: int | None,
    as_json: bool,
    quiet: bool,
    storage: str | None,
    store: str | None,
    home: Path,
) -> None:
    """Print a study's Pareto frontier.

    The frontier is the trials that no other trial dominates. Trials are selected by validation
    accuracy; test accuracy is only reported. Latencies that differ by no more than their
    spreads (±) are equal.

    \b
    moist pareto quickstart
    moist pareto quickstart --x latency_ms --plot frontier.svg
    moist pareto quickstart --hypervolume --reference accuracy=0.5 --reference mflops=20
    moist pareto quickstart --reseed 3 --dry-run
    moist pareto quickstart other --compare
    moist pareto --wandb me/moist --group quickstart
    """
    check_together(APART, NEEDED)
    _check_count(len(studies) + len(sources), 2 if compare else 1)
    from moist.reporting.plots import check_plot_path, plot_study

    check_plot_path(plot)
    refs = [study_ref(study, storage, home, store) for study in studies]
    results = [_from_database(ref) for ref in refs] + _from_wandb(sources, groups)
    first = results[0]
    axes = _axes(first.objectives, x, y)
    corner = parse_values(reference, "--reference")
    if compare:
        found = queries.compare(first.trials, results[1].trials, axes, corner or None)
        names = [one.name for one in results]
        output(as_json, found, lambda: study_tables.print_comparison(names, found))
    elif hypervolume:
        _print_hypervolume(first, axes, corner, as_json)
    elif reseed and dry_run:
        from moist.study.reseed import plan_reseed

        planned, count = plan_reseed(refs[0], times=reseed, workers=workers, threads=threads)
        head = f"{terminal.counted(count, 'member')} of the frontier, {reseed} new seeds each"
        data = {"members": count, "seeds": reseed, **planned.record()}
        output(as_json, data, lambda: study_tables.print_search_plan(planned, head))
    elif reseed:
        from moist.reporting.progress import SearchProgress
        from moist.study.reseed import reseed as train_again

        with SearchProgress(quiet) as progress:
            members = train_again(
                refs[0], times=reseed, workers=workers, threads=threads, observers=[progress]
            )
        output(as_json, members, lambda: study_tables.print_members(refs[0].name, members))
    else:
        _print_frontier(first, axes, as_csv, as_json)
    if plot:
        if refs:
            plot_study(plot, refs[0], axes)
        else:
            _plot_wandb(plot, first, axes, sources[0])
        click.echo(f"plot: {plot}", err=True)


def _check_count(found: int, expected: int) -> None:
    if found != expected:
        raise ConfigError(
            f"expected {expected} {'studies' if expected == 2 else 'study'}, found {found}",
            "`moist pareto A B --compare` takes two, every other query one",
        )


def _from_database(ref: StudyRef) -> Results:
    spec, trials = load(ref)
    return Results(ref.name, spec.objectives, trials)


def _from_wandb(sources: Sequence[str], groups: Sequence[str]) -> list[Results]:
    """Read the studies of W&B sources (see `moist.tracking.results`). Raises ConfigError."""
    if len(groups) not in {0, len(sources)}:
        raise ConfigError(
            f"found {len(sources)} `--wandb` and {len(groups)} `--group`",
            "give one `--group` for each `--wandb`",
        )
    if not sources:
        return []
    from moist.tracking import results

    warned = terminal.TerminalProgress().warned
    pairs = zip(sources, groups or [""] * len(sources), strict=True)
    loaded = [results.load(source, group or None, DEFAULT, warned) for source, group in pairs]
    return [Results(name, DEFAULT, trials) for name, trials in loaded]


def _axes(objectives: Sequence[Objective], x: str | None, y: str | None) -> tuple[Objective, ...]:
    """Return the study's objectives, or the requested two, y first."""
    if x is None and y is None:
        return tuple(objectives)
    cost = next((one for one in objectives if one.direction == "min"), objectives[-1])
    chosen = (y, objectives[0]), (x, cost)
    return tuple(
        Objective(name, known(name).better) if name else default for name, default in chosen
    )


def _print_frontier(
    results: Results, axes: Sequence[Objective], as_csv: bool, as_json: bool
) -> None:
    front = queries.members(results.trials, axes)
    if as_json:
        print_json(front)
    elif as_csv:
        print_csv(trial_frame(front))
    else:
        study_tables.print_trials(f"Pareto frontier of {results.name}", front, axes)
        complete = sum(trial.state == "complete" for trial in results.trials)
        click.echo(f"{len(front)} of {complete} complete trials; selected on validation")


def _print_hypervolume(
    results: Results, axes: Sequence[Objective], reference: dict[str, float], as_json: bool
) -> None:
    corner = reference or queries.default_reference(results.trials, axes)
    volume = queries.hypervolume(results.trials, axes, corner)
    if as_json:
        print_json({"hypervolume": volume, "reference": corner})
        return
    options = " ".join(f"--reference {name}={value:g}" for name, value in corner.items())
    click.echo(f"hypervolume {volume:.6g}, up to {options}")


def _plot_wandb(path: Path, results: Results, axes: Sequence[Objective], source: str) -> None:
    from moist.reporting.frontier_plot import COST, frontier_plot
    from moist.reporting.plots import save_plot

    y, x = (*axes, COST)[:2]
    plot = frontier_plot(results.trials, queries.members(results.trials, axes), x, y)
    group = [] if results.name == source else ["--group", results.name]
    command = shlex.join(["moist", "pareto", "--wandb", source, *group])
    save_plot(path, plot, f"Pareto frontier of {results.name}", command, results.trials)
