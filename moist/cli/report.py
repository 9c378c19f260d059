"""`moist report`: a study or a run as one HTML page."""

from __future__ import annotations

from pathlib import Path

import click

from moist.cli.options import HOME, PATH, STORAGE, study_ref
from moist.errors import ConfigError
from moist.store.runs import RunRecords
from moist.study.storage import NoStudy, existing


@click.command()
@click.argument("study_or_run", metavar="STUDY|RUN")
@click.option(
    "--output",
    "-o",
    "path",
    type=PATH,
    default=Path("report.html"),
    show_default="report.html",
    metavar="FILE.html",
    help="The page to write.",
)
@STORAGE
@HOME
def report(study_or_run: str, path: Path, storage: str | None, home: Path) -> None:
    """Write the report of a study or a run as one HTML page.

    The page needs no network: send it to whoever wants to see it. Of a study it has the verdict,
    the frontier with a slider for the budget, the search, and the model at the knee; of a run, its
    learning curves, confusions, example images and stages. RUN is a key, a unique prefix of one,
    or `last`.

    \b
    moist report quickstart
    moist report last -o model.html
    """
    from moist.reporting.plots import check_page_path, plot_study, save_run

    check_page_path(path)
    ref = study_ref(study_or_run, storage, home)
    try:
        existing(ref)
    except NoStudy as no_study:
        try:
            run = RunRecords(home).find(study_or_run)
        except ConfigError as no_run:
            raise ConfigError(
                f"`{study_or_run}` is neither a study nor a run: {no_study.args[0]};"
                f" {no_run.args[0]}",
                no_study.hint or no_run.hint,
            ) from None
        save_run(path, run, home)
    else:
        plot_study(path, ref)
    click.echo(f"report: {path} ({path.stat().st_size / 1000:.0f} kB)", err=True)
