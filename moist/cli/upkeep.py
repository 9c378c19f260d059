"""What `moist sweep` does for a study that is there: how far it is, failures, what is wrong."""

from __future__ import annotations

from pathlib import Path

import click

from moist.cli.options import HOME, JSON, STORAGE, print_json, study_ref
from moist.reporting import study_tables


@click.command()
@click.argument("study")
@JSON
@STORAGE
@HOME
def status(study: str, as_json: bool, storage: str | None, home: Path) -> None:
    """How far a study is, who drives it, and what failed.

    \b
    moist sweep status quickstart
    """
    from moist.study.leases import holder
    from moist.study.storage import load

    ref = study_ref(study, storage, home)
    described, trials = load(ref)
    who = holder(ref)
    if as_json:
        shown = described.model_dump(mode="json")
        print_json({**shown, "driver": who, "trials": [t.model_dump(mode="json") for t in trials]})
    else:
        study_tables.print_status(ref, described, trials, who)


@click.command()
@click.argument("study")
@click.option("--reason", default="", help="Only trials whose reason holds this text.")
@STORAGE
@HOME
def retry(study: str, reason: str, storage: str | None, home: Path) -> None:
    """Put failed trials in line again, with the same parameters.

    \b
    moist sweep retry quickstart --reason "out of memory"
    """
    from moist.study.ledger import opened
    from moist.study.storage import load

    ref = study_ref(study, storage, home)
    described, _ = load(ref)
    with opened(ref, described) as ledger:
        again = ledger.retry_failed(reason)
    click.echo(f"{len(again)} trials in line again: {', '.join(map(str, again)) or 'none'}")
    if again:
        click.echo(f"run them with\n  {ref.locate(described.command)}")


@click.command()
@click.argument("study")
@click.option("--fix", is_flag=True, help="Put trials in line again that run for nobody.")
@JSON
@STORAGE
@HOME
def doctor(study: str, fix: bool, as_json: bool, storage: str | None, home: Path) -> None:
    """Check a study against its database and its run records; exit code 1 if anything is wrong.

    \b
    moist sweep doctor quickstart --fix
    """
    from moist.study.doctor import examine
    from moist.study.ledger import opened
    from moist.study.storage import load

    ref = study_ref(study, storage, home)
    described, trials = load(ref)
    if fix:
        with opened(ref, described) as ledger:
            ledger.requeue_unfinished()
        _, trials = load(ref)
    found = examine(ref, described, trials)
    if as_json:
        print_json([finding.model_dump(mode="json") for finding in found])
    else:
        for finding in found:
            click.echo(f"{finding.problem}\nhint: {finding.remedy}")
        click.echo(f"{study}: {len(trials)} trials, {len(found)} findings")
    if found:
        raise click.exceptions.Exit(1)
