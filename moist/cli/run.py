"""`moist run`, `plan` and `config`: train one model, or list what that would compute."""

from __future__ import annotations

from dataclasses import replace
from math import inf

import click
import yaml

from moist.cli.options import JSON, OVERRIDES, WANDB, Compute, computing, output, print_json
from moist.config import flat, schema
from moist.config.overrides import parse
from moist.config.unread import check_read
from moist.reporting import run_tables, terminal
from moist.results.objectives import quantities, reported
from moist.store.runs import RunRecords, command_for
from moist.tracking.client import agent_sweep, run_info


@click.command()
@OVERRIDES
@JSON
@WANDB
@computing
def run(overrides: tuple[str, ...], as_json: bool, wandb: str, compute: Compute) -> None:
    """Train and measure one model.

    Stages whose outputs are stored are reused.

    \b
    moist run
    moist run k=auto router=linear temperature=2
    moist run @sweeps/paper.yaml data.name=folder data.root=IMAGES --json
    """
    config = parse(overrides)
    if not agent_sweep():  # an agent sets every parameter, also those that its others leave unread
        check_read(overrides)
    from moist.pipeline import run as run_pipeline
    from moist.store.store import Store
    from moist.tracking.journal import summary_of
    from moist.tracking.progress import WandbProgress
    from moist.tracking.tracker import open_tracker

    home, command = compute.home, command_for(config)
    with compute.progress() as progress:
        env = compute.env(progress)
        for warning in (env.crowding(), env.emulation(config.precision)):
            if warning:
                progress.noted(warning)
        with (
            open_tracker(wandb, home, progress.noted, progress.warned) as tracked,
            tracked.open(run_info(config, home, command), config) as journal,
        ):
            store = Store(home, replace(env, progress=WandbProgress(progress, journal)))
            report = run_pipeline(config, store)
            recorded = RunRecords(home).save(
                command=command,
                config=config,
                report=report,
                artifacts=store.keys(),
                computed=store.computed(),
            )
            facts = {"key": report.key, "command": command, "seconds": report.seconds}
            journal.end("complete", summary_of(quantities(report), reported(report), **facts))
            values = flat(config)
            output(
                as_json,
                report,
                lambda: run_tables.print_report(report, values, command, recorded.computed),
            )


@click.command()
@OVERRIDES
@JSON
@computing
def plan(overrides: tuple[str, ...], as_json: bool, compute: Compute) -> None:
    """List the stages that `moist run` would compute or reuse.

    Nothing is computed.

    \b
    moist plan temperature=2
    """
    config = parse(overrides)
    check_read(overrides)
    from moist.pipeline import stages

    with compute.plan() as store:
        stages(config, store)
    records = [call.record() for call in store.calls]
    output(as_json, records, lambda: run_tables.print_plan(store.calls))


@click.command()
@OVERRIDES
@click.option("--keys", is_flag=True, help="List every key with its default, values and meaning.")
@JSON
def config(overrides: tuple[str, ...], keys: bool, as_json: bool) -> None:
    """Print the resolved config, or describe its keys.

    The config is printed in the form that @FILE reads.

    \b
    moist config k=4 > four.yaml && moist run @four.yaml
    moist config --keys
    """
    if keys:
        described = [{"key": name, **spec} for name, spec in schema.keys().items()]
        if as_json:
            print_json(described)
            return
        rows = [
            [row["key"], str(row["default"]), schema.bounds(row), row.get("description", "")]
            for row in described
        ]
        terminal.print_table("", ["key", "default", "values", "meaning"], rows)
        return
    values = flat(parse(overrides))
    if as_json:
        print_json([values])
        return
    click.echo(yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=inf), nl=False)
