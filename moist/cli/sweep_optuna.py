"""`moist sweep optuna`: search a sweep file's space in an Optuna study."""

from __future__ import annotations

from pathlib import Path

import click

from moist.api.sweeps import Search, prepare_workers
from moist.cli.options import (
    EACH_THREADS,
    FILE,
    HOME,
    JSON,
    OVERRIDES,
    PATH,
    QUIET,
    STORAGE,
    STORE,
    WANDB,
    check_together,
    output,
    print_json,
    study_ref,
)
from moist.reporting import study_tables
from moist.results.objectives import DEFAULT, parse_limits, parse_objectives, parse_values
from moist.results.trials import Trial
from moist.study.ref import this_command
from moist.study.settings import BEST, ENGINES, SAMPLERS, SearchResult, Settings
from moist.sweepfile import Sweep, read_sweep

CLUSTER = ("--address", "--cpus-per-trial", "--gpus-per-trial")
"""Options of `--engine ray` alone."""
DEVICES = ("--devices",)
"""Options of engines on this machine alone."""


@click.command("optuna")
@FILE
@OVERRIDES
@click.option(
    "--trials", type=click.IntRange(1), help="Number of complete trials at which the study ends."
)
@click.option(
    "--workers",
    type=click.IntRange(1),
    help="Trials in parallel; default: 1, with --engine ray as many as the cluster has room for.",
)
@click.option("--study", help="Name of the study; default: the file's.")
@STORAGE
@STORE
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
@click.option(
    "--engine",
    type=click.Choice(ENGINES),
    default="local",
    show_default=True,
    help="Where trials run: in processes of this machine, in this process, on a Ray cluster.",
)
@click.option(
    "--address",
    metavar="auto|HOST:PORT",
    help="Ray cluster that this machine is a node of; default: RAY_ADDRESS, or one that runs here,"
    " or a new one.",
)
@click.option(
    "--cpus-per-trial",
    type=click.FloatRange(0, min_open=True),
    help="CPUs of the Ray cluster that each trial takes; default: 1.",
)
@click.option(
    "--gpus-per-trial",
    type=click.FloatRange(0),
    help="GPUs, or a share of one, that each trial takes; default: 1 if the cluster has any.",
)
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
    workers: int | None,
    study: str | None,
    storage: str | None,
    store: str | None,
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
    engine: str,
    address: str | None,
    cpus_per_trial: float | None,
    gpus_per_trial: float | None,
    devices: str | None,
    threads: int | None,
    dry_run: bool,
    plot: Path | None,
    wandb: str,
    as_json: bool,
    quiet: bool,
    home: Path,
) -> None:
    """Search with Optuna, on this machine or a Ray cluster.

    Runs trials until enough are complete, then prints the Pareto frontier. Killed or
    interrupted, the same command continues. No stage is computed twice. What the architecture
    determines (mflops, latency) is known before training: a trial beyond --max, or one that
    could not reach the frontier even with --best, is not trained. Objectives are those of
    --objective, or the file's `metrics`; its `metric` and `early_terminate` are for W&B only.

    \b
    moist sweep optuna sweeps/quickstart.yaml
    moist sweep optuna sweeps/quickstart.yaml k=2 --study two --trials 8 --dry-run
    moist sweep optuna sweeps/pareto.yaml --workers 2 --max mflops=15 --prune
    moist sweep optuna sweeps/pareto.yaml --engine ray --gpus-per-trial 0.5 --cpus-per-trial 2
    """
    check_together([("--prune", "--prune-audit")], _idle_options(engine))
    sweep = read_sweep(file, overrides)
    if not quiet:
        _print_ignored(sweep, bool(objectives))
    ref = study_ref(study or sweep.name, storage, home, store)
    if engine == "local" and not dry_run:
        prepare_workers(ref)
    from moist.reporting.plots import check_plot_path
    from moist.study.engines import Cluster, check_engine, make_engine
    from moist.study.search import requested_trials

    if not dry_run:
        check_plot_path(plot)
    goals = parse_objectives(objectives) if objectives else sweep.objectives or DEFAULT
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
    check_engine(engine, settings.needed(goals), sweep, settings.reuse)
    cluster = Cluster(address, cpus_per_trial, gpus_per_trial, connect=not dry_run)
    slots, runs, note = make_engine(engine, workers, devices, threads, cluster)
    if note and not quiet:
        click.echo(note, err=True)
    search = Search(ref, sweep, goals, settings, slots, this_command(), seed, quiet, runs)
    if dry_run:
        found = search.plan()
        output(as_json, found.record(), lambda: study_tables.print_search_plan(found))
        return

    def show(result: SearchResult, front: list[Trial], page: Path) -> None:
        if as_json:
            print_json(result.record(front))
        else:
            study_tables.print_result(ref, result, front, objectives=goals, plot=page)

    search.run(wandb, plot, show)


def _idle_options(engine: str) -> dict[str, list[str]]:
    """Return the options that do nothing with an engine, and the one that each belongs to."""
    needed = {option: ["--engine ray"] for option in CLUSTER if engine != "ray"}
    return needed | {option: ["--engine local"] for option in DEVICES if engine == "ray"}


def _print_ignored(sweep: Sweep, has_objectives: bool) -> None:
    """Print one line on stderr if the file has settings that only W&B uses."""
    ignored = [
        f"`{word}` (use `{option}`)"
        for word, option in sweep.wandb_only.items()
        if not (word == "metric" and has_objectives)
    ]
    if ignored:
        click.echo(f"{sweep.path}: ignored, for W&B only: {', '.join(ignored)}", err=True)
