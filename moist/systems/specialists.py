"""Specialists: the student sends each image that it defers to one of k larger networks.

Its own probabilities of the classes, summed over each cluster, choose which: there is no router,
and an easy image costs the student alone.
"""

from __future__ import annotations

from dataclasses import replace

from moist.config import Config
from moist.stages.cluster import cluster_classes
from moist.stages.logits import student_logits
from moist.stages.specialists import train_specialists
from moist.systems import cascade
from moist.systems.bound import Bound
from moist.systems.outputs import Models


def build(call: Bound, config: Config, models: Models) -> Models:
    """Distill a generalist, and train copies of it on what the student would defer to each."""
    c = config
    clusters = call(cluster_classes, logits=models.logits, k=c.k, cluster=c.cluster)
    deferring = call(student_logits, student=models.student, views=c.distill.views)
    trained = call(
        train_specialists, student=models.student, deferring=deferring,
        generalist=cascade.distilled(call, c, models), clusters=clusters, logits=models.logits,
        specialists=c.specialists, distill=c.distill, temperature=c.temperature,
    )  # fmt: skip
    return replace(models, clusters=clusters, fallback=trained)
