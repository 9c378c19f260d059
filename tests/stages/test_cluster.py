"""Clusters of classes: found where they are obvious, named once, and the same every time."""

from typing import ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moist.config import ClusterConfig
from moist.config.schema import choices
from moist.env import Env, Silent
from moist.errors import ConfigError, StageError
from moist.stages.cluster import (
    class_means,
    cluster_classes,
    confusion,
    partition,
    relabelled,
    silhouette,
)
from moist.store.artifacts import Clusters, Dataset, Logits, Split

ENV = Env()
METHODS = choices(ClusterConfig, "method")
GROUPS = (0, 1, 2, 2, 2, 2, 2, 2, 0, 1)  # as the paper finds them: air and sea, road, animals
PER_CLASS = 3


def dataset(classes: int) -> Dataset:
    n = classes * PER_CLASS
    split = Split(torch.zeros(n, 2, 2, 1, dtype=torch.uint8), torch.arange(n) % classes)
    names = tuple(f"class {c}" for c in range(classes))
    return Dataset("tiny", names, (0.5,), (0.3,), split, split, split)


def taught(groups: tuple[int, ...] = GROUPS, noise: float = 0.3, views: int = 2) -> Logits:
    """Logits of a teacher that confuses the classes of a group with one another."""
    group_C = torch.tensor(groups)
    mean_CC = 4.0 * (group_C[:, None] == group_C) + 3.0 * torch.eye(len(groups))
    mean_NC = mean_CC[torch.arange(len(groups) * PER_CLASS) % len(groups)]
    generator = torch.Generator().manual_seed(0)
    return Logits(
        (mean_NC + noise * torch.randn(views, *mean_NC.shape, generator=generator)).half()
    )


def clusters(
    k: int | str,
    method: str = "kmeans",
    seed: int = 0,
    logits: Logits | None = None,
    env: Env = ENV,
) -> Clusters:
    logits = logits or taught()
    return cluster_classes(
        env,
        data=dataset(logits.train_VNC.shape[2]),
        logits=logits,
        k=k,
        cluster=ClusterConfig(method=method),
        seed=seed,
    )


def sizes(of_class: tuple[int, ...]) -> list[int]:
    return sorted(np.bincount(of_class).tolist())


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("method", ["kmeans", "spectral"])
def test_three_obvious_groups_are_found(method: str, seed: int) -> None:
    assert clusters(3, method, seed).of_class == GROUPS


@pytest.mark.parametrize("method", ["kmeans", "spectral"])
def test_auto_takes_the_obvious_number_of_groups(method: str) -> None:
    found = clusters("auto", method)
    assert found.of_class == GROUPS
    assert list(found.silhouette) == [str(k) for k in range(2, 10)]
    assert max(found.silhouette, key=lambda k: found.silhouette[k]) == "3"


@pytest.mark.parametrize("k", [1, 2, 3, 4, 9, 10, "auto"])
@pytest.mark.parametrize("method", METHODS)
def test_clusters_are_the_same_every_time_and_none_is_empty(method: str, k: int | str) -> None:
    torch.manual_seed(1)
    np.random.seed(1)
    found = clusters(k, method)
    torch.manual_seed(2)
    np.random.seed(2)
    assert clusters(k, method) == found
    assert set(found.of_class) == set(range(found.k))
    assert k in ("auto", found.k)


@pytest.mark.parametrize("method", METHODS)
def test_where_nothing_is_obvious_the_seed_alone_decides(method: str) -> None:
    vague = taught(noise=9.0)
    found = set()
    for elsewhere in range(6):
        np.random.seed(elsewhere)
        found.add(clusters(4, method, seed=1, logits=vague).of_class)
    assert len(found) == 1


@pytest.mark.parametrize("method", METHODS)
def test_clusters_are_numbered_by_their_smallest_class(method: str) -> None:
    for seed in range(5):
        firsts = [clusters(4, method, seed).of_class.index(cluster) for cluster in range(4)]
        assert firsts == sorted(firsts)


@given(st.lists(st.integers(-3, 5), min_size=1, max_size=12))
def test_relabelling_keeps_the_partition_and_names_it_once(labels: list[int]) -> None:
    found = relabelled(labels)
    same = [[a == b for a in labels] for b in labels]
    assert [[a == b for a in found] for b in found] == same
    firsts = [found.index(name) for name in range(max(found) + 1)]
    assert firsts == sorted(firsts)
    assert relabelled([7 - name for name in labels]) == found


