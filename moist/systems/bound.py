"""A store whose calls share inputs."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from moist.store.calls import Backend, Ref

T = TypeVar("T")


class Bound:
    """A store with inputs that many stages take: each gets those that its signature names."""

    def __init__(self, store: Backend, **shared: Any) -> None:
        self.store, self.shared = store, shared

    def __call__(self, stage: Callable[..., T], **inputs: Any) -> Ref[T]:
        """Call a stage with the shared inputs that it takes, and with its own."""
        takes = inspect.signature(stage).parameters
        shared = {name: value for name, value in self.shared.items() if name in takes}
        return self.store.call(stage, **{**shared, **inputs})
