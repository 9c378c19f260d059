"""`moist table`: a study's trials, averaged over seeds."""

from __future__ import annotations

from pathlib import Path

import click

from moist.cli.options import HOME, JSON, STORAGE, check_together, print_json, study_ref
from moist.errors import ConfigError, did_you_mean
from moist.reporting import study_tables
from moist.results.aggregate import averaged
from moist.results.objectives import TEST


@click.command()
@click.argument("study")
@click.option("--across", metavar="PARAMETER", help="One whose values lie side by side.")
@click.option(
    "--show",
    multiple=True,
    metavar="NAME",
    help="A number of the runs, as mflops or test/accuracy; default: the study's objectives"
    " (with --across the first) and test/accuracy.",
)
@click.option(
    "--over",
    multiple=True,
    default=("seed",),
    show_default="seed",
    metavar="PARAMETER",
    help="What is averaged over.",
)
@click.option(
    "--csv", "as_csv", is_flag=True, help="All complete runs instead, a line each, unrounded."
)
@JSON
@STORAGE
@HOME
def table(
    study: str,
    across: str | None,
    show: tuple[str, ...],
    over: tuple[str, ...],
    as_csv: bool,
    as_json: bool,
    storage: str | None,
    home: Path,
) -> None:
    """All settings that a study tried: mean and deviation over its seeds.

    \b
    moist table distillers
    moist table ones_ablation --across merge.teacher --show accuracy --show test/accuracy
    moist table ones_ablation --show test/gathered --over seed --over merge.teacher
    """
    check_together(apart=[("--csv", "--json"), ("--csv", "--across"), ("--csv", "--show")])
    from moist.study.storage import load

    described, trials = load(study_ref(study, storage, home))
    complete = [trial for trial in trials if trial.state == "complete"]
    if as_csv:
        click.echo(study_tables.as_csv(complete), nl=False)
        return
    named = [one.name for one in described.objectives]
    default = (*(named[:1] if across else named), f"{TEST}accuracy")
    rows = averaged(trials, show or default, over)
    if across is not None and not any(across in row.params for row in rows):
        differ = dict.fromkeys(name for row in rows for name in row.params)
        raise ConfigError(
            f"the settings of `{study}` do not differ in `{across}`",
            did_you_mean(across, differ, f"they differ in: {', '.join(differ) or 'nothing'}"),
        )
    if as_json:
        print_json([row.model_dump(mode="json") for row in rows])
        return
    study_tables.print_averages(study, rows, across)
    count = f"{len(complete)} of {len(trials)} trials complete"
    click.echo(f"{count}; the test split is only reported")
