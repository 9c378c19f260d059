"""`moist data` and `moist cache`: data sets and stage outputs on disk."""

from __future__ import annotations

from pathlib import Path

import click

from moist.cli.options import HOME, JSON, OVERRIDES, QUIET, Compute, print_json
from moist.config.overrides import parse
from moist.errors import ConfigError
from moist.reporting import terminal
from moist.store import maintenance
from moist.store.objects import ObjectStore


@click.group()
def data() -> None:
    """Prepare data sets.

    \b
    moist data prepare cifar10
    """


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
            entry.key[: terminal.SHORT],
            entry.stage,
            terminal.size(entry.bytes),
            terminal.duration(entry.seconds),
            entry.last_used[:16].replace("T", " "),
        ]
        for entry in found
    ]
    heads = ["key", "stage", "size", "time to compute", "last used (UTC)"]
    terminal.print_table("", heads, rows)
    click.echo(f"{len(found)} entries, {terminal.size(sum(entry.bytes for entry in found))}")


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
            click.echo(f"{key[: terminal.SHORT]}: {problem}")
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
