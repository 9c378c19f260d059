"""What moist claims of its own speed, measured: ratios of interleaved runs, never single times."""

from __future__ import annotations

import statistics
import time
from typing import Any

from moist.config import Config
from moist.errors import ConfigError
from moist.pipeline import teach
from moist.stages.distill import distill_student
from moist.store.store import Store
from moist.systems.bound import Bound
from moist.systems.shared import prepared


def distillation_cost(config: Config, store: Store, *, rounds: int, epochs: int) -> dict[str, Any]:
    """How much dearer an epoch of distillation is than the same student's on labels alone.

    Both run in turn, `rounds` times, from the stored data and teacher's logits. The logits are
    computed once for all students of a teacher; `ratio_with_logits` is what the first student
    pays, were it the only one, over the epochs of `config`.
    """
    c = config
    if c.distill.loss == "moe_kd":
        raise ConfigError(
            "`moist bench distill` compares losses on the teacher's logits, which"
            " `distill.loss=moe_kd` needs more than",
            "use kd, dkd or dist",
        )
    inputs: dict[str, Any] = {"augment": c.augment, "precision": c.precision, "seed": c.seed}
    data, weights = prepared(c, store)
    _, logits = teach(Bound(store, data=data, **inputs), c, weights)
    taken: dict[str, list[float]] = {"distilled": [], "on labels": []}
    for _ in range(rounds):
        for name, alpha in (("distilled", c.distill.alpha), ("on labels", 0.0)):
            distill = c.distill.model_copy(update={"alpha": alpha, "epochs": epochs})
            begin = time.perf_counter()
            distill_student(
                store.env, data=data.value, logits=logits.value, levels=None,
                student=c.student, hidden_width=c.hidden_width, distill=distill,
                temperature=c.temperature, **inputs,
            )  # fmt: skip
            taken[name].append((time.perf_counter() - begin) / epochs)
    ratios = [a / b for a, b in zip(*taken.values(), strict=True)]
    median = {name: statistics.median(seconds) for name, seconds in taken.items()}
    first = next(call.seconds for call in store.calls if call.key == logits.key) or 0.0
    whole = median["on labels"] * c.distill.epochs
    return {
        "ratio": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
        "n": rounds,
        "epochs_each": epochs,
        "seconds_per_epoch_distilled": median["distilled"],
        "seconds_per_epoch_on_labels": median["on labels"],
        "teacher_logits_seconds": first,
        "ratio_with_logits": (median["distilled"] * c.distill.epochs + first) / whole,
        "machine": store.env.machine().model_dump(),
    }
