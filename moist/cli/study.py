"""`moist studies`, `best`, `table` and `dashboard`: queries to studies."""

from __future__ import annotations

from pathlib import Path

import click

from moist.cli.options import (
    HOME,
    JSON,
    STORAGE,
    check_together,
    of_study,
    output,
    print_csv,
    print_json,
    run_json,
    study_ref,
)
from moist.disk import warn
from moist.errors import ConfigError, as_typed, did_you_mean
from moist.interrupts import leave_at_once
from moist.reporting import study_tables
from moist.reporting.terminal import counted
from moist.results import queries
from moist.results.aggregate import averaged
from moist.results.frames import trial_frame
from moist.results.objectives import TEST, Objective, known, parse_limits
from moist.store.keys import SHORT
from moist.store.runs import RunRecords
from moist.study.ref import StudyRef
from moist.study.storage import load, of_optuna, overviews


@click.command()
@JSON
@STORAGE
@HOME
def studies(as_json: bool, storage: str | None, home: Path) -> None:
    """List all studies of a database, the last changed first.

    The best trial is that of the study's first objective, on validation images.

    \b
    moist studies
    moist studies --json
    """
    ref = study_ref("", storage, home)
    found = overviews(ref)
    output(as_json, found, lambda: study_tables.print_studies(found))
    if not found and not as_json:
        start = ref.locate("moist sweep optuna sweeps/quickstart.yaml")
        click.echo(as_typed(f"no studies in `{ref.shown}` yet; start one: `{start}`"), err=True)


@click.command()
@click.option(
    "--max", "at_most", multiple=True, metavar="NAME=VALUE", help="Upper limit, e.g. mflops=11."
)
@click.option(
    "--min",
    "at_least",
    multiple=True,
    metavar="NAME=VALUE",
    help="Lower limit, e.g. accuracy=0.85.",
)
@click.option("--by", help="Quantity to rank by; default: the study's first objective.")
@click.option("--knee", is_flag=True, help="Select the frontier's knee point.")
@JSON
@of_study
def best(
    ref: StudyRef,
    at_most: tuple[str, ...],
    at_least: tuple[str, ...],
    by: str | None,
    knee: bool,
    as_json: bool,
) -> None:
    """Print the best trial within all limits.

    Trials are selected by validation accuracy. Latencies that differ by no more than their spreads
    (±) are ties, with a limit too: `--max latency_ms=0.5` takes 0.52 ±5%.

    \b
    moist best quickstart --max mflops=0.3
    moist best quickstart --max latency_ms=1 --min accuracy=0.85
    moist best quickstart --min accuracy=0.9 --by mflops
    moist best quickstart --knee
    """
    check_together(apart=[("--knee", "--by")])
    spec, trials = load(ref)
    limits = parse_limits(at_most, at_least)
    objective = Objective(by, known(by).better) if by else spec.objectives[0]
    found = queries.best(trials, limits, objective)  # raises unless a trial is within the limits
    if knee:
        found = queries.knee(queries.keeping(trials, limits), spec.objectives)
    if as_json:
        run = RunRecords(ref.home).get(found.key or "")
        if run is None:
            warn(f"`{ref.home}` has no record of trial {found.number}: its report is left out")
        print_json(run_json(run, found))
        return
    study_tables.print_trials("", [found], spec.objectives)
    for limit in limits:
        if limit.excess({limit.name: found.quantities[limit.name]}) > 0:
            click.echo(f"it ties with `{limit}`: the difference is within its spread")
    click.echo(as_typed(f"reproduce it with\n  {found.command}"))
    if found.key:
        show = ref.locate(f"moist show {found.key[:SHORT]}", storage=False)
        click.echo(as_typed(f"its report: {show}"))


@click.command()
@click.option("--across", metavar="PARAMETER", help="Give each value of PARAMETER a column.")
@click.option(
    "--show",
    multiple=True,
    metavar="NAME",
    help="A number of the runs, e.g. mflops or test/accuracy; default: the study's objectives"
    " (with --across only the first) and test/accuracy.",
)
@click.option(
    "--over",
    multiple=True,
    default=("seed",),
    show_default="seed",
    metavar="PARAMETER",
    help="Parameters to average over.",
)
@click.option(
    "--csv", "as_csv", is_flag=True, help="Print unrounded values of every complete run as CSV."
)
@JSON
@of_study
def table(
    ref: StudyRef,
    across: str | None,
    show: tuple[str, ...],
    over: tuple[str, ...],
    as_csv: bool,
    as_json: bool,
) -> None:
    """Print a study's results, averaged over seeds.

    Prints mean and standard deviation for each combination of the searched parameters.

    \b
    moist table distillers
    moist table ones_ablation --across merge.teacher --show accuracy --show test/accuracy
    moist table ones_ablation --show test/gathered --over seed --over merge.teacher
    """
    check_together(apart=[("--csv", "--json"), ("--csv", "--across"), ("--csv", "--show")])
    spec, trials = load(ref)
    complete = [trial for trial in trials if trial.state == "complete"]
    if as_csv:
        print_csv(trial_frame(complete))
        return
    objectives = [one.name for one in spec.objectives]
    default = (*(objectives[:1] if across else objectives), f"{TEST}accuracy")
    rows = averaged(trials, show or default, over)
    if across is not None and not any(across in row.params for row in rows):
        differ = dict.fromkeys(name for row in rows for name in row.params)
        raise ConfigError(
            f"the settings of `{ref.name}` do not differ in `{across}`",
            did_you_mean(across, differ, f"they differ in: {', '.join(differ) or 'nothing'}"),
        )
    if as_json:
        print_json(rows)
        return
    study_tables.print_averages(ref.name, rows, across)
    count = f"{len(complete)} of {counted(len(trials), 'trial')} complete"
    click.echo(f"{count}; the test split is only reported")


@click.command()
@click.option(
    "--port",
    default=8080,
    show_default=True,
    type=click.IntRange(1, 65535),
    help="Port on 127.0.0.1.",
)
@of_study
def dashboard(ref: StudyRef, port: int) -> None:
    """Serve a study in optuna-dashboard.

    The server listens on this machine only, until Ctrl-C.

    \b
    moist dashboard quickstart
    """
    from moist.study.ledger import artifact_store

    found = of_optuna(ref)
    try:
        from optuna_dashboard import run_server
    except ImportError:
        raise ConfigError(
            "`moist dashboard` needs optuna-dashboard", "`pip install moist[dashboard]`"
        ) from None
    leave_at_once()  # the server catches every exception while it answers, and keeps running
    click.echo(f"http://127.0.0.1:{port}/dashboard/studies/{found._study_id}", err=True)
    run_server(found._storage, "127.0.0.1", port, artifact_store(ref.home))
