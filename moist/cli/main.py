"""The `moist` command group and its entry point. Importing it does not import torch."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import TextIOWrapper, UnsupportedOperation
from typing import NoReturn, TextIO

import click

from moist import config as configs
from moist.cli.bench import bench
from moist.cli.export import export
from moist.cli.pareto import pareto
from moist.cli.report import report
from moist.cli.run import config, plan, run
from moist.cli.runs import curve, diff, predict, runs, show
from moist.cli.store import cache, data, init
from moist.cli.study import best, dashboard, studies, table
from moist.cli.sweep import sweep
from moist.cli.wandb import browse, sync, wandb
from moist.disk import check_text
from moist.errors import ConfigError, MoistError, StoreError, masked
from moist.interrupts import Interrupted, handled
from moist.reporting import terminal
from moist.study.ref import this_command
from moist.tracking.client import is_stopped_by_agent


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="moist")
def cli() -> None:
    """Train, measure and compare mixtures of distilled student experts.

    \b
    moist run                                   train on digits, in about a minute
    moist run k=4 hidden_width=512              change what is trained
    moist run @sweeps/sound.yaml data.name=folder data.root=IMAGES
    moist runs                                  list all runs
    moist sweep optuna sweeps/quickstart.yaml   search hyperparameters

    KEY=VALUE (and @FILE of them) changes a run's result; a --flag never does.
    """


for command in (
    bench, best, browse, cache, config, curve, dashboard, data, diff, export, init, pareto, plan,
    predict, report, run, runs, show, studies, sweep, sync, table, wandb,
):  # fmt: skip
    cli.add_command(command)


def main() -> None:
    """Run the command line; print each error as one message, and exit with its code."""
    sys.stdout, sys.stderr = map(output, (sys.stdout, sys.stderr))
    try:
        check_surroundings()
        with handled():
            code = cli.main(prog_name="moist", standalone_mode=False)
            click.echo(nl=False)  # flush, if there is a standard output
            sys.exit(code)
    except click.NoSuchOption as error:
        terminal.fail(f"{error.format_message()}{flag_hint(error.option_name, sys.argv)}")
        sys.exit(2)
    except click.ClickException as error:
        error.show(file=(shown := io.StringIO()))
        click.echo(masked(shown.getvalue()), err=True, nl=False)
        sys.exit(error.exit_code)
    except MoistError as error:
        terminal.fail(str(error))
        sys.exit(error.exit_code)
    except Interrupted as stopped:
        _stop(stopped)
    except click.Abort as abort:
        if isinstance(abort.__cause__, Interrupted):
            _stop(abort.__cause__)
        terminal.fail("stopped; nothing was changed")  # the answer to a confirmation was no
        sys.exit(1)
    except BrokenPipeError:  # as `| head` leaves behind, which has seen enough
        sys.exit(1)


STDERR = 2
"""The file descriptor of standard error."""


class Output(TextIOWrapper):
    """Standard output or error: what can't be written is discarded, and so is all after it.

    For standard output that is an error, once: its reader lacks data.
    """

    def write(self, text: str) -> int:
        if text != "":  # by which click probes a stream, and ignores what is raised
            with self._discarding():
                super().write(text)
        return len(text)

    def flush(self) -> None:
        with self._discarding():
            super().flush()

    @contextmanager
    def _discarding(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
            if self.fileno() == STDERR:
                return
            if isinstance(error, BrokenPipeError):
                raise
            raise StoreError(
                f"can't write the output: {error.strerror}", "write it to another file or disk"
            ) from error


def output(stream: TextIO) -> TextIO:
    """Return standard output or error as `Output`, of an encoding that may lack some letters."""
    if not isinstance(stream, TextIOWrapper):  # closed
        return stream
    try:
        binary = open(stream.fileno(), "wb", 0 if stream.write_through else -1, closefd=False)
    except UnsupportedOperation:  # it is in the memory of a program that this one runs in
        stream.reconfigure(errors="backslashreplace")
        return stream
    return Output(
        binary,
        stream.encoding,
        "backslashreplace",
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def check_surroundings() -> None:
    """Raise ConfigError for arguments that are no text, and for a deleted working folder."""
    for word in sys.argv[1:]:
        check_text(masked(word))
    try:
        os.getcwd()
    except OSError as error:
        raise ConfigError(
            f"can't use the working folder: {error.strerror}", "`cd` to one that exists"
        ) from None


def _stop(stopped: Interrupted) -> NoReturn:
    """End after a signal, with the command that continues.

    A W&B agent whose sweep stops this run gets no error: it gives up after a few failed runs.
    """
    if is_stopped_by_agent(stopped):
        sys.exit(0)
    again = stopped.again or this_command()
    with suppress(OSError):  # the terminal was closed
        terminal.fail(
            f"{stopped}; finished work and checkpoints are kept, continue with\n  {again}"
        )
    sys.exit(stopped.exit_code)


def flag_hint(option: str, argv: list[str]) -> str:
    """Return the hint for `--k 3`, which is not a flag: results are changed by KEY=VALUE."""
    if option == "--dry-run" and argv[1:2] == ["run"]:
        return "\nhint: `moist plan` lists what a run would compute"
    key = option.lstrip("-").replace("-", "_")
    if key not in configs.flat(configs.Config()):
        return ""
    given = [word for word in argv if word == option or word.startswith(f"{option}=")]
    after = argv[argv.index(given[0]) + 1 :][:1] if given == [option] else []
    after = [word for word in after if not word.startswith("--")]
    value = given[0].partition("=")[2] if given and not after else "".join(after)
    return f"\nhint: write `{key}={value or 'VALUE'}`"
