"""What a run's model answers on its test images, image by image: shown, and never selected by.

N images, C classes, E experts.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image

from moist.errors import StoreError
from moist.measure.accuracy import Answers, classify
from moist.nets.build import Model, module
from moist.serving.predict import stored
from moist.stages.evaluate import routed_rows
from moist.store.artifacts import Cascade, Dataset
from moist.store.calls import Backend
from moist.store.runs import Run

EXAMPLES = 6
"""Images of each student, right and wrong each."""
PIXELS = 64
"""Width and height of an example at most."""


@dataclass(frozen=True)
class Example:
    """A test image as PNG, its class and the predicted one, and how sure the router was."""

    png: bytes
    label: str
    predicted: str
    confidence: float | None


@dataclass(frozen=True)
class Group:
    """Images that went to one student, by number: how many right and wrong, some of each."""

    expert: int | None
    right: int
    wrong: int
    examples_right: tuple[Example, ...]
    examples_wrong: tuple[Example, ...]


@dataclass(frozen=True)
class Inspection:
    """Counts of test images by class and predicted class (C, C), and examples by student.

    `expert` is None for the images that no router saw.
    """

    classes: tuple[str, ...]
    confusion: tuple[tuple[int, ...], ...]
    groups: tuple[Group, ...] = field(default=())


def right(store: Backend, run: Run) -> torch.Tensor:
    """Return which test images (N) a run's stored model classifies right, in the data's order.

    Raises StoreError when its images or its model are no longer stored.
    """
    data, _, _, predicted_N = _classified(store, run)
    return predicted_N == data.test.labels_N


def _classified(store: Backend, run: Run) -> tuple[Dataset, Model, Answers, torch.Tensor]:
    """Return a run's data, model, its answers on the test images, and the classes (N) of these."""
    data, model = stored(store, run)
    net = module(model, store.env.device)
    answers = classify(store.env, net, data.test, data, precision=run.config["precision"])
    defers = isinstance(model, Cascade)
    logits_NC = answers.at_threshold(model.threshold) if defers else answers.logits_NC
    return data, model, answers, logits_NC.argmax(1)


def inspect(store: Backend, run: Run) -> Inspection:
    """Classify a run's test images with its stored model.

    Raises StoreError when its images or its model are no longer stored.
    """
    data, model, answers, predicted_N = _classified(store, run)
    labels_N = data.test.labels_N
    count = len(data.classes)
    pairs_N = labels_N * count + predicted_N
    confusion_CC = torch.bincount(pairs_N, minlength=count * count).reshape(count, count)
    expert_N = torch.full_like(labels_N, -1)
    confidence_N = torch.zeros(len(labels_N))
    routes = routed_rows(model, answers)
    if routes is not None and answers.gate_NE is not None:
        gate_NE = answers.gate_NE.float().softmax(1)
        expert_N = torch.where(routes[1], gate_NE.argmax(1), expert_N)
        confidence_N = gate_NE.amax(1)

    def example(i: int) -> Example:
        return Example(
            png_of(data.test.images_NHWC[i]),
            data.classes[int(labels_N[i])],
            data.classes[int(predicted_N[i])],
            float(confidence_N[i]) if expert_N[i] >= 0 else None,
        )

    order_N = torch.randperm(len(labels_N), generator=torch.Generator().manual_seed(0))
    groups = []
    for expert in sorted(set(expert_N.tolist())):
        own_N = order_N[expert_N[order_N] == expert]
        hit_N = labels_N[own_N] == predicted_N[own_N]
        right_N, wrong_N = own_N[hit_N], own_N[~hit_N]
        shown = [
            tuple(example(i) for i in found[:EXAMPLES].tolist()) for found in (right_N, wrong_N)
        ]
        number = expert if expert >= 0 else None
        groups.append(Group(number, len(right_N), len(wrong_N), *shown))
    confusion = tuple(tuple(row) for row in confusion_CC.tolist())
    return Inspection(data.classes, confusion, tuple(groups))


def png_of(image_HWC: torch.Tensor) -> bytes:
    """Return a uint8 image as PNG, reduced to at most 64 pixels."""
    array = image_HWC.numpy()
    image = Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)
    image.thumbnail((PIXELS, PIXELS))
    image.save(written := io.BytesIO(), format="PNG", optimize=True)
    return written.getvalue()


def learning_curves(store: Backend, run: Run) -> dict[str, tuple[Mapping[str, Any], ...]]:
    """Return the epochs of each stage of a run that trained a network, by stage and key.

    A stage whose output is no longer stored is left out. Raises StoreError if all are.
    """
    found: dict[str, tuple[Mapping[str, Any], ...]] = {}
    missing: StoreError | None = None
    for stage, keys in run.artifacts.items():
        for i, key in enumerate(keys):
            if stage in {"prepare", "teacher_logits", "teacher_levels"}:
                continue
            try:
                rows = getattr(store.load(key), "history", ())
            except StoreError as error:
                missing = error
                continue
            if rows:
                found[f"{stage} {i + 1}" if len(keys) > 1 else stage] = rows
    if not found and missing is not None:
        raise missing
    return found
