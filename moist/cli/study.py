"""Questions to a study: its frontier, the best under a limit, how sure both are."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from moist.cli.options import (
    EACH_THREADS,
    HOME,
    JSON,
    QUIET,
    STORAGE,
    check_together,
    print_json,
    study_ref,
)
from moist.cli.wandb import Asked, draw_runs, from_wandb
from moist.errors import ConfigError
from moist.reporting import study_tables
from moist.results import queries
from moist.results.objectives import Objective, known, parse_limits, parse_values

if TYPE_CHECKING:
    from moist.results.trials import Trial
    from moist.study.ref import StudyRef
    from moist.study.storage import Described

APART = (
    ("--compare", "--hypervolume", "--reseed", "--csv"),
    ("--csv", "--json"),
    ("--compare", "--plot"),
    ("--wandb", "--reseed"),
    ("--wandb", "--storage"),
)
"""Questions to a frontier, and forms of the answer, of which one is given at a time."""
NEEDED = {
    "--reference": ("--hypervolume", "--compare"),
    "--workers": ("--reseed",),
    "--threads": ("--reseed",),
    "--group": ("--wandb",),
}


@click.command()
@click.argument("studies", nargs=-1, metavar="[STUDY]...")
@click.option(
    "--wandb",
    "sources",
    multiple=True,
    metavar="SOURCE",
    help="Ask W&B instead: ENTITY/PROJECT[/SWEEP], or a folder of runs as HOME/wandb.",
)
@click.option(
    "--group", "groups", multiple=True, metavar="STUDY", help="Which study of that SOURCE."
)
@click.option("--x", help="Quantity across; default: the study's cost.")
@click.option("--y", help="Quantity up; default: the study's first objective.")
@click.option("--plot", type=click.Path(path_type=Path), metavar="FILE.html|.png|.svg")
@click.option("--csv", "as_csv", is_flag=True, help="The frontier as CSV, unrounded.")
@click.option("--hypervolume", is_flag=True, help="The volume that the frontier dominates.")
@click.option(
    "--reference",
    multiple=True,
    metavar="NAME=VALUE",
    help="Its corner, one for each objective; default: the worst values of the trials.",
)
@click.option("--compare", is_flag=True, help="Which of two studies' frontiers dominates.")
@click.option(
    "--reseed",
    type=click.IntRange(2, 1000),
    metavar="N",
    help="Train the members under N new seeds: means, deviations, how sure each is.",
)
@click.option(
    "--workers", default=1, show_default=True, type=click.IntRange(1), help="For --reseed."
)
@EACH_THREADS
@JSON
@QUIET
@STORAGE
@HOME
def pareto(studies: tuple[str, ...], storage: str | None, home: Path, **options: Any) -> None:
    """The Pareto frontier of a study: the trials that none beats in every objective.

    Trials are chosen by validation accuracy; accuracy on the test split is only reported.

    \b
    moist pareto quickstart
    moist pareto quickstart --x latency_ms --plot queries.svg
    moist pareto quickstart --hypervolume --reference accuracy=0.5 --reference mflops=20
    moist pareto quickstart --reseed 3
    moist pareto quickstart other --compare
    moist pareto --wandb me/moist --group quickstart
    """
    check_together(APART, NEEDED)
    wanted = 2 if options["compare"] else 1
    if (found := len(studies) + len(options["sources"])) != wanted:
        raise ConfigError(
            f"expected {wanted} {'studies' if wanted == 2 else 'study'}, found {found}",
            "`moist pareto A B --compare` takes two, all else one",
        )
    from moist.reporting.plots import check_plot_path

    check_plot_path(options["plot"])
    loaded = [
        Asked(study, described.objectives, trials)
        for study in studies
        for described, trials in [_loaded(study_ref(study, storage, home))]
    ]
    loaded += from_wandb(options["sources"], options["groups"])
    name, objectives, trials = loaded[0]
    axes = _axes(objectives, options["x"], options["y"])
    reference = parse_values(options["reference"], "--reference")
    errors = {}
    if options["compare"]:
        names = [one.name for one in loaded]
        _compare(names, [one.trials for one in loaded], axes, reference, options["as_json"])
    elif options["hypervolume"]:
        _hypervolume(trials, axes, reference, options["as_json"])
    elif options["reseed"]:
        errors = _reseed(study_ref(studies[0], storage, home), axes, options)
    else:
        _frontier(name, trials, axes, options)
    if options["plot"]:
        from moist.reporting.plots import plot_study

        if studies:
            plot_study(options["plot"], study_ref(studies[0], storage, home), axes, errors)
        else:
            draw_runs(options["plot"], loaded[0], axes, options["sources"][0])
        click.echo(f"plot: {options['plot']}", err=True)


@click.command()
@click.argument("study")
@click.option("--max", "at_most", multiple=True, metavar="NAME=VALUE", help="As mflops=11.")
@click.option("--min", "at_least", multiple=True, metavar="NAME=VALUE", help="As accuracy=0.85.")
@click.option("--by", help="What it is best in; default: the study's first objective.")
@click.option("--knee", is_flag=True, help="The frontier's best bargain.")
@JSON
@STORAGE
@HOME
def best(study: str, storage: str | None, home: Path, **options: Any) -> None:
    """The best trial that keeps all limits, chosen on validation.

    \b
    moist best quickstart --max mflops=0.3
    moist best quickstart --max latency_ms=1 --min accuracy=0.85
    moist best quickstart --min accuracy=0.9 --by mflops
    moist best quickstart --knee
    """
    check_together(apart=[("--knee", "--by")])
    ref = study_ref(study, storage, home)
    described, trials = _loaded(ref)
    limits = parse_limits(options["at_most"], options["at_least"])
    by = _objective(options["by"]) if options["by"] else described.objectives[0]
    if options["knee"]:
        queries.best(trials, limits, by)  # raises unless some trial keeps the limits
        found = queries.knee(queries.keeping(trials, limits), described.objectives)
    else:
        found = queries.best(trials, limits, by)
    if options["as_json"]:
        print_json(found.model_dump(mode="json"))
        return
    study_tables.print_trials("", [found], described.objectives)
    click.echo(f"repeat it with\n  {found.command}")
    if found.key:
        click.echo(f"all about it: {ref.locate(f'moist show {found.key[:8]}', storage=False)}")


def _loaded(ref: StudyRef) -> tuple[Described, list[Trial]]:
    """Read a study and its trials."""
    from moist.study.storage import load

    return load(ref)


def _objective(name: str) -> Objective:
    return Objective(name, known(name).better)


def _axes(objectives: Sequence[Objective], x: str | None, y: str | None) -> tuple[Objective, ...]:
    """The study's objectives, or the two asked for: y first."""
    if x is None and y is None:
        return tuple(objectives)
    cost = next((one for one in objectives if one.direction == "min"), objectives[-1])
    return (
        _objective(y) if y else objectives[0],
        _objective(x) if x else cost,
    )


