"""`moist predict`: classes of new images."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import click

from moist.api.runs import load
from moist.cli import completion
from moist.cli.options import (
    CSV,
    DEVICE,
    HOME,
    JSON,
    PATH,
    STORAGE,
    check_together,
    output,
    print_csv,
)
from moist.disk import warn
from moist.errors import DataError
from moist.reporting import run_tables
from moist.reporting.terminal import counted, duration


@click.command()
@click.argument("model", metavar="RUN|STUDY|FILE", shell_complete=completion.runs_or_studies)
@click.argument("images", nargs=-1, required=True, type=PATH, metavar="IMAGE|FOLDER|-...")
@click.option(
    "--top", default=1, show_default=True, type=click.IntRange(1), metavar="N",
    help="The N most probable classes of each image.",
)  # fmt: skip
@CSV
@JSON
@DEVICE
@STORAGE
@HOME
def predict(
    model: str,
    images: tuple[Path, ...],
    top: int,
    as_csv: bool,
    as_json: bool,
    device: str | None,
    storage: str | None,
    home: Path,
) -> None:
    """Classify images with a model.

    Prints class, probability, the expert that was used, and whether the image was deferred. The
    model is a run's, the best of a study, or a file that `moist export` wrote (torch reads `.pt2`
    with pickle: give only files that you trust). Of a folder all images are classified, also those
    in folders below; `-` reads paths from standard input, one a line. A file that is no image is
    named and left out, and the exit code is 1.

    \b
    moist predict last photo.jpg
    moist predict quickstart photos --top 3
    moist predict model.onnx photos --csv > classes.csv
    """
    check_together(apart=[("--csv", "--json")])
    loaded = load(model, home=home, storage=storage, device=device)
    unread: list[DataError] = []

    def report(error: DataError) -> None:
        unread.append(error)
        warn(error.args[0])

    start = time.perf_counter()
    found = list(loaded.records(listed(images), top, report))
    seconds = time.perf_counter() - start
    if not found and unread:
        raise unread[0]
    if as_csv:
        import pandas as pd

        print_csv(pd.DataFrame(found))
    else:
        output(as_json, found, partial(run_tables.print_predictions, found))
    count = counted(len(found), "image")
    each = f": {1000 * seconds / len(found):.3g} ms an image, with reading it" if found else ""
    click.echo(f"{count} in {duration(seconds)}{each}", err=True)
    if unread:
        raise click.exceptions.Exit(1)


def listed(paths: tuple[Path, ...]) -> Iterator[Path]:
    """List images: files as given, all in a folder, and those named on standard input for `-`.

    Raises DataError for a folder without images.
    """
    from moist.data.sources import images_in

    for path in paths:
        if path == Path("-"):
            yield from (Path(line) for line in map(str.strip, sys.stdin) if line)
        elif path.is_dir():
            inside = [Path(entry.path) for entry in images_in(path)]
            if not inside:
                raise DataError(
                    f"there are no images in `{path}`", "name a folder with images, or files"
                )
            yield from inside
        else:
            yield path
