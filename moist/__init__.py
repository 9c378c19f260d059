"""Train, measure and compare mixtures of distilled student experts (MoIST).

Public names are imported on first use, so that `import moist` and `moist --help` are instant.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moist.config import Config
    from moist.config.overrides import parse
    from moist.pipeline import run
    from moist.results.report import Report
    from moist.store.store import Store

__all__ = ["Config", "Report", "Store", "parse", "run"]

_MODULES = {
    "Config": "moist.config",
    "Report": "moist.results.report",
    "Store": "moist.store.store",
    "parse": "moist.config.overrides",
    "run": "moist.pipeline",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module `moist` has no `{name}`; it has {', '.join(__all__)}")
    from importlib import import_module

    return getattr(import_module(_MODULES[name]), name)
