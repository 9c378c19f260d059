"""The systems: each has a file that describes its architecture and calls its training stages.

`moist.config.systems` describes them to code that must not import torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from moist.config import Config
from moist.nets.build import Architecture
from moist.systems import ensemble, moist, ones, specialists, student
from moist.systems.bound import Bound
from moist.systems.outputs import Models


@dataclass(frozen=True)
class Builder:
    """A system's own part of an architecture, and its own stages."""

    architecture: Callable[[Config], dict[str, Any]]
    build: Callable[[Bound, Config, Models], Models]


BUILDERS: dict[str, Builder] = {
    "moist": Builder(moist.architecture, moist.build),
    "ones": Builder(ones.architecture, ones.build),
    "ensemble": Builder(ensemble.architecture, ensemble.build),
    "student": Builder(student.architecture, student.build),
    "specialists": Builder(student.architecture, specialists.build),
}


def architecture(config: Config) -> Architecture:
    """Describe what decides the cost of a config's model: all but its training."""
    shared = {
        "system": config.system,
        "latent": student.latent_form(config),
        "teacher": config.teacher.arch,
        "top": config.mixture.top,
        "fallback": config.cascade.fallback,
        **student.sizes(config),
    }
    return Architecture(**{**shared, **BUILDERS[config.system].architecture(config)})
