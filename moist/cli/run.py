"""`moist run`, `plan` and `config`: train one model, or list what that would compute."""

from __future__ import annotations

from functools import partial
from math import inf

import click
import yaml

from moist.api.compute import Compute
from moist.api.runs import checked, record
from moist.cli.options import (
    JSON,
    OVERRIDES,
    STORE,
    WANDB,
    computing,
    output,
    print_json,
    run_json,
)
from moist.config import flat, schema
from moist.config.overrides import parse
from moist.config.unread import check_read
from moist.reporting import run_tables, terminal
from moist.store.runs import Run


@click.command()
@OVERRIDES
@JSON
@WANDB
@STORE
@computing
def run(overrides: tuple[str, ...], as_json: bool, wandb: str, compute: Compute) -> None:
    """Train and measure one model.

    Stages whose outputs are stored are reused.

    \b
    moist run
    moist run k=auto router=linear temperature=2
    moist run @sweeps/paper.yaml data.name=folder data.root=IMAGES --json
    moist run --store s3://BUCKET/moist
    """

    def show(run: Run) -> None:
        facts = run.report, run.config, run.command, run.computed
        output(as_json, run_json(run), partial(run_tables.print_report, *facts))

    record(checked(overrides), compute, wandb, show)


@click.command()
@OVERRIDES
@JSON
@STORE
@computing
def plan(overrides: tuple[str, ...], as_json: bool, compute: Compute) -> None:
    """List the stages that `moist run` would compute or reuse.

    Nothing is computed. Times are ranges, from what stages of the same kind took on this machine.

    \b
    moist plan temperature=2
    """
    config = parse(overrides)
    check_read(overrides)
    from moist.measure.stage_times import StageTimes
    from moist.pipeline import stages

    with compute.plan() as store:
        stages(config, store)
    calls = StageTimes(store.env).of(store)
    output(as_json, [call.record() for call in calls], lambda: run_tables.print_plan(calls))


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
    breaks = set("\x85\u2028\u2029")  # unless escaped, YAML folds them as it folds lines
    plain = not any(breaks & set(value) for value in values.values() if isinstance(value, str))
    click.echo(yaml.safe_dump(values, sort_keys=False, allow_unicode=plain, width=inf), nl=False)
