"""`moist run`: one model, trained and measured; and what it would compute."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path

import click

from moist.cli.options import (
    DEVICE,
    HOME,
    JSON,
    OVERRIDES,
    THREADS,
    WANDB,
    computing,
    print_json,
)
from moist.config.overrides import parse
from moist.reporting import terminal
from moist.reporting.run_tables import print_report


@click.command()
@OVERRIDES
@JSON
@WANDB
@computing
def run(
    overrides: tuple[str, ...],
    as_json: bool,
    wandb: str,
    home: Path,
    threads: int | None,
    device: str | None,
    quiet: bool,
) -> None:
    """Train and measure one MoIST model; stages already stored are reused.

    \b
    moist run
    moist run k=auto router=linear temperature=2
    moist run @sweeps/paper.yaml data.name=folder data.root=IMAGES --json
    """
    config = parse(overrides)
    from moist.env import make_env
    from moist.pipeline import run as run_pipeline
    from moist.results.objectives import quantities, reported
    from moist.store import runs
    from moist.store.store import Store
    from moist.tracking.client import run_of
    from moist.tracking.journal import found
    from moist.tracking.progress import Tracked
    from moist.tracking.tracker import tracker

    command = runs.reproducing(config)
    with closing(terminal.Watcher(quiet)) as watcher:
        env = make_env(watcher, device, threads)
        if crowded := env.crowding():
            watcher.said(crowded)
        with (
            tracker(wandb, home, watcher.said, watcher.warned) as tracked,
            tracked.open(run_of(config, home, command), config) as journal,
        ):
            store = Store(home, replace(env, progress=Tracked(watcher, journal)))
            report = run_pipeline(config, store)
            record = runs.save(
                home, command=command, config=config, report=report, artifacts=store.keys()
            )
            facts = {"key": report.key, "command": command, "seconds": report.seconds}
            journal.end("complete", found(quantities(report), reported(report), **facts))
            if as_json:
                print_json(report.model_dump(mode="json"))
            else:
                print_report(report, record.config, record.command)


@click.command()
@OVERRIDES
@JSON
@HOME
@THREADS
@DEVICE
def plan(
    overrides: tuple[str, ...],
    as_json: bool,
    home: Path,
    threads: int | None,
    device: str | None,
) -> None:
    """Say what `moist run` would compute and what it would reuse; computes nothing.

    \b
    moist plan temperature=2
    """
    config = parse(overrides)
    from moist.env import make_env
    from moist.pipeline import stages
    from moist.store.plan import Plan

    store = Plan(home, make_env(terminal.Watcher(), device, threads))
    stages(config, store)
    if as_json:
        print_json([call.record() for call in store.calls])
        return
    rows = [
        [
            call.stage,
            call.key[: terminal.SHORT],
            "reuse" if call.reused else "compute",
            "-" if call.seconds is None else terminal.duration(call.seconds),
        ]
        for call in store.calls
    ]
    terminal.print_table("", ["stage", "key", "plan", "took before"], rows)
    todo = [call for call in store.calls if not call.reused]
    known = [call.seconds for call in todo if call.seconds is not None]
    said = [f"{len(todo)} of {len(store.calls)} stages to compute"]
    said += [f"about {terminal.duration(sum(known))}"] if known else []
    said += [f"{len(todo) - len(known)} never timed here"] if len(known) < len(todo) else []
    click.echo(", ".join(said))
