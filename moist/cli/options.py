"""What the commands share: options, the store they open, JSON. Imports torch only when called."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from moist.errors import ConfigError
from moist.reporting import terminal
from moist.tracking.mode import FLAGS

if TYPE_CHECKING:
    from moist.store.store import Store
    from moist.study.ref import StudyRef

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
STORAGE = click.option(
    "--storage",
    metavar="URL",
    envvar="MOIST_STORAGE",
    help="Database of the study, as postgresql://...; default: HOME/studies.db (SQLite).",
)
JSON = click.option("--json", "as_json", is_flag=True, help="Print data as JSON, unrounded.")
OVERRIDES = click.argument("overrides", nargs=-1, metavar="[KEY=VALUE | @FILE]...")
QUIET = click.option("--quiet", "-q", is_flag=True, help="No progress on stderr.")
THREADS = click.option("--threads", type=click.IntRange(1), help="CPU threads to compute with.")
EACH_THREADS = click.option(
    "--threads",
    type=click.IntRange(1),
    help="CPU threads of each worker; default: OMP_NUM_THREADS, or the cores, shared out.",
)
DEVICE = click.option("--device", help="cpu, cuda, cuda:1, ...; default: cuda if there is one.")


WANDB = click.option(
    "--wandb",
    type=click.Choice(FLAGS),
    default="auto",
    show_default=True,
    help="Tell W&B: its server, or files under HOME/wandb; auto: WANDB_MODE, or what can be.",
)


def computing(command: Command) -> Command:
    """The options of a command that computes."""
    return HOME(DEVICE(THREADS(QUIET(command))))


@contextmanager
def opened(
    home: Path, quiet: bool = False, threads: int | None = None, device: str | None = None
) -> Iterator[Store]:
    """A store whose stages compute as the options say, and tell the terminal."""
    from moist.env import make_env
    from moist.store.store import Store

    watcher = terminal.Watcher(quiet)
    try:
        yield Store(home, make_env(watcher, device, threads))
    finally:
        watcher.close()


def study_ref(name: str, storage: str | None, home: Path) -> StudyRef:
    """Find a study as the options of the command that runs say. Raises ConfigError."""
    from moist.study.ref import StudyRef, url_of

    given = {} if click.get_current_context(silent=True) is None else _given()
    values = {"--home": str(home), "--storage": storage or ""}
    options = {option: value for option, value in values.items() if option in given}
    return StudyRef(name, url_of(storage, home), home, options)


def check_together(
    apart: Sequence[Sequence[str]] = (), needed: Mapping[str, Sequence[str]] | None = None
) -> None:
    """Refuse options of the command line that would silently be ignored.

    Of each group in `apart` only one may be given; each option in `needed` needs one of others.
    Raises ConfigError.
    """
    given = _given()
    for group in apart:
        if len(both := [option for option in group if option in given]) > 1:
            raise ConfigError(f"{_named(both, 'and')} don't go together", "give one of them")
    for option, others in (needed or {}).items():
        if option in given and not given.intersection(others):
            raise ConfigError(
                f"`{option}` does nothing without {_named(others, 'or')}", "give both or neither"
            )


def _given() -> set[str]:
    """The options on the command line, each by its first name."""
    context = click.get_current_context()
    return {
        param.opts[0]
        for param in context.command.params
        if context.get_parameter_source(param.name or "") is ParameterSource.COMMANDLINE
    }


def _named(options: Sequence[str], word: str) -> str:
    return f" {word} ".join(f"`{option}`" for option in options)


def print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2, allow_nan=False))
