"""Errors, which state what was requested, what was found and what to do."""

from __future__ import annotations

import difflib
import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path

NEAR = 0.75
"""The least similarity, of 1 for the same text, at which a name counts as a misspelling."""


class MoistError(Exception):
    """Base of every error moist raises on purpose; `hint` is printed on a line of its own.

    Neither shows a password.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(masked(message))
        self.hint = masked(hint)

    def __str__(self) -> str:
        message = super().__str__()
        return f"{message}\nhint: {self.hint}" if self.hint else message


class ConfigError(MoistError):
    """A request that is invalid whatever is computed: an unknown key, a bad value, a conflict."""

    exit_code = 2


class DataError(ConfigError):
    """A data set that can't be read as requested."""


def unknown(kind: str, name: str, known: Iterable[str], otherwise: str = "") -> ConfigError:
    """Return the error for a name that does not exist, with the hint of `did_you_mean`."""
    return ConfigError(f"unknown {kind} `{name}`", did_you_mean(name, known, otherwise))


def did_you_mean(name: str, known: Iterable[str], otherwise: str = "") -> str:
    """Return a hint that gives the known names nearest to a misspelled one.

    A name is near if it is similar in its last part, as in `distill.alpha` and `objective/mflops`,
    or as a whole; of equally near ones those with the nearest section. If none is near, the hint
    is `otherwise`, by default a list of all known names.
    """
    names = list(known)
    nearness = {one: _nearness(one, name) for one in names}
    best = max(nearness.values(), default=(0.0, 0.0))
    if best[0] < NEAR:
        return otherwise or f"there are: {', '.join(names) or 'none'}"
    return f"did you mean {' or '.join(f'`{one}`' for one in names if nearness[one] == best)}?"


def _nearness(name: str, other: str) -> tuple[float, float]:
    """Return the similarity of two names, by the last part or the whole, and of their sections."""
    parts = [re.fullmatch(r"(.*?)[./]?([^./]*)", one, re.DOTALL) for one in (name, other)]
    (section, leaf), (other_section, other_leaf) = (part.groups() for part in parts if part)
    nearest = max(_similarity(leaf, other_leaf), _similarity(name, other))
    return nearest, _similarity(section, other_section)


def _similarity(a: str, b: str) -> float:
    return difflib.SequenceMatcher(None, a, b).ratio()


class StageError(MoistError):
    """A stage that could not finish; none of its output was stored."""


class StoreError(MoistError):
    """Files that can't be read or written."""


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or its class if the message is empty.

    Of pydantic's errors, return the first value that is wrong.
    """
    from pydantic import ValidationError

    if isinstance(error, ValidationError):
        wrong = error.errors()
        name = ".".join(map(str, wrong[0]["loc"])) or "all of it"
        what = {"missing": "is missing", "extra_forbidden": "is unknown to this version"}.get(
            wrong[0]["type"], f"can't be `{str(wrong[0]['input'])[:40]}`"
        )
        return f"`{name}` {what}" + (f", and {len(wrong) - 1} more" if wrong[1:] else "")
    return (str(error).splitlines() or [type(error).__name__])[0]


def brief(error: Exception) -> str:
    """Return an error's class and the first line of its message."""
    name, message = type(error).__name__, first_line(error)
    return name if message == name else f"{name}: {message}"


COMMAND = re.compile(r"(^[ \t]*|[`'(]|: )moist (?=[a-z])", re.MULTILINE)
"""The beginning of a command in a text."""


def as_typed(text: str) -> str:
    """Write the commands in a text as this process was started: `uv run moist ...`.

    Only for what is printed: records hold the commands of every machine, as `moist ...`.
    """
    return COMMAND.sub(rf"\1{started_as()} ", text)


def started_as() -> str:
    """Return how this process was started: moist, uv run moist or python -m moist."""
    if "UV_RUN_RECURSION_DEPTH" in os.environ:  # uv sets it for what it runs
        return "uv run moist"
    return "python -m moist" if Path(sys.argv[0]).name == "__main__.py" else "moist"


QUERY = re.compile(r"([?&][^=&\s]*(?:pass|pwd|secret|token)[^=&\s]*=).*", re.I | re.S)
CREDENTIALS = re.compile(r"(?<!sqlite)(?<!sqlite:)(?<!/)(:?//)(.*)@", re.S)
PORT = re.compile(r"(://[^:/@\[]*:)(?!\d+(?:\W|$))(?!\*\*\*@).+", re.S)


def masked(text: str) -> str:
    """Mask the passwords in a text, so that it can be stored and shown.

    They are those in URLs, in particular of this process's command line, of MOIST_STORAGE
    and of MOIST_STORE, and the API key of W&B.
    """
    given = [os.environ.get(name, "") for name in ("MOIST_STORAGE", "MOIST_STORE")]
    given += sys.argv[1:]
    for word in given:
        if masked_word(word) == word:
            continue
        key, _, value = word.partition("=")
        for part in (word, word.removeprefix("@"), value, value.strip()):
            text = text.replace(part, masked_word(part)) if part else text
        if "//" in key:  # the `=` is one of the password
            text = text.replace(key, f"{key.partition('//')[0]}//***")
    if secret := os.environ.get("WANDB_API_KEY"):
        text = text.replace(secret, "***")
    return re.sub(r"[\w+]{0,30}:?//\S*", lambda match: masked_word(match[0]), text)


def masked_word(word: str) -> str:
    """Mask the passwords in a URL, or a word of a command line with one, whatever is in them.

    All between `://USER:` and the last `@` counts as password, and all that follows a parameter
    of such a name.
    """
    return PORT.sub(r"\1***", CREDENTIALS.sub(_hidden, QUERY.sub(r"\1***", word)))


def _hidden(match: re.Match[str]) -> str:
    user, colon, _ = match[2].partition(":")
    if not colon:
        return match[0]
    return f"{match[1]}{user}:***@" if "/" not in user else f"{match[1]}***@"
