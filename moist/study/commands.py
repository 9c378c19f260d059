"""Commands that are printed, to be typed again: they find the study that this one found."""

from __future__ import annotations

import shlex

import click
from click.core import ParameterSource

from moist.study.database import masked

WHERE = ("home", "storage")
"""Options that say where a study is."""


def placed(command: str, storage: bool = True) -> str:
    """A command with the `--home` and `--storage` of this one, unless it has its own.

    Only those given on the command line: what an environment variable says, it will say again.
    Passwords are masked; `storage` is False for a command that asks no study. Outside of a
    command of moist it is the command itself.
    """
    words = shlex.split(command)
    for option, value in _given().items():
        if option == "--storage" and not storage:
            continue
        if not any(word == option or word.startswith(f"{option}=") for word in words):
            command += f" {option} {shlex.quote(masked(value))}"
    return command


def _given() -> dict[str, str]:
    """Where the command that runs was told to look."""
    context = click.get_current_context(silent=True)
    if context is None:
        return {}
    return {
        f"--{name}": str(context.params[name])
        for name in WHERE
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE
    }
