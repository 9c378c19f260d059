"""`moist sweep optuna`: search a sweep file's space in an Optuna study on this machine."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from moist.cli.options import (
    EACH_THREADS,
    FILE,
    HOME,
    JSON,
    OVERRIDES,
    QUIET,
    STORAGE,
    WANDB,
    WORKERS,
    check_together,
    print_json,
    study_ref,
)
from moist.reporting import run_tables, study_tables, terminal
from moist.results.objectives import DEFAULT, parse_limits, parse_objectives, parse_values
from moist.study.settings import BEST, SAMPLERS

if TYPE_CHECKING:
    from moist.study.ref import StudyRef
    from moist.study.settings import Settings
    from moist.study.spec import StudySpec
    from moist.study.workers import Slot
    from moist.sweepfile import Sweep


@dataclass(frozen=True)
class SearchOptions:
    """The command line of `moist sweep optuna`."""

    trials: int | None
    workers: int
    study: str | None
    storage: str | None
    sampler: str
    objectives: tuple[str, ...]
    at_most: tuple[str, ...]
    best: tuple[str, ...]
    timeout: float | None
    seed: int
    retries: int
    prune: bool
    prune_audit: bool
    no_reuse: bool
    devices: str | None
    threads: int | None
    dry_run: bool
    plot: Path | None
    wandb: str
    as_json: bool
    quiet: bool
    home: Path

    def ref(self, sweep: Sweep) -> StudyRef:
        """Refer to the study to make or to continue."""
        return study_ref(self.study or sweep.name, self.storage, self.home)

    def slots(self) -> list[Slot]:
        """Return the device and threads of each worker. Raises ConfigError."""
        from moist.study.workers import make_slots

        return make_slots(self.devices, self.workers, self.threads)

    def describe(self, sweep: Sweep, slots: Sequence[Slot]) -> StudySpec:
        """Describe the study, with the command that continues it, passwords masked."""
        from moist.study.ref import masked
        from moist.study.spec import study_spec
        from moist.study.workers import machine_of

        given = parse_objectives(self.objectives) if self.objectives else sweep.objectives
        objectives = given or DEFAULT
        command = shlex.join(["moist", *map(masked, sys.argv[1:])])
        machine = machine_of(slots, objectives)
        return study_spec(sweep, objectives, self.seed, command, machine=machine)

    def settings(self, sweep: Sweep) -> Settings:
        """Return how far to search, and which trials to skip. Raises ConfigError."""
        from moist.study.search import requested_trials
        from moist.study.settings import Settings

        return Settings(
            trials=requested_trials(sweep, self.trials),
            sampler=self.sampler,
            retries=self.retries,
            timeout=self.timeout,
            limits=parse_limits(self.at_most),
            best=BEST | parse_values(self.best, "--best"),
            prune=self.prune,
            audit=self.prune_audit,
            reuse=not self.no_reuse,
        )


@click.command("optuna")
@FILE
@OVERRIDES
@click.option(
    "--trials", type=click.IntRange(1), help="Complete trials of the study to end with, in all."
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
    help="Value that no trial exceeds; default: accuracy=1. A trial that could not reach the"
    " frontier even with it is not trained.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(0, min_open=True),
    metavar="SECONDS",
    help="Stop after this time; the same command continues.",
)
@click.option(
    "--seed", default=0, show_default=True, help="Seed of the sampler; a run's is `seed=N`."
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
    type=click.Path(path_type=Path),
    metavar="FILE.html|.png|.svg",
    help="Where to plot the frontier; default: HOME/plots/STUDY.html",
)
@WANDB
@JSON
@QUIET
@HOME
def optuna(file: Path, overrides: tuple[str, ...], **options: Any) -> None:
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
    from moist.sweepfile import read_sweep

    sweep, asked = read_sweep(file, overrides), SearchOptions(**options)
    if not asked.quiet:
        _print_ignored(sweep, bool(asked.objectives))
    if asked.dry_run:
        _plan_search(sweep, asked)
    else:
        _search(sweep, asked)


def _print_ignored(sweep: Sweep, has_objectives: bool) -> None:
    """Print one line on stderr if the file has settings that only W&B uses."""
    ignored = [
        f"`{word}` (use `{option}`)"
        for word, option in sweep.wandb_only.items()
        if not (word == "metric" and has_objectives)
    ]
    if ignored:
        click.echo(f"{sweep.path}: ignored, for W&B only: {', '.join(ignored)}", err=True)


def _search(sweep: Sweep, options: SearchOptions) -> None:
    from moist.reporting.plots import check_plot_path, plot_study
    from moist.reporting.progress import SearchProgress
    from moist.reporting.wandb_summary import log_summary
    from moist.results.queries import members
    from moist.study.events import Observer
    from moist.study.search import search
    from moist.study.tracking import WandbObserver
    from moist.tracking.tracker import open_tracker

    check_plot_path(options.plot)
    slots, ref = options.slots(), options.ref(sweep)
    spec, settings = options.describe(sweep, slots), options.settings(sweep)
    plot = options.plot or ref.home / "plots" / f"{ref.name}.html"
    progress = terminal.TerminalProgress(options.quiet)
    with open_tracker(options.wandb, ref.home, progress.noted, progress.warned) as tracked:
        with SearchProgress(options.quiet) as shown:
            observers: list[Observer] = [shown]
            observers += [] if tracked.off else [WandbObserver(tracked)]
            result = search(ref, sweep, spec, settings, slots=slots, observers=observers)
        if front := members(result.trials, spec.objectives):
            plot.parent.mkdir(parents=True, exist_ok=True)
            plot_study(plot, ref)
            if result.stats.outcomes and not tracked.off:
                log_summary(tracked, ref, plot)
        if options.as_json:
            print_json(result.record(front))
        else:
            study_tables.print_result(ref, result, front, objectives=spec.objectives, plot=plot)


def _plan_search(sweep: Sweep, options: SearchOptions) -> None:
    from moist.study.search import plan_search

    slots, ref = options.slots(), options.ref(sweep)
    spec, settings = options.describe(sweep, slots), options.settings(sweep)
    found = plan_search(ref, sweep, spec, settings, slots=slots)
    if options.as_json:
        print_json(found.record())
        return
    click.echo(
        f"{found.trials} trials to run, {found.complete} already complete\n"
        f"{found.called} stages called, {found.distinct} distinct, {len(found.missing)} to compute"
    )
    if found.missing:
        estimate = run_tables.estimated_time(found.missing, options.workers)
        click.echo(f"{estimate}, with --workers {options.workers}")