def test_random_clusters_have_the_sizes_of_kmeans_but_other_members() -> None:
    found = {clusters(3, "random", seed).of_class for seed in range(6)}
    assert len(found) > 3
    assert {tuple(sizes(of_class)) for of_class in found} == {(2, 2, 6)}
    assert GROUPS not in found


@pytest.mark.parametrize("method", METHODS)
def test_one_cluster_holds_all_classes_and_ten_hold_one_each(method: str) -> None:
    assert clusters(1, method).of_class == (0,) * 10
    assert clusters(10, method).of_class == tuple(range(10))
    assert clusters(1, method).silhouette == {"1": 0.0}
    assert clusters(10, method).silhouette == {"10": 0.0}


def test_auto_needs_three_classes() -> None:
    with pytest.raises(ConfigError, match="at least 3 classes"):
        clusters("auto", logits=taught((0, 1)))
    assert clusters("auto", logits=taught((0, 0, 1))).of_class == (0, 0, 1)


@pytest.mark.parametrize("method", ["kmeans", "random"])
def test_auto_leaves_out_a_k_of_which_there_are_fewer_clusters(method: str) -> None:
    class Warned(Silent):
        messages: ClassVar[list[str]] = []

        def warned(self, message: str) -> None:
            self.messages.append(message)

    same = taught((0, 1, 2, 3, 4), noise=0.0)
    same.train_VNC[:, dataset(5).train.labels_N >= 2] = torch.tensor([0, 0, 5, 5, 5]).half()
    found = clusters("auto", method, logits=same, env=Env(progress=Warned()))
    assert len(found.of_class) == 5 and max(found.of_class) + 1 in {2, 3}
    assert "4" not in found.silhouette
    assert Warned.messages == [
        "`k=auto` leaves out k=4: the teacher gives several classes the same logits"
    ]
    assert clusters(3, logits=same).of_class == (0, 1, 2, 2, 2)


@pytest.mark.parametrize("method", ["kmeans", "random"])
def test_a_teacher_that_tells_no_classes_apart_is_refused(method: str) -> None:
    with pytest.raises(StageError, match="finds fewer than 3 clusters"):
        clusters(3, method, logits=Logits(torch.zeros(1, 30, 10).half()))


def test_class_means_are_over_the_images_of_a_class_and_all_views() -> None:
    logits, labels_N = taught(), dataset(10).train.labels_N
    found = class_means(logits, labels_N, 10)
    for c in range(10):
        expected = logits.train_VNC[:, labels_N == c].double().mean((0, 1))
        np.testing.assert_allclose(found[c], expected)


def test_confusion_is_symmetric_and_shares_out_each_classs_probability() -> None:
    logits, labels_N = taught(), dataset(10).train.labels_N
    found = confusion(logits, labels_N, 10)
    np.testing.assert_allclose(found, found.T)
    assert found.sum() == pytest.approx(10)
    probs_NC = logits.train_VNC.double().softmax(2).mean(0)
    lent = probs_NC[labels_N == 2, 3].mean() + probs_NC[labels_N == 3, 2].mean()
    assert found[2, 3] == pytest.approx(float(lent) / 2)
    assert found[2, 3] > 5 * found[2, 0]


def test_spectral_looks_at_confusion_and_kmeans_at_the_means() -> None:
    mean_CC = np.diag([9.0, 9, 9, 9]) + 8 * np.kron(np.eye(2), np.ones((2, 2)))
    confused_CC = np.kron(np.ones((2, 2)), np.eye(2)) + 0.01
    assert partition(mean_CC, confused_CC, 2, method="kmeans", seed=0) == (0, 0, 1, 1)
    assert partition(mean_CC, confused_CC, 2, method="spectral", seed=0) == (0, 1, 0, 1)


def test_silhouette_is_high_for_the_right_groups_and_low_for_wrong_ones() -> None:
    mean_CC = class_means(taught(), dataset(10).train.labels_N, 10)
    assert silhouette(mean_CC, GROUPS) > 0.3
    assert silhouette(mean_CC, (0, 0, 0, 0, 0, 1, 1, 1, 2, 2)) < 0.1
