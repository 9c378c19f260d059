"""The `moist` command group and its entry point. Importing it does not import torch."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from io import TextIOWrapper, UnsupportedOperation
from typing import NoReturn, TextIO

import click

from moist.disk import check_text
from moist.errors import ConfigError, MoistError, StoreError, as_typed, masked
from moist.interrupts import Interrupted, handled

COMMANDS = {
    "bench": ("bench", "Measure moist's own speed, overheads and savings."),
    "best": ("study", "Print the best trial within all limits."),
    "browse": ("wandb", "View logged runs in this terminal."),
    "cache": ("store", "List, verify and delete stored stage outputs."),
    "config": ("run", "Print the resolved config, or describe its keys."),
    "curve": ("runs", "Print a run's accuracy and cost by deferral threshold."),
    "dashboard": ("study", "Serve a study in optuna-dashboard."),
    "data": ("store", "Check and prepare data sets."),
    "diff": ("runs", "Print in which parameters, figures and stages two runs differ."),
    "export": ("export", "Export a run's model as one file, for onnxruntime or torch."),
    "init": ("store", "Write a sweep file that is fitted to a folder of images."),
    "pareto": ("pareto", "Print a study's Pareto frontier."),
    "plan": ("run", "List the stages that `moist run` would compute or reuse."),
    "predict": ("predict", "Classify images with a model."),
    "report": ("report", "Write the report of a study or a run as one HTML page."),
    "rm": ("store", "Remove runs, or studies with their trials."),
    "run": ("run", "Train and measure one model."),
    "runs": ("runs", "List runs, newest first, with the parameters in which they differ."),
    "show": ("runs", "Print a run's report."),
    "studies": ("study", "List all studies of a database, the last changed first."),
    "sweep": ("sweep", "Search the hyperparameters of a sweep file."),
    "sync": ("wandb", "Upload runs that are missing on W&B's server."),
    "table": ("study", "Print a study's results, averaged over seeds."),
    "wandb": ("wandb", "Create views in W&B's dashboard."),
}
"""The module of each command, imported when it is called, and its line in the list of commands."""


class Commands(click.Group):
    """The commands in COMMANDS: a command's start costs its own imports only."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """List the names of all commands."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command; None if there is none of this name."""
        if cmd_name not in COMMANDS:
            return None
        command = getattr(import_module(f"moist.cli.{COMMANDS[cmd_name][0]}"), cmd_name)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands, which imports none of them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
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

    Completion of keys, values, studies and runs, in an environment in which `moist` is found, for
    bash (in ~/.bashrc), zsh or fish:

    \b
    eval "$(_MOIST_COMPLETE=bash_source moist)"
    eval "$(_MOIST_COMPLETE=zsh_source moist)"
    _MOIST_COMPLETE=fish_source moist | source
    """


def main() -> None:
    """Run the command line; print each error as one message, and exit with its code."""
    sys.stdout, sys.stderr = map(output, (sys.stdout, sys.stderr))
    try:
        check_surroundings()
        with handled():
            if "_MOIST_COMPLETE" in os.environ:
                from click.shell_completion import add_completion_class

                from moist.cli.completion import Bash, Zsh

                add_completion_class(Bash)
                add_completion_class(Zsh)
            code = cli.main(prog_name="moist", standalone_mode=False)
            click.echo(nl=False)  # flush, if there is a standard output
            sys.exit(code)
    except click.NoSuchOption as error:
        fail(f"{error.format_message()}{flag_hint(error.option_name, sys.argv)}")
        sys.exit(2)
    except click.ClickException as error:
        error.show(file=(shown := io.StringIO()))
        click.echo(as_typed(masked(shown.getvalue())), err=True, nl=False)
        sys.exit(error.exit_code)
    except MoistError as error:
        fail(str(error))
        sys.exit(error.exit_code)
    except Interrupted as stopped:
        _stop(stopped)
    except click.Abort as abort:
        if isinstance(abort.__cause__, Interrupted):
            _stop(abort.__cause__)
        fail("stopped; nothing was changed")  # the answer to a confirmation was no
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


def fail(message: str) -> None:
    """Print an error on stderr."""
    from moist.reporting.terminal import console

    console(stderr=True).print(f"error: {as_typed(masked(message))}", style="red", soft_wrap=True)


def _stop(stopped: Interrupted) -> NoReturn:
    """End after a signal, with the command that continues.

    A W&B agent whose sweep stops this run gets no error: it gives up after a few failed runs.
    """
    from moist.study.ref import this_command
    from moist.tracking.client import is_stopped_by_agent

    if is_stopped_by_agent(stopped):
        sys.exit(0)
    again = stopped.again or this_command()
    with suppress(OSError):  # the terminal was closed
        fail(f"{stopped}; finished work and checkpoints are kept, continue with\n  {again}")
    sys.exit(stopped.exit_code)


def flag_hint(option: str, argv: list[str]) -> str:
    """Return the hint for `--k 3`, which is not a flag: results are changed by KEY=VALUE."""
    if option == "--dry-run" and argv[1:2] == ["run"]:
        return "\nhint: `moist plan` lists what a run would compute"
    from moist.config import Config, flat

    key = option.lstrip("-").replace("-", "_")
    if key not in flat(Config()):
        return ""
    given = [word for word in argv if word == option or word.startswith(f"{option}=")]
    after = argv[argv.index(given[0]) + 1 :][:1] if given == [option] else []
    after = [word for word in after if not word.startswith("--")]
    value = given[0].partition("=")[2] if given and not after else "".join(after)
    return f"\nhint: write `{key}={value or 'VALUE'}`"
