"""Choices of different sections that cannot be combined, found before anything is computed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from moist.config.systems import SYSTEMS

if TYPE_CHECKING:
    from moist.config.choices import Choices


def find_conflicts(c: Choices) -> Iterator[str]:
    """Yield an error message for each conflict; it names both keys and what to set instead."""
    yield from SYSTEMS[c.system].conflicts(c)
    if c.distill.loss == "moe_kd":
        yield from _latent_teacher(c)
    fewest = 2 if c.k == "auto" else c.k
    if c.joint.objective == "noisy_topk" and c.joint.top > fewest:
        yield (
            f"`joint.top={c.joint.top}` trains more students at a time than `k={c.k}`"
            f" {'may give' if c.k == 'auto' else 'gives'}; raise k or lower `joint.top`"
        )
    yield from _deferral(c)
    if c.latency.runtime == "onnxruntime" and c.router == "oracle" and SYSTEMS[c.system].routes:
        yield (
            "`router=oracle` routes by the label, which an exported model is not given; with"
            " `latency.runtime=onnxruntime` choose another router"
        )


def _latent_teacher(c: Choices) -> Iterator[str]:
    if c.distill.warmup:
        yield "`distill.warmup` is for soft losses; `distill.loss=moe_kd` has none: set it to 0"
    if c.cascade.fallback not in {"none", "teacher"}:
        yield (
            f"`cascade.fallback={c.cascade.fallback}` is distilled as the student is, and"
            " `distill.loss=moe_kd` is for the student alone; use kd, dkd or dist"
        )


def _deferral(c: Choices) -> Iterator[str]:
    top, fallback = c.mixture.top == 2, c.cascade.fallback != "none"
    if top and not SYSTEMS[c.system].routes:
        yield f"`mixture.top=2` runs a second expert, and `system={c.system}` has no router"
    if top and c.k == 1:
        yield "`mixture.top=2` runs a second expert, and `k=1` has only one"
    if top and fallback:
        yield "choose `mixture.top=2` or `cascade.fallback`: a cascade has one threshold"
    if (top or fallback) and not c.data.val_fraction:
        key = "mixture.top" if top else "cascade.fallback"
        yield (
            f"the threshold of `{key}` is chosen on validation images, and"
            " `data.val_fraction=0` leaves none; set `data.val_fraction=0.1`"
        )
