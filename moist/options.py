"""What the commands share: options, the store they open, JSON. Imports torch only when called."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from moist import terminal

if TYPE_CHECKING:
    from moist.store import Store

Command = Callable[..., Any]

HOME = click.option(
    "--home",
    type=click.Path(path_type=Path, file_okay=False),
    envvar="MOIST_HOME",
    default=Path("~/.moist"),
    show_default="~/.moist",
    callback=lambda _context, _option, home: home.expanduser(),
    help="Where models, data and run records are kept (also MOIST_HOME).",
)
JSON = click.option("--json", "as_json", is_flag=True, help="Print data as JSON, unrounded.")
OVERRIDES = click.argument("overrides", nargs=-1, metavar="[KEY=VALUE | @FILE]...")
QUIET = click.option("--quiet", "-q", is_flag=True, help="No progress on stderr.")
THREADS = click.option("--threads", type=click.IntRange(1), help="CPU threads to compute with.")
DEVICE = click.option("--device", help="cpu, cuda, cuda:1, ...; default: cuda if there is one.")


def computing(command: Command) -> Command:
    """The options of a command that computes."""
    return HOME(DEVICE(THREADS(QUIET(command))))


@contextmanager
def opened(
    home: Path, quiet: bool = False, threads: int | None = None, device: str | None = None
) -> Iterator[Store]:
    """A store whose stages compute as the options say, and tell the terminal."""
    from moist.env import make_env
    from moist.store import Store

    watcher = terminal.Watcher(quiet)
    try:
        yield Store(home, make_env(watcher, device, threads))
    finally:
        watcher.close()


def print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2, allow_nan=False))
