"""Accuracy, calibration, routing and cost of one model. N images, C classes, E experts."""

from __future__ import annotations

from dataclasses import replace

import torch

from moist.env import Env
from moist.measure.accuracy import (
    Answers,
    accuracy,
    calibration_error,
    class_means,
    classify,
    negative_log_likelihood,
)
from moist.measure.multiply_adds import cost
from moist.nets.build import Model, module
from moist.nets.cascade import threshold_for
from moist.results.report import Deferral, Evaluation, OperatingPoint, Routing
from moist.stages import stage
from moist.store.artifacts import Cascade, Clusters, Dataset, Mixture, Router, Spec

SHARES = tuple(i / 20 for i in range(21))
"""Of the validation images, those that are deferred: points of a cascade's curve."""


@stage(version=2)
def evaluate(
    env: Env,
    *,
    data: Dataset,
    model: Model,
    oracle: bool,
    precision: str,
) -> Evaluation:
    """Evaluate the model on the test split, and on the validation split if there is one.

    `oracle` puts a router that reads the class before a mixture's students, or before those that
    images are deferred to: an upper bound.
    """
    if oracle and isinstance(model, Mixture):
        model = with_oracle(model)
    if oracle and isinstance(model, Cascade) and isinstance(model.fallback, Mixture):
        model = replace(model, fallback=with_oracle(model.fallback))
    net = module(model, env.device)
    test = classify(env, net, data.test, data, precision=precision)
    val = classify(env, net, data.val, data, precision=precision) if len(data.val) else None
    test_NC, val_NC, deferral = test.logits_NC, val.logits_NC if val else None, None
    if isinstance(model, Cascade):
        assert val is not None
        deferral = deferral_of(net, model.threshold, data, test=test, val=val)
        test_NC, val_NC = test.at_threshold(model.threshold), val.at_threshold(model.threshold)
    labels_N = data.test.labels_N
    hit_N = test_NC.argmax(1) == labels_N
    return Evaluation(
        accuracy=accuracy(test_NC, labels_N),
        val_accuracy=None if val_NC is None else accuracy(val_NC, data.val.labels_N),
        loss=negative_log_likelihood(test_NC, labels_N),
        ece=calibration_error(test_NC.softmax(1), labels_N),
        per_class=dict(
            zip(data.classes, class_means(hit_N, labels_N, len(data.classes)), strict=True)
        ),
        n=len(data.test),
        n_val=len(data.val),
        cost=cost(net, data.image_shape, deferral.chosen.deferral_rate if deferral else 0.0),
        routing=routed(data, model, test, hit_N),
        deferral=deferral,
    )


def deferral_of(
    net: torch.nn.Module, threshold: float, data: Dataset, *, test: Answers, val: Answers
) -> Deferral:
    """Return the operating points of the chosen threshold and of shares of validation images."""

    def point(threshold: float) -> OperatingPoint:
        rate, val_rate = (
            float(answers.below(threshold).double().mean()) for answers in (test, val)
        )
        return OperatingPoint(
            threshold=threshold,
            deferral_rate=rate,
            val_deferral_rate=val_rate,
            accuracy=accuracy(test.at_threshold(threshold), data.test.labels_N),
            val_accuracy=accuracy(val.at_threshold(threshold), data.val.labels_N),
            mflops=never.mflops + rate * (always.mflops - never.mflops),
            mmacs=never.mmacs + rate * (always.mmacs - never.mmacs),
            val_mflops=never.mflops + val_rate * (always.mflops - never.mflops),
            val_mmacs=never.mmacs + val_rate * (always.mmacs - never.mmacs),
        )

    never, always = (cost(net, data.image_shape, rate) for rate in (0.0, 1.0))
    assert val.certainty_N is not None
    found = {threshold} | {threshold_for(val.certainty_N, share) for share in SHARES}
    return Deferral(chosen=point(threshold), curve=tuple(map(point, sorted(found))))


def with_oracle(mixture: Mixture) -> Mixture:
    """Put the same students behind a router that reads the class."""
    shape, k = mixture.students[0].spec.image_shape, mixture.clusters.k
    oracle = Router(Spec("oracle", shape, k, {}), {}, ())
    return replace(mixture, router=oracle)


def routed(data: Dataset, model: Model, test: Answers, hit_N: torch.Tensor) -> Routing | None:
    """Describe the routing of all test images, or of those deferred to students of a mixture."""
    found = routed_rows(model, test)
    if found is None or test.gate_NE is None or not found[1].any():
        return None
    mixture, rows_N = found
    return routing(data, mixture.clusters, test.gate_NE, hit_N, rows_N)


def routed_rows(model: Model, answers: Answers) -> tuple[Mixture, torch.Tensor] | None:
    """Return the mixture that routes, and whether it routes each image (N,); None without one.

    A cascade that defers to a mixture routes only the images that it defers.
    """
    rows_N = torch.ones(len(answers.logits_NC), dtype=torch.bool)
    if isinstance(model, Cascade) and isinstance(model.fallback, Mixture):
        return model.fallback, answers.below(model.threshold)
    if isinstance(model, Cascade):
        model = model.first
    return (model, rows_N) if isinstance(model, Mixture) else None


def routing(
    data: Dataset,
    clusters: Clusters,
    gate_NE: torch.Tensor,
    hit_N: torch.Tensor,
    rows_N: torch.Tensor,
) -> Routing:
    """Describe where test images went, those of `rows_N`, and the accuracy of each cluster."""
    labels_N, expert_N, hit_N = (
        data.test.labels_N[rows_N],
        gate_NE[rows_N].argmax(1),
        hit_N[rows_N],
    )
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
