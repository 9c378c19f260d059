"""OneS: the students of a MoIST mixture gathered into one, which is then refined."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from moist.config import Config
from moist.stages.gather import gather_students
from moist.stages.integrate import integrate
from moist.stages.logits import mixture_logits
from moist.store.artifacts import Logits
from moist.store.calls import Ref
from moist.systems.bound import Bound
from moist.systems.moist import build as build_mixture
from moist.systems.outputs import Models


def architecture(config: Config) -> dict[str, Any]:
    """Describe it as the single student that it becomes."""
    return {"system": "student"}


def build(call: Bound, config: Config, models: Models) -> Models:
    """Train a mixture, gather its students into one, and distill that one again."""
    c, mixed = config, build_mixture(call, config, models)
    gathered = call(
        gather_students, mixture=mixed.model, ancestor=models.student, merge=c.merge.gathering
    )
    refined = call(
        integrate, student=gathered, taught=teachers(call, c, mixed), views=c.distill.views,
        merge=c.merge, temperature=c.temperature,
    )  # fmt: skip
    return replace(mixed, model=refined, beside={"mixture": mixed.model, "gathered": gathered})


def teachers(call: Bound, config: Config, mixed: Models) -> tuple[Ref[Logits], ...]:
    """Return the logits that the gathered student is distilled from, by `merge.teacher`."""
    c, found = config, []
    if c.merge.teacher in {"mixture", "hard", "both"}:
        temperature = None if c.merge.teacher == "hard" else c.temperature
        found.append(
            call(
                mixture_logits, mixture=mixed.model, views=c.distill.views, temperature=temperature
            )
        )
    if c.merge.teacher in {"teacher", "both"}:
        found.append(mixed.logits)
    return tuple(found)
