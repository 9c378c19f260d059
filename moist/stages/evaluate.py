"""Accuracy, calibration, routing and cost of one model. N images, C classes, E experts."""

from __future__ import annotations

from dataclasses import replace

import torch

from moist.artifacts import Clusters, Dataset, Mixture, Network, Router, Spec
from moist.env import Env
from moist.measure import (
    accuracy,
    calibration_error,
    class_means,
    classify,
    cost,
    negative_log_likelihood,
)
from moist.mixture import module
from moist.report import Evaluation, Routing
from moist.stages import stage


@stage(version=1)
def evaluate(
    env: Env, *, data: Dataset, model: Network | Mixture, oracle: bool, precision: str
) -> Evaluation:
    """The model on the test split, and on the validation split if there is one.

    `oracle` puts a router that is told the class before a mixture's students: an upper bound.
    """
    if oracle and isinstance(model, Mixture):
        model = with_oracle(model)
    net = module(model, env.device)
    logits_NC, gate_NE = classify(env, net, data.test, data, precision)
    labels_N = data.test.labels_N
    hit_N = logits_NC.argmax(1) == labels_N
    val = classify(env, net, data.val, data, precision)[0] if len(data.val) else None
    return Evaluation(
        accuracy=accuracy(logits_NC, labels_N),
        val_accuracy=None if val is None else accuracy(val, data.val.labels_N),
        loss=negative_log_likelihood(logits_NC, labels_N),
        ece=calibration_error(logits_NC.softmax(1), labels_N),
        per_class=dict(
            zip(data.classes, class_means(hit_N, labels_N, len(data.classes)), strict=True)
        ),
        n=len(data.test),
        n_val=len(data.val),
        cost=cost(net, data.image_shape),
        routing=routing(data, model.clusters, gate_NE, hit_N)
        if isinstance(model, Mixture) and gate_NE is not None
        else None,
    )


def with_oracle(mixture: Mixture) -> Mixture:
    """The same students behind a router that is told the class."""
    spec = mixture.router.spec
    oracle = Router(Spec("oracle", spec.image_shape, spec.outputs, {}), {}, ())
    return replace(mixture, router=oracle)


def routing(
    data: Dataset, clusters: Clusters, gate_NE: torch.Tensor, hit_N: torch.Tensor
) -> Routing:
    """Where the test images went, and how well each cluster fared."""
    labels_N, expert_N = data.test.labels_N, gate_NE.argmax(1)
    cluster_N = torch.tensor(clusters.of_class)[labels_N]
    right_N = expert_N == cluster_N
    sent_CE = torch.zeros(len(data.classes), clusters.k, dtype=torch.int64)
    sent_CE.index_put_((labels_N, expert_N), torch.ones_like(labels_N), accumulate=True)
    return Routing(
        accuracy=float(right_N.double().mean()),
        per_cluster=tuple(class_means(right_N, cluster_N, clusters.k)),
        cluster_accuracy=tuple(class_means(hit_N, cluster_N, clusters.k)),
        sent={name: tuple(sent_CE[c].tolist()) for c, name in enumerate(data.classes)},
    )
