"""Pretrain the router on the clusters."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from moist.config import AugmentConfig, RoutingConfig
from moist.data.augment import Batch
from moist.data.random import seeded
from moist.env import Env
from moist.nets.build import fresh, module, router_spec
from moist.nets.entry import TRUNK
from moist.nets.routers import ROUTERS
from moist.stages import stage
from moist.store.artifacts import Clusters, Dataset, Router, Student
from moist.training.job import Job


@stage(version=2)
def pretrain_router(
    env: Env,
    *,
    data: Dataset,
    clusters: Clusters,
    student: Student | None,
    router: str,
    routing: RoutingConfig,
    augment: AugmentConfig,
    precision: str,
    seed: int,
) -> Router:
    """Train a router on the cluster of each image's label; the oracle has nothing to learn.

    Cross-entropy on logits: the paper's code feeds it probabilities, which caps confidence. Only
    the `shared` router has a `student`: it learns to read that one's trunk, which stays as it is.
    """
    options, reads = ROUTERS[router].options(routing), None if student is None else student.spec
    spec = router_spec(router, options, data.image_shape, clusters.k, reads=reads)
    with seeded(seed, "router"):
        start = fresh(Router, spec)
    if not start.state:
        return start
    net = module(start, env.device)
    cluster_C = torch.tensor(clusters.of_class, device=env.device)
    trunk: torch.nn.Module = torch.nn.Identity()
    if student is not None:
        trunk = module(student, env.device).get_submodule(TRUNK).eval()

    def loss(batch: Batch) -> torch.Tensor:
        with torch.no_grad():
            x_BCHW = trunk(batch.images_BCHW)
        return F.cross_entropy(net(x_BCHW).float(), cluster_C[batch.labels_B])

    job = Job(env, data, augment=augment, precision=precision, seed=seed)
    history = job.fit(net, loss, routing, validate=False)
    return Router(spec, net.state_dict(), history)
