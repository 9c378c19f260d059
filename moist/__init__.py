"""Train, measure and compare mixtures of distilled student experts (MoIST).

Public names are imported on first use, so that `import moist` and `moist --help` are instant.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

SPINS = 10_000
"""How often a waiting thread looks before it sleeps. OpenMP's default of 300,000 slows all of them
beside other work, and none doubles the time of a single image (`moist bench contention`)."""
if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
    os.environ["GOMP_SPINCOUNT"] = str(SPINS)  # read when torch is imported

if TYPE_CHECKING:
    from moist.api.runs import Result, load, run
    from moist.api.sweeps import sweep
    from moist.errors import ConfigError, DataError, MoistError, StageError, StoreError
    from moist.results.trials import Trial
    from moist.serving.predict import Model, Predictions
    from moist.study.query import Study, best, study

    __version__: str

_MODULES = {
    "api.runs": ("Result", "load", "run"),
    "api.sweeps": ("sweep",),
    "errors": ("ConfigError", "DataError", "MoistError", "StageError", "StoreError"),
    "results.trials": ("Trial",),
    "serving.predict": ("Model", "Predictions"),
    "study.query": ("Study", "best"),
}

__all__ = [
    "ConfigError", "DataError", "Model", "MoistError", "Predictions", "Result", "StageError",
    "StoreError", "Study", "Trial", "__version__", "best", "load", "run", "study", "sweep",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    from importlib import import_module, metadata

    if name == "__version__":
        return metadata.version("moist")
    if name == "study":  # a package that can be called
        return import_module("moist.study")
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f"moist.{module}"), name)
    raise AttributeError(f"module `moist` has no `{name}`; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return __all__