def _frontier(
    study: str, trials: list[Trial], axes: Sequence[Objective], options: dict[str, Any]
) -> None:
    front = queries.members(trials, axes)
    if options["as_json"]:
        print_json([trial.model_dump(mode="json") for trial in front])
    elif options["as_csv"]:
        click.echo(study_tables.as_csv(front), nl=False)
    else:
        study_tables.print_trials(f"Pareto frontier of {study}", front, axes)
        complete = sum(trial.state == "complete" for trial in trials)
        click.echo(f"{len(front)} of {complete} complete trials; chosen on validation")


def _hypervolume(
    trials: list[Trial],
    axes: Sequence[Objective],
    reference: dict[str, float],
    as_json: bool,
) -> None:
    corner = reference or queries.default_reference(trials, axes)
    volume = queries.hypervolume(trials, axes, corner)
    if as_json:
        print_json({"hypervolume": volume, "reference": corner})
        return
    said = " ".join(f"--reference {name}={value:g}" for name, value in corner.items())
    click.echo(f"hypervolume {volume:.6g}, up to {said}")


def _compare(
    studies: Sequence[str],
    trials: Sequence[list[Trial]],
    axes: Sequence[Objective],
    reference: dict[str, float],
    as_json: bool,
) -> None:
    found = queries.compare(trials[0], trials[1], axes, reference or None)
    if as_json:
        print_json(found.model_dump(mode="json"))
        return
    study_tables.print_comparison(studies, found)


def _reseed(
    ref: StudyRef, axes: Sequence[Objective], options: dict[str, Any]
) -> dict[int, tuple[float, float]]:
    """Print the members under new seeds; mean and deviation of the plot's y by trial number."""
    from moist.study.reseed import reseed

    found = reseed(
        ref,
        times=options["reseed"],
        workers=options["workers"],
        threads=options["threads"],
        quiet=options["quiet"],
    )
    if options["as_json"]:
        print_json([member.model_dump(mode="json") for member in found])
    else:
        study_tables.print_members(ref.name, found)
    y = axes[0].name
    spread = {one.number: one.values[y] for one in found if y in one.values}
    return {number: (one.mean, one.sd) for number, one in spread.items()}


@click.command()
@click.argument("study")
@click.option("--port", default=8080, show_default=True, type=click.IntRange(1, 65535))
@STORAGE
@HOME
def dashboard(study: str, port: int, storage: str | None, home: Path) -> None:
    """Browse a study with optuna-dashboard, on this machine only, until Ctrl-C.

    \b
    moist dashboard quickstart
    """
    from moist.study.ledger import artifact_store
    from moist.study.storage import find

    found = find(study_ref(study, storage, home))
    try:
        from optuna_dashboard import run_server
    except ImportError:
        raise ConfigError(
            "`moist dashboard` needs optuna-dashboard", "`pip install moist[dashboard]`"
        ) from None
    # The server catches whatever is raised while it answers, an exit as well: it would live on.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    click.echo(f"http://127.0.0.1:{port}/dashboard/studies/{found._study_id}", err=True)
    run_server(found._storage, "127.0.0.1", port, artifact_store(home))
