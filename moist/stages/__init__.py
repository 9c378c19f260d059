"""The stages of the method: plain functions `(env, *, inputs) -> artifact`, one a file.

`env`, left of the star, is where a stage computes; everything right of it enters the stage's key,
so that a stage can't depend on anything that is not in its key.
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
