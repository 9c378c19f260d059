"""`moist runs`, `show`, `curve` and `predict`: runs that are on record, and their models."""

from __future__ import annotations

from pathlib import Path

import click

from moist.cli.options import HOME, JSON, Compute, check_together, print_json
from moist.errors import ConfigError
from moist.reporting import run_tables
from moist.reporting.terminal import SHORT
from moist.results.frames import curve_frame

CSV = click.option("--csv", "as_csv", is_flag=True, help="Print unrounded values as CSV.")


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
    from moist.store.runs import RunRecords, frame

    found = RunRecords(home).all()
    if as_json:
        print_json([run.record() for run in found])
    elif as_csv:
        click.echo(frame(found).to_csv(index=False), nl=False)
    else:
        run_tables.print_runs(found)


@click.command()
@click.argument("run")
@JSON
@HOME
def show(run: str, as_json: bool, home: Path) -> None:
    """Print a run's report. RUN is a key, a unique prefix of one, or `last`.

    \b
    moist show last
    """
    from moist.store.runs import RunRecords

    found = RunRecords(home).find(run)
    if as_json:
        print_json([found.record()])
    else:
        run_tables.print_report(found.report, found.config, found.command)


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
    from moist.store.runs import RunRecords

    found = RunRecords(home).find(run)
    if found.report.deferral is None:
        raise ConfigError(
            f"run `{found.key[:SHORT]}` defers no images",
            "train one with `cascade.fallback=teacher` or `mixture.top=2`",
        )
    if as_json:
        print_json([point.model_dump() for point in found.report.deferral.curve])
    elif as_csv:
        frame = curve_frame(found.report.deferral.curve)
        click.echo(frame.to_csv(index=False), nl=False)
    else:
        run_tables.print_curve(found.report.deferral)


@click.command()
@click.argument("run")
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@JSON
@HOME
def predict(run: str, images: tuple[Path, ...], as_json: bool, home: Path) -> None:
    """Classify images with a run's model.

    Prints class, probability, the expert that was used, and whether the image was deferred.

    \b
    moist predict last photo.jpg
    """
    from moist.serving.predict import predict_images
    from moist.store.runs import RunRecords

    with Compute(home, quiet=True).store() as store:
        predictions = predict_images(store, RunRecords(home).find(run), images)
    if as_json:
        print_json(predictions)
    else:
        run_tables.print_predictions(predictions)
