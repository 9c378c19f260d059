"""Knowledge gathering of OneS: a mixture's students become one. B images, H hidden units."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn
from torch.nn import functional as F

from moist.config import AugmentConfig, MergeConfig
from moist.data.augment import normalize
from moist.data.random import seeded
from moist.env import Env, autocast
from moist.measure.accuracy import accuracy, classify
from moist.nets.build import fresh, module
from moist.nets.merge import gather
from moist.stages import stage
from moist.store.artifacts import Dataset, Mixture, Student
from moist.training.job import BATCH, Job

M = TypeVar("M", bound=nn.Module)
CALIBRATION = 512
"""Images on which activations are measured."""


@stage(version=1)
def gather_students(
    env: Env,
    *,
    data: Dataset,
    mixture: Mixture,
    ancestor: Student,
    merge: MergeConfig,
    augment: AugmentConfig,
    precision: str,
    seed: int,
) -> Student:
    """Merge the mixture's students into one, by `merge.method`; the router is dropped.

    Batch norm's statistics fit no merged network: they are measured again, on training images.
    The controls: `random` weights, the `ancestor` all students started from, and `best_expert`,
    the one student that is best on all validation images (training images, without a split).
    """
    if merge.method == "ancestor":
        return ancestor
    if merge.method == "random":
        with seeded(seed, "merged"):
            return fresh(Student, ancestor.spec)
    if merge.method == "best_expert":
        split = data.val if len(data.val) else data.train
        scores = [
            accuracy(
                classify(env, module(one, env.device), split, data, precision=precision).logits_NC,
                split.labels_N,
            )
            for one in mixture.students
        ]
        return mixture.students[scores.index(max(scores))]
    needed = merge.method == "topk" and merge.score == "act"
    state = gather(
        [student.state for student in mixture.students],
        ancestor.state,
        merge,
        mixture.clusters.of_class,
        activity=[_activity(env, one, data) for one in mixture.students] if needed else None,
    )
    net = module(Student(ancestor.spec, state, ()), env.device)
    _renew_statistics(Job(env, data, augment=augment, precision=precision, seed=seed), net)
    return Student(ancestor.spec, net.state_dict(), ())


def _activity(env: Env, student: Student, data: Dataset) -> dict[str, torch.Tensor]:
    """Measure each hidden layer's mean activations (H,), after ReLU, on training images."""
    net = module(student, env.device).eval()
    conv1, conv2 = _of_type(net, nn.ReLU)
    parts = {"conv1": conv1, "conv2": conv2, "fc1": net.get_submodule("fc1")}
    found: dict[str, torch.Tensor] = {}

    def record(name: str, x: torch.Tensor) -> None:
        found[name] = F.relu(x).transpose(0, 1).flatten(1).mean(1).cpu()

    handles = [
        part.register_forward_hook(lambda _net, _args, x, name=name: record(name, x))
        for name, part in parts.items()
    ]
    rows = torch.linspace(0, len(data.train) - 1, min(CALIBRATION, len(data.train))).long()
    with torch.inference_mode():
        net(normalize(data.train.images_NHWC[rows].to(env.device), data.mean, data.std))
    for handle in handles:
        handle.remove()
    return found


def _of_type(net: nn.Module, kind: type[M]) -> list[M]:
    return [part for part in net.modules() if isinstance(part, kind)]


def _renew_statistics(job: Job, net: nn.Module) -> None:
    """Measure batch norm's running mean and variance again, over all training images."""
    norms = _of_type(net, nn.BatchNorm2d)
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    net.train()
    with torch.no_grad(), autocast(job.env.device, job.precision):
        for batch in job.batches(0, BATCH):
            net(batch.images_BCHW)
    net.eval()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
