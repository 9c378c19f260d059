"""The time of distillation against training on labels: ratios of interleaved runs."""

from __future__ import annotations

import time
from statistics import median
from typing import Any

from moist.bench.rows import Row, row
from moist.config import Config
from moist.errors import ConfigError
from moist.pipeline import teach
from moist.stages.distill import distill_student
from moist.store.store import Store
from moist.systems.bound import Bound
from moist.systems.shared import prepared


def distillation_cost(config: Config, store: Store, *, rounds: int, epochs: int) -> list[Row]:
    """Measure how many times longer an epoch of distillation takes than one on labels alone.

    Both train the same student in turn, `rounds` times, from the stored data and teacher's logits.
    The logits are computed once for all students of a teacher; `ratio_with_logits` is the ratio
    over the epochs of `config` if there is only one student. Raises ConfigError for
    `distill.loss=moe_kd`.
    """
    if config.distill.loss == "moe_kd":
        raise ConfigError(
            "`moist bench distill` compares losses on the teacher's logits alone, but"
            " `distill.loss=moe_kd` needs its hidden features",
            "use kd, dkd or dist",
        )
    inputs: dict[str, Any] = {
        "augment": config.augment,
        "precision": config.precision,
        "seed": config.seed,
    }
    data, weights = prepared(config, store)
    _, logits = teach(Bound(store, data=data, **inputs), config, weights)
    seconds_each: dict[str, list[float]] = {"distilled": [], "on labels": []}
    for _ in range(rounds):
        for name, alpha in (("distilled", config.distill.alpha), ("on labels", 0.0)):
            distill = config.distill.model_copy(update={"alpha": alpha, "epochs": epochs})
            begin = time.perf_counter()
            distill_student(
                store.env, data=data.value, logits=logits.value, levels=None,
                student=config.student, hidden_width=config.hidden_width, distill=distill,
                temperature=config.temperature, **inputs,
            )  # fmt: skip
            seconds_each[name].append((time.perf_counter() - begin) / epochs)
    first = next(call.seconds for call in store.calls if call.key == logits.key) or 0.0
    distilled, labels = ([1e3 * one for one in seconds] for seconds in seconds_each.values())
    whole = median(labels) * config.distill.epochs
    return [
        row(
            "distill", "an epoch of distillation", "an epoch on labels", distilled, labels,
            epochs_each=epochs, teacher_logits_seconds=first,
            ratio_with_logits=(median(distilled) * config.distill.epochs + 1e3 * first) / whole,
        )
    ]  # fmt: skip
