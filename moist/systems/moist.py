"""MoIST: the student k times, each on the classes of one cluster, behind a router."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from moist.config import Config
from moist.nets.routers import ROUTERS
from moist.stages.cluster import cluster_classes
from moist.stages.joint import OBJECTIVES, train_jointly
from moist.stages.route import pretrain_router
from moist.systems.bound import Bound
from moist.systems.outputs import Models


def architecture(config: Config) -> dict[str, Any]:
    """Describe the router, and how students answer behind it."""
    return {
        "router": config.router,
        "options": tuple(ROUTERS[config.router].options(config.routing).items()),
        "masked": config.joint.mask_students,
        "gated": OBJECTIVES[config.joint.objective].gated,
    }


def build(call: Bound, config: Config, models: Models) -> Models:
    """Cluster the classes, pretrain a router to them, and train it and the students together."""
    c, taught = config, OBJECTIVES[config.joint.objective].taught(config.joint)
    clusters = call(cluster_classes, logits=models.logits, k=c.k, cluster=c.cluster)
    router = call(
        pretrain_router, clusters=clusters, router=c.router, routing=c.routing,
        student=models.student if ROUTERS[c.router].reads_trunk else None,
    )  # fmt: skip
    mixture = call(
        train_jointly, clusters=clusters, router=router, student=models.student, joint=c.joint,
        logits=models.logits if taught else None, temperature=c.temperature if taught else None,
    )  # fmt: skip
    return replace(models, model=mixture, clusters=clusters)
