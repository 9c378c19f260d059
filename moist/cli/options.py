"""Options and output that commands share. Imports torch only when a store is opened."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource
from pydantic import BaseModel

from moist.api.compute import Compute
from moist.cli import completion
from moist.disk import HOME as DEFAULT_HOME
from moist.disk import expanded, store_url
from moist.errors import ConfigError, masked_word
from moist.study.ref import StudyRef, database_of, storage_shown
from moist.tracking.mode import FLAGS

if TYPE_CHECKING:
    import pandas as pd

    from moist.results.trials import Trial
    from moist.store.runs import Run


Command = Callable[..., Any]
Decorator = Callable[[Command], Command]


class ExpandedPath(click.Path):
    """A path on the command line, whose `~` is expanded wherever the shell does not."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Path:
        """Return the path. Raises ConfigError if it can't be expanded."""
        option = f"{param.opts[0]} " if isinstance(param, click.Option) else ""
        path = expanded(Path(value), option)
        super().convert(path, param, ctx)
        return path


PATH = ExpandedPath(path_type=Path)
HOME = click.option(
    "--home",
    type=ExpandedPath(path_type=Path, file_okay=False),
    envvar="MOIST_HOME",
    default=Path(DEFAULT_HOME),
    show_default=DEFAULT_HOME,
    help="Folder of models, data and run records (also MOIST_HOME).",
)
STORAGE = click.option(
    "--storage",
    metavar="URL",
    envvar="MOIST_STORAGE",
    help="Database of studies, e.g. postgresql://...; default: HOME/studies.db (SQLite).",
)
STORE = click.option(
    "--store",
    metavar="URL",
    envvar="MOIST_STORE",
    help="Store shared with other machines: a folder, s3://... or gs://... (also MOIST_STORE).",
)
JSON = click.option("--json", "as_json", is_flag=True, help="Print unrounded values as JSON.")
CSV = click.option("--csv", "as_csv", is_flag=True, help="Print unrounded values as CSV.")
FILE = click.argument("file", type=PATH, shell_complete=completion.files)
OVERRIDES = click.argument(
    "overrides",
    nargs=-1,
    metavar="[KEY=VALUE | @FILE]...",
    shell_complete=completion.overrides,
)
QUIET = click.option("--quiet", "-q", is_flag=True, help="Print no progress, only warnings.")
THREADS = click.option("--threads", type=click.IntRange(1), help="Number of CPU threads.")
WORKERS = click.option(
    "--workers", default=1, show_default=True, type=click.IntRange(1), help="Trials in parallel."
)
EACH_THREADS = click.option(
    "--threads",
    type=click.IntRange(1),
    help="CPU threads of each worker; default: OMP_NUM_THREADS, or an equal share of the cores.",
)
DEVICE = click.option("--device", help="cpu, cuda, cuda:1, ...; default: cuda if available.")
WANDB = click.option(
    "--wandb",
    type=click.Choice(FLAGS),
    default="auto",
    show_default=True,
    help="Log to W&B: to its server, or to files in HOME/wandb; auto: as WANDB_MODE says, else"
    " online if the server can be reached.",
)


def computing(command: Command) -> Command:
    """Add the options of `Compute` to a command, which gets them as its argument `compute`."""

    @wraps(command)
    def wrapped(
        *,
        home: Path,
        device: str | None,
        threads: int | None,
        quiet: bool,
        store: str | None = None,
        **others: Any,
    ) -> None:
        command(compute=Compute(home, device, threads, quiet, store_url(store)), **others)

    return HOME(DEVICE(THREADS(QUIET(wrapped))))


def of_study(command: Command) -> Command:
    """Add STUDY, --storage and --home to a command, which gets them as its argument `ref`."""

    @wraps(command)
    def wrapped(*, study: str, storage: str | None, home: Path, **others: Any) -> None:
        command(ref=study_ref(study, storage, home), **others)

    decorated: Command = click.argument("study", shell_complete=completion.studies)(
        STORAGE(HOME(wrapped))
    )
    return decorated


def study_ref(name: str, storage: str | None, home: Path, store: str | None = None) -> StudyRef:
    """Refer to a study as the running command's options say. Raises ConfigError.

    The options are for printed commands, so their paths are absolute.
    """
    given = {} if click.get_current_context(silent=True) is None else _given()
    database = database_of(storage, home)
    if isinstance(database, Path):
        shown = masked_word(f"sqlite:///{database.absolute()}")
    else:
        shown = storage_shown(storage or "")
    values = {"--home": str(home.absolute()), "--storage": shown}
    options = {option: value for option, value in values.items() if option in given}
    return StudyRef(name, database, home, options, store_url(store))


def check_together(
    apart: Sequence[Sequence[str]] = (), needed: Mapping[str, Sequence[str]] | None = None
) -> None:
    """Raise ConfigError for command-line options that would silently be ignored.

    Of each group in `apart` at most one may be given; each option in `needed` needs one of others.
    """
    given = _given()
    for group in apart:
        if len(both := [option for option in group if option in given]) > 1:
            raise ConfigError(f"{_named(both, 'and')} can't be combined", "give one of them")
    for option, others in (needed or {}).items():
        if option in given and not given.intersection(others):
            raise ConfigError(
                f"`{option}` does nothing without {_named(others, 'or')}", "give both or neither"
            )


def _given() -> set[str]:
    """Return the options given on the command line, each by its first name."""
    context = click.get_current_context()
    return {
        param.opts[0]
        for param in context.command.params
        if context.get_parameter_source(param.name or "") is ParameterSource.COMMANDLINE
    }


def _named(options: Sequence[str], word: str) -> str:
    return f" {word} ".join(f"`{option}`" for option in options)


def output(as_json: bool, data: Any, print_text: Callable[[], object]) -> None:
    """Print data as JSON, or call `print_text`."""
    if as_json:
        print_json(data)
    else:
        print_text()


def print_json(value: Any) -> None:
    """Print values, records and dataclasses as JSON."""
    click.echo(json.dumps(value, indent=2, allow_nan=False, default=_as_dict))


def run_json(run: Run | None, trial: Trial | None = None) -> dict[str, Any]:
    """Return what `run`, `show` and `best` print of a run with `--json`: its record.

    Of a study's trial it has the `trial`, too, and without a record only its key and command.
    """
    found = run.record() if run else {}
    if trial:
        found = {"key": trial.key, "command": trial.command, **found, "trial": trial}
    return found


def _as_dict(value: Any) -> dict[str, Any]:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    return asdict(value)


def print_csv(frame: pd.DataFrame) -> None:
    click.echo(frame.to_csv(index=False), nl=False)
