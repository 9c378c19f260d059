"""Cluster the classes by the teacher's logits. C classes, V views, N images."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from moist.config import ClusterConfig
from moist.env import Env
from moist.errors import ConfigError, StageError
from moist.stages import stage
from moist.store.artifacts import Clusters, Dataset, Logits

Matrix = NDArray[np.float64]


@stage(version=1)
def cluster_classes(
    env: Env,
    *,
    data: Dataset,
    logits: Logits,
    k: int | Literal["auto"],
    cluster: ClusterConfig,
    seed: int,
) -> Clusters:
    """Group the classes into k clusters; `k=auto` takes the k with the best silhouette.

    It leaves out each k for which there are not so many clusters.

    `random` gives clusters of the sizes that k-means found, k=auto included, to shuffled classes:
    a control for whether the teacher's grouping matters.
    """
    mean_CC = class_means(logits, data.train.labels_N, len(data.classes))
    affinity_CC = confusion(logits, data.train.labels_N, len(data.classes))
    tried = range(2, len(data.classes)) if k == "auto" else [k]
    if not tried:
        raise ConfigError(
            f"k=auto needs at least 3 classes; `{data.name}` has {len(data.classes)}",
            "set k=1 or k=2",
        )
    method = "kmeans" if cluster.method == "random" else cluster.method
    found = {n: partition(mean_CC, affinity_CC, n, method=method, seed=seed) for n in tried}
    found = {n: of_class for n, of_class in found.items() if max(of_class) + 1 == n}
    if not found:
        raise StageError(
            f"`cluster.method={cluster.method}` finds fewer than {tried[0]} clusters: the teacher"
            " gives several classes the same logits",
            "train the teacher longer, or with another `teacher.lr`",
        )
    if missing := [n for n in tried if n not in found]:
        env.progress.warned(
            f"`k=auto` leaves out k={', '.join(map(str, missing))}: the teacher gives several"
            " classes the same logits"
        )
    scores = {n: silhouette(mean_CC, of_class) for n, of_class in found.items()}
    best = max(found, key=lambda n: (scores[n], -n))
    if cluster.method == "random":
        found[best] = partition(mean_CC, affinity_CC, best, method="random", seed=seed)
        scores = {best: silhouette(mean_CC, found[best])}
    return Clusters(found[best], {str(n): score for n, score in scores.items()})


def class_means(logits: Logits, labels_N: torch.Tensor, classes: int) -> Matrix:
    """Average the logits of the training images of each class, over all views: (C, C)."""
    return _per_class(logits.train_VNC.double().mean(0), labels_N, classes)


def confusion(logits: Logits, labels_N: torch.Tensor, classes: int) -> Matrix:
    """Return the teacher's soft confusion (C, C): its probability of one class given another."""
    rows_CC = _per_class(logits.train_VNC.double().softmax(2).mean(0), labels_N, classes)
    return (rows_CC + rows_CC.T) / 2


def _per_class(values_NC: torch.Tensor, labels_N: torch.Tensor, classes: int) -> Matrix:
    total = torch.zeros(classes, values_NC.shape[1], dtype=torch.float64)
    total.index_add_(0, labels_N, values_NC)
    mean: Matrix = (total / torch.bincount(labels_N, minlength=classes)[:, None]).numpy()
    return mean


def partition(
    mean_CC: Matrix, affinity_CC: Matrix, k: int, *, method: str, seed: int
) -> tuple[int, ...]:
    """Find the cluster of each class, by the chosen method."""
    if k in (1, len(mean_CC)):
        return tuple(range(len(mean_CC))) if k > 1 else (0,) * len(mean_CC)
    from sklearn.cluster import KMeans, SpectralClustering
    from sklearn.exceptions import ConvergenceWarning

    if method == "spectral":
        spectral = SpectralClustering(k, affinity="precomputed", random_state=seed)
        return relabelled(spectral.fit_predict(affinity_CC).tolist())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer clusters: the caller counts
        labels = KMeans(k, n_init=10, random_state=seed).fit_predict(mean_CC)
    if method == "random":
        labels = np.random.default_rng(seed).permutation(labels)
    return relabelled(labels.tolist())


def relabelled(labels: Sequence[int]) -> tuple[int, ...]:
    """Renumber the clusters by their smallest class, so that equal partitions are equal."""
    names = {label: number for number, label in enumerate(dict.fromkeys(labels))}
    return tuple(names[label] for label in labels)


def silhouette(mean_CC: Matrix, of_class: tuple[int, ...]) -> float:
    """Return the class means' mean silhouette; 0 where undefined: 1 cluster, or 1 a class."""
    if not 1 < max(of_class) + 1 < len(of_class):
        return 0.0
    from sklearn.metrics import silhouette_score

    return float(silhouette_score(mean_CC, of_class))
