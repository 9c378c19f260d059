"""`moist runs`, `show`, `curve` and `predict`: runs that are on record, and their models."""

from __future__ import annotations

from pathlib import Path

import click

from moist.api.runs import load
from moist.cli.options import (
    CSV,
    HOME,
    JSON,
    PATH,
    check_together,
    output,
    print_csv,
)
from moist.errors import ConfigError
from moist.reporting import run_tables
from moist.reporting.terminal import SHORT
from moist.results.frames import curve_frame
from moist.store.runs import RunRecords, frame


@click.command()
@CSV
@JSON
@HOME
def runs(as_csv: bool, as_json: bool, home: Path) -> None:
    """List all runs, newest first.

    \b
    moist runs --json
    moist runs --csv > runs.csv
    """
    check_together(apart=[("--csv", "--json")])
    found = RunRecords(home).all()
    if as_csv:
        print_csv(frame(found))
    else:
        records = [run.record() for run in found]
        output(as_json, records, lambda: run_tables.print_runs(found))
        if not found and not as_json:
            click.echo(f"no runs in `{home}` yet; `moist run` makes one", err=True)


@click.command()
@click.argument("run")
@JSON
@HOME
def show(run: str, as_json: bool, home: Path) -> None:
    """Print a run's report. RUN is a key, a unique prefix of one, or `last`.

    \b
    moist show last
    """
    found = RunRecords(home).find(run)
    report, config, command = found.report, found.config, found.command
    output(
        as_json,
        [found.record()],
        lambda: run_tables.print_report(report, config, command, found.computed),
    )


@click.command()
@click.argument("run")
@CSV
@JSON
@HOME
def curve(run: str, as_csv: bool, as_json: bool, home: Path) -> None:
    """Print a run's accuracy and cost by deferral threshold.

    Nothing is trained: the run's record has the curve. Choose a threshold by the validation
    columns, then set `cascade.defer` (or `mixture.second`) to its deferral rate.

    \b
    moist curve last
    moist curve last --csv > curve.csv
    """
    check_together(apart=[("--csv", "--json")])
    found = RunRecords(home).find(run)
    deferral = found.report.deferral
    if deferral is None:
        raise ConfigError(
            f"run `{found.key[:SHORT]}` defers no images",
            "train one with `cascade.fallback=teacher` or `mixture.top=2`",
        )
    if as_csv:
        print_csv(curve_frame(deferral.curve))
    else:
        output(as_json, deferral.curve, lambda: run_tables.print_curve(deferral))


@click.command()
@click.argument("run")
@click.argument("images", nargs=-1, required=True, type=PATH)
@JSON
@HOME
def predict(run: str, images: tuple[Path, ...], as_json: bool, home: Path) -> None:
    """Classify images with a run's model.

    Prints class, probability, the expert that was used, and whether the image was deferred.

    \b
    moist predict last photo.jpg
    """
    predictions = load(run, home=home).records(images)
    output(as_json, predictions, lambda: run_tables.print_predictions(predictions))
