"""`moist runs`, `diff`, `show` and `curve`: runs on record."""

from __future__ import annotations

from pathlib import Path

import click

from moist.cli import completion
from moist.cli.options import (
    CSV,
    HOME,
    JSON,
    STORAGE,
    check_together,
    output,
    print_csv,
    run_json,
    study_ref,
)
from moist.errors import ConfigError, as_typed
from moist.reporting import run_tables
from moist.reporting.terminal import counted
from moist.results.frames import curve_frame
from moist.store.comparison import difference, selected
from moist.store.keys import SHORT
from moist.store.runs import RunRecords, frame
from moist.study.storage import load as load_study


@click.command()
@click.option(
    "--study",
    metavar="NAME",
    help="Only the runs of this study's trials.",
    shell_complete=completion.studies,
)
@click.option(
    "--where",
    multiple=True,
    metavar="CONDITION",
    help="Only runs for which `KEY>VALUE` holds, or = != < <= >=; may be repeated.",
)
@click.option(
    "--sort",
    default="",
    metavar="KEY[:max|:min]",
    help="Order; accuracies and times of creation fall, all else rises; default: created.",
)
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Only the first N of these.")
@CSV
@JSON
@STORAGE
@HOME
def runs(
    study: str | None,
    where: tuple[str, ...],
    sort: str,
    limit: int | None,
    as_csv: bool,
    as_json: bool,
    storage: str | None,
    home: Path,
) -> None:
    """List runs, newest first, with the parameters in which they differ.

    A KEY is a column of --csv: a key of the config, as k or distill.alpha, or a number of the
    report, as mflops or latency_ms.batch_1. As there, val_accuracy is that on validation images,
    by which models are compared, and accuracy that on test images.

    \b
    moist runs --limit 10
    moist runs --where 'val_accuracy>0.9' --where router=linear --sort mflops
    moist runs --study quickstart --sort val_accuracy --json
    moist runs --csv > runs.csv
    """
    check_together(apart=[("--csv", "--json")], needed={"--storage": ["--study"]})
    records = RunRecords(home)
    every = records.all()
    found = selected(every, where, sort)
    if study is not None:
        keys = {trial.key for trial in load_study(study_ref(study, storage, home))[1]}
        found = [run for run in found if run.key in keys]
    found = found[:limit]
    if as_csv:
        print_csv(frame(found))
    else:
        data = [run.record() for run in found]
        output(as_json, data, lambda: run_tables.print_runs(found))
        if not found and not as_json:
            none = f"no runs in `{home}` yet; `moist run` makes one"
            if records.damaged:
                none = "no record can be read; `moist rm KEY` removes one"
            if every:
                none = f"none of {counted(len(every), 'run')} meets the conditions"
            click.echo(as_typed(none), err=True)


@click.command()
@click.argument("run", shell_complete=completion.runs)
@click.argument("other", shell_complete=completion.runs)
@JSON
@HOME
def diff(run: str, other: str, as_json: bool, home: Path) -> None:
    """Print in which parameters, figures and stages two runs differ.

    A RUN is a key, a unique prefix of one, or `last`. Figures are those of the records: accuracy
    is that on test images. Stages are shared if both runs used the same stored outputs.

    \b
    moist diff 3254 last
    """
    records = RunRecords(home)
    found = difference(records.find(run), records.find(other))
    output(as_json, found, lambda: run_tables.print_difference(found))


@click.command()
@click.argument("run", shell_complete=completion.runs)
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
        run_json(found),
        lambda: run_tables.print_report(report, config, command, found.computed),
    )


@click.command()
@click.argument("run", shell_complete=completion.runs)
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
