"""A cascade, around any system: images that its model is uncertain of are deferred."""

from __future__ import annotations

from dataclasses import replace

from moist.config import Config
from moist.stages.distill import distill_fallback
from moist.stages.threshold import choose_threshold
from moist.store.artifacts import Student
from moist.store.calls import Ref
from moist.systems.bound import Bound
from moist.systems.outputs import Models


def build(call: Bound, config: Config, models: Models) -> Models:
    """Choose the threshold below which a fallback, or the mixture's second expert, answers."""
    c, fallback = config, models.fallback
    if fallback is None and c.cascade.fallback == "teacher":
        fallback = models.teacher
    elif fallback is None and c.cascade.fallback != "none":
        fallback = distilled(call, c, models)
    cascade = call(
        choose_threshold, first=models.model, fallback=fallback,
        share=c.mixture.second if fallback is None else c.cascade.defer,
    )  # fmt: skip
    return replace(models, model=cascade, beside={**models.beside, "first": models.model})


def distilled(call: Bound, config: Config, models: Models) -> Ref[Student]:
    """Distill the network that `cascade.fallback` names, on all images."""
    return call(
        distill_fallback, logits=models.logits, arch=config.cascade.fallback,
        distill=config.distill, temperature=config.temperature,
    )  # fmt: skip
