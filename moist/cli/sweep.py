"""`moist sweep`: the command group, sweep files, and the maintenance of studies."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

import click

from moist.cli.options import FILE, JSON, check_together, of_study, output, print_json
from moist.cli.sweep_optuna import optuna
from moist.cli.sweep_wandb import wandb
from moist.errors import as_typed
from moist.interrupts import leave_at_once
from moist.reporting import study_tables, terminal
from moist.reporting.terminal import counted
from moist.results.objectives import DEFAULT
from moist.study.doctor import examine
from moist.study.leases import driver_of
from moist.study.ref import StudyRef
from moist.study.spec import check_search
from moist.study.storage import load
from moist.sweepfile import Sweep, catalog, problems, read_sweep, size

WATCH = 2.0
"""Seconds between two looks at a study that is watched."""


@click.group()
def sweep() -> None:
    """Search the hyperparameters of a sweep file.

    \b
    moist sweep optuna sweeps/quickstart.yaml
    moist sweep status quickstart
    moist pareto quickstart
    moist best quickstart --max mflops=0.3
    """


sweep.add_command(optuna)
sweep.add_command(wandb)


@sweep.command()
@FILE
@JSON
def check(file: Path, as_json: bool) -> None:
    """List the problems of a sweep file.

    What passes can be started by `moist sweep optuna FILE`; whether its data and the teacher's
    weights are there, and fit, is only found then. The exit code is 2 if there are problems.

    \b
    moist sweep check sweeps/pareto.yaml
    """
    found = problems(file, _check_start)
    if as_json:
        print_json([{"problem": problem} for problem in found])
    else:
        for problem in found:
            click.echo(as_typed(problem))
    if found:
        raise click.exceptions.Exit(2)
    if not as_json:
        read = read_sweep(file)
        points = size(read)
        click.echo(
            f"{read.name}: {counted(len(read.parameters), 'parameter')}, {len(read.fixed)} fixed,"
            f" {'infinitely many points' if points is None else counted(points, 'point')}"
        )


def _check_start(read: Sweep) -> None:
    """Raise ConfigError for a sweep that `moist sweep optuna` rejects without other options."""
    check_search(read.name, read, [one.name for one in read.objectives or DEFAULT])


@sweep.command()
@click.option("--watch", is_flag=True, help="Print it again whenever it changes, while it runs.")
@JSON
@of_study
def status(ref: StudyRef, watch: bool, as_json: bool) -> None:
    """Print a study's progress, driver and failures.

    Only reads: any number of people may watch a study in a database that they can reach.

    \b
    moist sweep status quickstart
    moist sweep status quickstart --watch --storage postgresql+psycopg://HOST/NAME
    """
    check_together(apart=[("--watch", "--json")])
    before = None
    while True:
        (spec, trials), driver = load(ref), driver_of(ref)
        data = {**spec.model_dump(mode="json"), "driver": driver, "trials": trials}
        if data != before:
            if before is not None:
                click.clear()
            output(as_json, data, partial(study_tables.print_status, ref, spec, trials, driver))
        if not watch or driver is None:
            return
        before = data
        leave_at_once()
        time.sleep(WATCH)


@sweep.command()
@click.option(
    "--reason", default="", help="Requeue only trials whose failure message contains this."
)
@of_study
def retry(ref: StudyRef, reason: str) -> None:
    """Requeue failed trials with the same parameters.

    \b
    moist sweep retry quickstart --reason "out of memory"
    """
    from moist.study.ledger import opened

    spec, _ = load(ref)
    with opened(ref, spec) as ledger:
        again = ledger.retry_failed(reason)
    click.echo(f"{counted(len(again), 'trial')} requeued: {', '.join(map(str, again)) or 'none'}")
    if again:
        click.echo(as_typed(f"run them with\n  {ref.locate(spec.command)}"))


@sweep.command()
@click.option("--fix", is_flag=True, help="Requeue trials whose driver is gone.")
@JSON
@of_study
def doctor(ref: StudyRef, fix: bool, as_json: bool) -> None:
    """Check a study against its database and run records.

    The exit code is 1 if anything is wrong.

    \b
    moist sweep doctor quickstart --fix
    """
    from moist.study.ledger import opened

    spec, trials = load(ref)
    if fix:
        with opened(ref, spec) as ledger:
            ledger.requeue_unfinished()
        _, trials = load(ref)
    found = examine(ref, spec, trials)
    if as_json:
        print_json(found)
    else:
        for finding in found:
            click.echo(as_typed(f"{finding.problem}\nhint: {finding.remedy}"))
        click.echo(
            f"{ref.name}: {counted(len(trials), 'trial')}, {counted(len(found), 'finding')}"
        )
    if found:
        raise click.exceptions.Exit(1)


@sweep.command("list")
@JSON
def list_files(as_json: bool) -> None:
    """List the sweep files that come with moist.

    Prints the question, cost and expected answer of each. Its name can be given wherever a sweep
    file or an @FILE is expected.

    \b
    moist sweep list
    moist sweep optuna quickstart
    moist run @short data.name=folder data.root=IMAGES teacher.weights=FILE
    """
    found = catalog()
    rows = [[entry.name, entry.question, entry.cost, entry.expect] for entry in found]
    heads = ["name", "question", "cost", "expected"]
    output(as_json, found, lambda: terminal.print_table("", heads, rows))
