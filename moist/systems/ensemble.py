"""An ensemble: k students distilled side by side, whose probabilities are averaged."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from moist.config import Config
from moist.config.systems import known_students
from moist.nets.ensemble import views_of
from moist.stages.distill import distill_ensemble
from moist.systems.bound import Bound
from moist.systems.outputs import Models
from moist.systems.student import sizes


def architecture(config: Config) -> dict[str, Any]:
    """Describe how its students see an image."""
    return {"views": config.ensemble.views}


def build(call: Bound, config: Config, models: Models) -> Models:
    """Distill k students, each from weights of its own."""
    c, k = config, known_students(config)
    members = call(
        distill_ensemble, logits=models.logits, k=k, views=views_of(c.ensemble.views, k or 1),
        distill=c.distill, temperature=c.temperature, **sizes(c),
    )  # fmt: skip
    return replace(models, model=members)
