"""The stages of the method: plain functions `(env, *, inputs) -> artifact`, one a file.

Left of the star is where, right of the star is what: everything after it enters the stage's key,
so a stage can't depend on what isn't in its key.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])


def stage(version: int) -> Callable[[F], F]:
    """Mark a function as a stage; bump `version` whenever its maths changes."""

    def mark(function: F) -> F:
        function.version = version  # type: ignore[attr-defined]
        return function

    return mark
