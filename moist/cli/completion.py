"""What the shell completes: keys and values of KEY=VALUE, studies, runs and sweep files.

Activated in bash by `eval "$(_MOIST_COMPLETE=bash_source moist)"`; zsh and fish likewise. Each
press of the key starts moist anew, so studies are read by SQL, without Optuna.
"""

from __future__ import annotations

import os
import re
import sqlite3
from collections.abc import Iterable
from contextlib import closing, suppress
from pathlib import Path

import click
from click.shell_completion import BashComplete, CompletionItem, ZshComplete, split_arg_string

from moist.disk import home_of
from moist.store.keys import SHORT

KINDS = {"text", "integer", "number"}
"""What `schema.bounds` says of a key that takes any text or number."""


class Bash(BashComplete):
    """Completion in bash, which replaces only what follows the last `=` or `:` of a word."""

    source_template = BashComplete.source_template.replace(
        'COMP_WORDS="${COMP_WORDS[*]}" COMP_CWORD=$COMP_CWORD',
        'COMP_LINE="${COMP_LINE:0:COMP_POINT}"',
    ).replace("    return 0\n", "    [[ $COMPREPLY == *= ]] && compopt -o nospace\n    return 0\n")
    replaced = ""

    def get_completion_args(self) -> tuple[list[str], str]:
        """Return the words before the cursor, and the begun one."""
        line = os.environ["COMP_LINE"]
        words = [*split_arg_string(line), *([""] if line[-1:].isspace() else [])]
        self.replaced = words[-1][: max(map(words[-1].rfind, "=:")) + 1]
        return words[1:-1], words[-1]

    def format_completion(self, item: CompletionItem[str]) -> str:
        """Write what bash is to insert."""
        return f"{item.type},{item.value.removeprefix(self.replaced)}"


class Zsh(ZshComplete):
    """Completion in zsh, without a space after `KEY=` and `FOLDER/`, where the word goes on."""

    source_template = ZshComplete.source_template.replace(
        "compadd -U -V unsorted -a completions",
        "local -a end\n"
        "        [[ $completions == *[=/] ]] && end=(-S '')\n"
        '        compadd -U -V unsorted "$end[@]" -a completions',
    )


def overrides(_: click.Context, __: click.Parameter, begun: str) -> list[CompletionItem[str]]:
    """Complete KEY=, KEY=VALUE and @FILE."""
    from moist.config.schema import bounds, is_location, keys

    key, equals, value = begun.partition("=")
    if begun.startswith("@"):
        return [CompletionItem(f"@{name}") for name in _files(begun[1:])]
    if not equals:
        return [CompletionItem(f"{one}=") for one in keys() if one.startswith(begun)]
    if key not in keys():
        return []
    found: Iterable[str] = bounds(keys()[key]).split(" | ")
    found = [one for one in found if re.fullmatch(r"[\w.-]+", one) and one not in KINDS]
    if is_location(key) or key == "teacher.weights":
        found = [*found, *_below(value)]
    return [CompletionItem(f"{key}={one}") for one in found if one.startswith(value)]


def files(_: click.Context, __: click.Parameter, begun: str) -> list[CompletionItem[str]]:
    """Complete a sweep file: one that comes with moist by its name, others by their path."""
    return [CompletionItem(name) for name in _files(begun)]


def studies(context: click.Context, _: click.Parameter, begun: str) -> list[CompletionItem[str]]:
    """Complete the name of a study in the home's database, or in the one given."""
    home = home_of(context.params.get("home"))
    url = context.params.get("storage") or os.environ.get("MOIST_STORAGE")
    path = Path(url.removeprefix("sqlite:///")) if url else home / "studies.db"
    names: list[str] = []
    if path.is_file():
        with (
            suppress(sqlite3.Error),
            closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as database,
        ):
            names = [name for (name,) in database.execute("SELECT study_name FROM studies")]
    return [CompletionItem(name) for name in sorted(names) if name.startswith(begun)]


def runs(context: click.Context, _: click.Parameter, begun: str) -> list[CompletionItem[str]]:
    """Complete the key of a run, shortened as it is printed."""
    folder = home_of(context.params.get("home")) / "runs"
    keys = ["last", *sorted(path.stem[:SHORT] for path in folder.glob("[!.]*.json"))]
    return [CompletionItem(key) for key in keys if key.startswith(begun)]


def runs_or_studies(
    context: click.Context, param: click.Parameter, begun: str
) -> list[CompletionItem[str]]:
    """Complete the key of a run or the name of a study."""
    return studies(context, param, begun) + runs(context, param, begun)


def _files(begun: str) -> list[str]:
    from moist.config.files import packaged

    own = [path for path in _below(begun) if path.endswith((".yaml", ".yml", "/"))]
    return [*own, *(name for name in packaged() if name.startswith(begun))]


def _below(begun: str) -> list[str]:
    """List the paths that begin so, folders with a slash."""
    folder, name = os.path.split(begun)
    found = (
        Path(folder).expanduser().glob(f"{name}*")
        if Path(folder or ".").expanduser().is_dir()
        else []
    )
    return [
        os.path.join(folder, path.name) + ("/" if path.is_dir() else "")
        for path in sorted(found)
        if name.startswith(".") or not path.name.startswith(".")
    ]
