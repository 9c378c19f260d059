"""`moist data`, `cache` and `rm`: data sets, stage outputs, runs and studies on disk."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from moist.api.compute import Compute
from moist.cli import completion
from moist.cli.options import (
    HOME,
    JSON,
    OVERRIDES,
    PATH,
    QUIET,
    STORAGE,
    output,
    print_json,
    study_ref,
)
from moist.config.overrides import parse
from moist.disk import write_atomically, writing
from moist.errors import ConfigError, DataError, as_typed
from moist.reporting import run_tables, study_tables, terminal
from moist.store import maintenance
from moist.store.keys import SHORT
from moist.store.objects import ObjectStore


@click.group()
def data() -> None:
    """Check and prepare data sets.

    \b
    moist data check IMAGES
    moist data prepare cifar10
    """


@data.command("check")
@click.argument("root", type=PATH)
@JSON
@HOME
def check_data(root: Path, as_json: bool, home: Path) -> None:
    """List everything that is wrong with a folder of images.

    Reads and decodes each image once, and changes nothing. ROOT has a folder a class, or `train`,
    `test` and `val` with these. Exits 1 if a run on the folder is impossible.

    \b
    moist data check IMAGES
    moist data check IMAGES --json
    """
    from moist.data.survey import survey

    found = survey(root, home)
    output(as_json, found, lambda: run_tables.print_survey(found))
    if not found.possible:
        raise click.exceptions.Exit(1)


@data.command("prepare")
@click.argument("name")
@OVERRIDES
@JSON
@QUIET
@HOME
def prepare_data(
    name: str, overrides: tuple[str, ...], as_json: bool, quiet: bool, home: Path
) -> None:
    """Download, check and decode a data set.

    This is done once; runs then memory-map the result.

    \b
    moist data prepare cifar10
    moist data prepare folder data.root=IMAGES data.image_size=32
    """
    config = parse([f"data.name={name}", *overrides])
    from moist.data.sources import locate
    from moist.stages.prepare import prepare

    with Compute(home, quiet=quiet).store() as store:
        source = locate(config.data, home)
        for warning in source.warnings:
            store.env.progress.warned(warning)
        found = store.call(prepare, source=source, val_fraction=config.data.val_fraction)
        splits = {split: len(getattr(found.value, split)) for split in ("train", "val", "test")}
        shape = "x".join(map(str, found.value.image_shape))
    described = {"name": name, "shape": shape, **splits, "classes": list(source.classes)}
    if as_json:
        print_json([{**described, "key": found.key}])
        return
    for label, value in described.items():
        click.echo(f"{label}: {', '.join(value) if isinstance(value, list) else value}")


@click.command()
@click.argument("root", type=PATH)
@click.option("-o", "--output", "file", type=PATH, help="File to write; default: ROOT's name.")
@HOME
def init(root: Path, file: Path | None, home: Path) -> None:
    """Write a sweep file that is fitted to a folder of images.

    Its comments say why each value was chosen. ROOT is laid out as for `moist data check`.

    \b
    moist init IMAGES
    moist init IMAGES -o mine.yaml
    """
    from moist.data.survey import survey
    from moist.env import Env
    from moist.study.starter import file_of, sweep_text

    file = file or file_of(root)
    if file.exists():
        raise ConfigError(f"`{file}` exists already", "give another name: `-o FILE`")
    found = survey(root, home)
    shown = shlex.quote(str(root))
    if not found.possible:
        run_tables.print_survey(found)
        raise DataError(
            f"`{root}` can't be trained on as it is; `{file}` was not written",
            f"correct what is listed above, then repeat `moist init {shown}`",
        )
    text = sweep_text(found, Env())
    with writing(file.parent):
        write_atomically(file, text.encode())
    click.echo(found.summary)
    if any(one.severity == "warning" for one in found.findings):
        click.echo(as_typed(f"what may be wrong with the images: moist data check {shown}"))
    click.echo(f"wrote `{file}`; its comments say what it searches, and why. Start with")
    click.echo(as_typed(f"  moist sweep optuna {shlex.quote(str(file))}"))


@click.group()
def cache() -> None:
    """List, verify and delete stored stage outputs.

    \b
    moist cache ls
    moist cache gc --max-bytes 5GB
    """


@cache.command("ls")
@JSON
@HOME
def list_entries(as_json: bool, home: Path) -> None:
    """List stored stage outputs, most recently used first.

    \b
    moist cache ls --json
    """
    found = sorted(
        maintenance.entries(ObjectStore(home)), key=lambda entry: entry.last_used, reverse=True
    )
    if as_json:
        print_json(found)
        return
    rows = [
        [
            entry.key[:SHORT],
            entry.stage,
            terminal.size(entry.bytes),
            terminal.duration(entry.seconds),
            entry.last_used[:16].replace("T", " "),
        ]
        for entry in found
    ]
    heads = ["key", "stage", "size", "time to compute", "last used (UTC)"]
    terminal.print_table("", heads, rows)
    size = terminal.size(sum(entry.bytes for entry in found))
    click.echo(f"{terminal.counted(len(found), 'entry', 'entries')}, {size}")


@cache.command()
@JSON
@HOME
def verify(as_json: bool, home: Path) -> None:
    """Verify the checksums of all stored outputs.

    Damaged outputs are moved aside and recomputed when needed.

    \b
    moist cache verify
    """
    objects = ObjectStore(home)
    problems = maintenance.verify(objects)
    if as_json:
        print_json([{"key": key, "problem": problem} for key, problem in problems])
    else:
        for key, problem in problems:
            click.echo(f"{key[:SHORT]}: {problem}")
        click.echo(f"{len(maintenance.entries(objects))} intact, {len(problems)} damaged")
    if problems:
        raise click.exceptions.Exit(1)


@cache.command()
@click.option("--max-bytes", default="10GB", show_default=True, help="Maximum size to keep.")
@HOME
def gc(max_bytes: str, home: Path) -> None:
    """Delete the least recently used outputs.

    Also deletes leftovers of killed runs.

    \b
    moist cache gc --max-bytes 500MB
    """
    freed = maintenance.gc(ObjectStore(home), terminal.parse_size(max_bytes))
    click.echo(f"freed {terminal.size(freed)}")


@cache.command()
@click.option("--stage", help="Only outputs of this stage.")
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@HOME
def clear(stage: str | None, yes: bool, home: Path) -> None:
    """Delete stored stage outputs.

    Run records are kept.

    \b
    moist cache clear --stage teacher_logits --yes
    """
    stages = sorted({entry.stage for entry in maintenance.entries(ObjectStore(home))})
    if stage is not None and stage not in stages:
        raise ConfigError(
            f"no output of a stage `{stage}` is stored",
            f"stages with stored outputs: {', '.join(stages) or 'none'}",
        )
    if not yes:
        click.confirm("Delete stored stage outputs? They can be recomputed.", abort=True)
    click.echo(f"freed {terminal.size(maintenance.clear(ObjectStore(home), stage))}")


@click.command()
@click.argument(
    "words",
    nargs=-1,
    required=True,
    metavar="RUN|STUDY...",
    shell_complete=completion.runs_or_studies,
)
@click.option("--dry-run", is_flag=True, help="Say what would be removed, and remove nothing.")
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@JSON
@STORAGE
@HOME
def rm(
    words: tuple[str, ...],
    dry_run: bool,
    yes: bool,
    as_json: bool,
    storage: str | None,
    home: Path,
) -> None:
    """Remove runs, or studies with their trials.

    Removes the records, what was stored for these runs and is used by no other, and a study's
    logs, plot and runs under new seeds. A study's runs that were there before it are kept, and so
    is what was logged to W&B. RUN is a key, a unique prefix of one, or `last`.

    \b
    moist rm last
    moist rm quickstart --dry-run
    moist rm quickstart --yes
    """
    from moist.study.removal import plan_removal, remove

    planned = plan_removal(words, study_ref("", storage, home))
    data = planned.record()
    output(as_json, data, lambda: study_tables.print_removal(planned))
    if dry_run:
        return
    if not yes:
        click.confirm("Remove this?", abort=True, err=True)
    remove(planned, home)
    click.echo(f"removed; {terminal.size(data['bytes'])} freed", err=True)
