"""A cascade, around any system: images that its model is uncertain of are deferred."""

from __future__ import annotations

from dataclasses import replace

from moist.config import Config
from moist.stages.distill import distill_fallback
from moist.stages.threshold import choose_threshold
from moist.systems.bound import Bound
from moist.systems.outputs import Models


def build(call: Bound, config: Config, models: Models) -> Models:
    """Choose the threshold below which a fallback, or the mixture's second expert, answers."""
    c, fallback = config, None
    if c.cascade.fallback == "teacher":
        fallback = models.teacher
    elif c.cascade.fallback != "none":
        fallback = call(
            distill_fallback, logits=models.logits, arch=c.cascade.fallback, distill=c.distill,
            temperature=c.temperature,
        )  # fmt: skip
    cascade = call(
        choose_threshold, first=models.model, fallback=fallback,
        share=c.mixture.second if fallback is None else c.cascade.defer,
    )  # fmt: skip
    return replace(models, model=cascade, beside={**models.beside, "first": models.model})
