"""`moist sweep optuna`: search a sweep file's space in an Optuna study on this machine."""

from __future__ import annotations

from pathlib import Path

import click

from moist.cli.options import (
    EACH_THREADS,
    FILE,
    HOME,
    JSON,
    OVERRIDES,
    PATH,
    QUIET,
    STORAGE,
    WANDB,
    WORKERS,
    check_together,
    output,
    print_json,
    study_ref,
)
from moist.disk import writing
from moist.errors import StageError
from moist.reporting import study_tables, terminal
from moist.results.objectives import DEFAULT, parse_limits, parse_objectives, parse_values
from moist.results.queries import members
from moist.study.ref import this_command
from moist.study.settings import BEST, SAMPLERS, Settings
from moist.study.spec import study_spec
from moist.sweepfile import Sweep, read_sweep


@click.command("optuna")
@FILE
@OVERRIDES
@click.option(
    "--trials", type=click.IntRange(1), help="Number of complete trials at which the study ends."
)
@WORKERS
@click.option("--study", help="Name of the study; default: the file's.")
@STORAGE
@click.option(
    "--sampler",
    type=click.Choice(SAMPLERS),
    default="auto",
    show_default=True,
    help="auto: grid or random if the file says so; else tpe, or gp for few trials of a minute"
    " or more.",
)
@click.option(
    "--objective",
    "objectives",
    multiple=True,
    metavar="NAME:max|min",
    help="Objective, may be repeated; default: accuracy:max (on validation) and mflops:min.",
)
@click.option(
    "--max",
    "at_most",
    multiple=True,
    metavar="NAME=VALUE",
    help="Limit on new trials: one known to exceed it is not trained.",
)
@click.option(
    "--best",
    multiple=True,
    metavar="NAME=VALUE",
    help="Best value that a trial could have; default: accuracy=1. A trial that could not reach"
    " the frontier even with it is not trained.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(0, min_open=True),
    metavar="SECONDS",
    help="Stop after this time; the same command continues.",
)
@click.option(
    "--seed", default=0, show_default=True, help="Seed of the sampler; `seed=N` is the runs' seed."
)
@click.option(
    "--retries",
    default=2,
    show_default=True,
    type=click.IntRange(0),
    help="Further attempts at a trial whose worker died or ran out of memory.",
)
@click.option("--prune", is_flag=True, help="Stop trials that are unlikely to reach the frontier.")
@click.option(
    "--prune-audit", is_flag=True, help="Stop no trial; report which --prune would have stopped."
)
@click.option("--no-reuse", is_flag=True, help="Recompute every stage of every trial.")
@click.option("--devices", metavar="DEVICE,...", help="Devices of the workers: cuda:0,cuda:1")
@EACH_THREADS
@click.option(
    "--dry-run", is_flag=True, help="Count the stages to compute and estimate their time."
)
@click.option(
    "--plot",
    type=PATH,
    metavar="FILE.html|.png|.svg",
    help="Where to plot the frontier; default: HOME/plots/STUDY.html",
)
@WANDB
@JSON
@QUIET
@HOME
def optuna(
    file: Path,
    overrides: tuple[str, ...],
    trials: int | None,
    workers: int,
    study: str | None,
    storage: str | None,
    sampler: str,
    objectives: tuple[str, ...],
    at_most: tuple[str, ...],
    best: tuple[str, ...],
    timeout: float | None,
    seed: int,
    retries: int,
    prune: bool,
    prune_audit: bool,
    no_reuse: bool,
    devices: str | None,
    threads: int | None,
    dry_run: bool,
    plot: Path | None,
    wandb: str,
    as_json: bool,
    quiet: bool,
    home: Path,
) -> None:
    """Search with Optuna on this machine.

    Runs trials until enough are complete, then prints the Pareto frontier. Killed or
    interrupted, the same command continues. No stage is computed twice. What the architecture
    determines (mflops, latency) is known before training: a trial beyond --max, or one that
    could not reach the frontier even with --best, is not trained. Objectives are those of
    --objective, or the file's `metrics`; its `metric` and `early_terminate` are for W&B only.

    \b
    moist sweep optuna sweeps/quickstart.yaml
    moist sweep optuna sweeps/quickstart.yaml k=2 --study two --trials 8 --dry-run
    moist sweep optuna sweeps/pareto.yaml --workers 2 --max mflops=15 --prune
    """
    check_together(apart=[("--prune", "--prune-audit")])
    sweep = read_sweep(file, overrides)
    if not quiet:
        _print_ignored(sweep, bool(objectives))
    from moist.reporting.plots import check_plot_path, plot_study
    from moist.reporting.progress import SearchProgress
    from moist.reporting.wandb_summary import log_summary
    from moist.study.events import Observer
    from moist.study.search import check_start, plan_search, requested_trials, search
    from moist.study.tracking import WandbObserver
    from moist.study.workers import machine_of, make_slots
    from moist.tracking.tracker import open_tracker

    if not dry_run:
        check_plot_path(plot)
    slots = make_slots(devices, workers, threads)
    ref = study_ref(study or sweep.name, storage, home)
    goals = parse_objectives(objectives) if objectives else sweep.objectives or DEFAULT
    command = this_command()
    settings = Settings(
        trials=requested_trials(sweep, trials),
        sampler=sampler,
        retries=retries,
        timeout=timeout,
        limits=parse_limits(at_most),
        best=BEST | parse_values(best, "--best"),
        prune=prune,
        audit=prune_audit,
        reuse=not no_reuse,
    )
    machine = machine_of(slots, settings.needed(goals))
    spec = study_spec(sweep, goals, seed, command, machine=machine)
    progress = terminal.TerminalProgress(quiet)
    spec, source, conflicts = check_start(ref, sweep, spec, settings, fetch=not dry_run)
    if source.summary:
        progress.noted(source.summary)
    if conflicts:
        progress.warned(conflicts)
    if dry_run:
        found = plan_search(ref, sweep, spec, settings, slots=slots)
        output(as_json, found.record(), lambda: study_tables.print_search_plan(found, workers))
        return
    page = plot or home / "plots" / f"{ref.name}.html"
    with open_tracker(wandb, home, progress.noted, progress.warned) as tracker:
        with SearchProgress(quiet) as shown:
            observers: list[Observer] = [shown]
            observers += [] if tracker.off else [WandbObserver(tracker)]
            result = search(ref, sweep, spec, settings, slots=slots, observers=observers)
        front = members(result.trials, goals)
        if as_json:
            print_json(result.record(front))
        else:
            study_tables.print_result(ref, result, front, objectives=goals, plot=page)
        if front:  # last: a plot that can't be written costs no result
            with writing(page.parent):
                page.parent.mkdir(parents=True, exist_ok=True)
            plot_study(page, ref)
            if result.stats.outcomes and not tracker.off:
                log_summary(tracker, ref, page)
    if result.stats.all_failed:
        raise StageError(
            f"no trial of this start gave a result: {result.stats.outcomes['failed']} failed",
            f"`{ref.command('sweep status')}` says why; `{ref.command('sweep retry')}` requeues"
            " them",
        )


def _print_ignored(sweep: Sweep, has_objectives: bool) -> None:
    """Print one line on stderr if the file has settings that only W&B uses."""
    ignored = [
        f"`{word}` (use `{option}`)"
        for word, option in sweep.wandb_only.items()
        if not (word == "metric" and has_objectives)
    ]
    if ignored:
        click.echo(f"{sweep.path}: ignored, for W&B only: {', '.join(ignored)}", err=True)
