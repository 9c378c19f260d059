"""`moist report`: a study or a run as one HTML page."""

from __future__ import annotations

from pathlib import Path

import click

from moist.api.runs import study_or_run
from moist.cli import completion
from moist.cli.options import HOME, PATH, STORAGE, study_ref
from moist.study.ref import StudyRef


@click.command()
@click.argument("name", metavar="STUDY|RUN", shell_complete=completion.runs_or_studies)
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
def report(name: str, path: Path, storage: str | None, home: Path) -> None:
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
    one = study_or_run(study_ref(name, storage, home))
    if isinstance(one, StudyRef):
        plot_study(path, one)
    else:
        save_run(path, one, home)
    click.echo(f"report: {path} ({path.stat().st_size / 1000:.0f} kB)", err=True)
