"""The router, pretrained to tell the clusters apart."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from moist.artifacts import Clusters, Dataset, Router, Spec
from moist.config import Augment, Routing
from moist.env import Env
from moist.fit import fit, passes, seeded
from moist.mixture import fresh, module
from moist.routers import router_options
from moist.stages import stage


@stage(version=1)
def pretrain_router(
    env: Env,
    *,
    data: Dataset,
    clusters: Clusters,
    router: str,
    routing: Routing,
    augment: Augment,
    precision: str,
    seed: int,
) -> Router:
    """A router trained on the cluster of each image's label; the oracle has nothing to learn.

    Cross-entropy on logits: the paper's code feeds it probabilities, which caps confidence.
    """
    spec = Spec(router, data.image_shape, clusters.k, router_options(router, routing))
    with seeded(seed, "router"):
        start = fresh(Router, spec)
    if not start.state:
        return start
    net = module(start, env.device)
    cluster_C = torch.tensor(clusters.of_class, device=env.device)
    history = fit(
        env,
        net,
        passes(env, data, augment, routing.batch_size, seed),
        lambda batch: F.cross_entropy(net(batch.images_BCHW).float(), cluster_C[batch.labels_B]),
        images=len(data.train),
        training=routing,
        precision=precision,
        seed=seed,
    )
    return Router(spec, net.state_dict(), history)
