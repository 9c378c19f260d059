"""Choices of different sections that can't be made together: said before anything is computed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from moist.config import Config


def misfits(c: Config) -> Iterator[str]:
    """What is wrong, in words that name both keys and what to set instead."""
    if c.system in {"moist", "ones"}:
        yield from _of_the_oracle(c) if c.router == "oracle" else ()
        yield from _of_a_shared_trunk(c) if c.router == "shared" else ()
    if c.system == "ones":
        yield from _of_merging(c)
    if c.system == "ensemble":
        yield from _of_an_ensemble(c)
    if c.distill.loss == "moe_kd":
        yield from _of_a_latent_teacher(c)
    fewest = 2 if c.k == "auto" else c.k
    if c.joint.objective == "noisy_topk" and c.joint.top > fewest:
        yield (
            f"`joint.top={c.joint.top}` asks more students than `k={c.k}`"
            f" {'may give' if c.k == 'auto' else 'gives'}; raise k or lower `joint.top`"
        )
    yield from _of_doubt(c)


def _of_the_oracle(c: Config) -> Iterator[str]:
    if c.joint.objective in {"em", "switch", "noisy_topk"}:
        yield (
            f"`router=oracle` has no weights for `joint.objective={c.joint.objective}`;"
            " use hierarchical or students_only"
        )
    if c.system == "ones":
        yield "`router=oracle` is told each image's class; `system=ones` needs another router"
    if c.joint.z_loss:
        yield "`router=oracle` has no weights for `joint.z_loss`; set `joint.z_loss=0`"
    if c.mixture.top == 2:
        yield "`router=oracle` is never in doubt; `mixture.top=2` needs another router"


def _of_a_shared_trunk(c: Config) -> Iterator[str]:
    if c.student.arch != "cnn":
        yield (
            "`router=shared` reads the convolutions of the cnn student;"
            f" `student.arch={c.student.arch}` needs another router"
        )
    if c.joint.objective == "students_only":
        yield (
            "`router=shared` reads what `joint.objective=students_only` goes on changing, and is"
            " frozen; use hierarchical, em, switch or noisy_topk"
        )
    if c.system == "ones":
        yield "`system=ones` merges whole students; with `router=shared` they share a trunk"


def _of_merging(c: Config) -> Iterator[str]:
    latent = c.distill.loss == "moe_kd" and c.distill.gate == "student"
    if (c.student.arch != "cnn" or latent) and c.merge.method == "topk":
        yield (
            "`merge.method=topk` pairs the units of the cnn student's layers, which"
            f" `student.arch={c.student.arch}` with `distill.loss={c.distill.loss}` has not;"
            " use average, sum or svd"
        )
    if latent and c.merge.base == "absolute" and c.merge.method in {"sum", "svd"}:
        yield (
            f"`merge.method={c.merge.method}` of whole weights would change the fixed table of a"
            " student of `distill.loss=moe_kd`; set `merge.base=delta`"
        )
    if latent and c.merge.head == "owner":
        yield (
            "`merge.head=owner` takes a class's row of the last linear layer, which"
            " `distill.loss=moe_kd` replaces; set `merge.head=gather`"
        )
    if latent and c.merge.method == "random":
        yield (
            "`merge.method=random` draws weights, and the table in a student of"
            " `distill.loss=moe_kd` is none; use ancestor as the control"
        )
    if c.merge.head == "owner" and c.merge.method in {"random", "ancestor", "best_expert"}:
        yield (
            f"`merge.head=owner` is for gathered weights, and `merge.method={c.merge.method}`"
            " gathers none; set `merge.head=gather`"
        )


def _of_an_ensemble(c: Config) -> Iterator[str]:
    if c.k == "auto":
        yield "`k=auto` counts clusters, and `system=ensemble` has none; set k to a number"
    if c.k == 1 and c.ensemble.views == "filtered":
        yield "`ensemble.views=filtered` tells students apart, and `k=1` has one; raise k"


def _of_a_latent_teacher(c: Config) -> Iterator[str]:
    if c.distill.warmup:
        yield "`distill.warmup` is for soft losses; `distill.loss=moe_kd` has none: set it to 0"
    if c.system == "ensemble":
        yield "`system=ensemble` distils with kd, dkd or dist, not with `distill.loss=moe_kd`"
    if c.cascade.fallback not in {"none", "teacher"}:
        yield (
            f"`cascade.fallback={c.cascade.fallback}` is distilled as the student is, and"
            " `distill.loss=moe_kd` is for the student alone; use kd, dkd or dist"
        )


def _of_doubt(c: Config) -> Iterator[str]:
    top, fallback = c.mixture.top == 2, c.cascade.fallback != "none"
    if top and c.system != "moist":
        yield f"`mixture.top=2` asks a second expert, and `system={c.system}` has no router"
    if top and c.k == 1:
        yield "`mixture.top=2` asks a second expert, and `k=1` has only one"
    if top and fallback:
        yield "choose `mixture.top=2` or `cascade.fallback`: one threshold, one second opinion"
    if (top or fallback) and not c.data.val_fraction:
        key = "mixture.top" if top else "cascade.fallback"
        yield (
            f"the threshold of `{key}` is chosen on validation images, and"
            " `data.val_fraction=0` leaves none; set `data.val_fraction=0.1`"
        )
    if c.system == "student" and c.cascade.fallback == c.student.arch:
        yield (
            f"`cascade.fallback={c.cascade.fallback}` would be the same network as"
            f" `student.arch={c.student.arch}`; choose another"
        )
    if fallback and c.router == "oracle" and c.system == "moist":
        yield "`router=oracle` is told each image's class; `cascade.fallback` needs another router"
