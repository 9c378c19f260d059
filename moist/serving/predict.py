"""Classify new images with the model of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from moist.data.augment import normalize
from moist.data.decode import read_image
from moist.errors import StoreError
from moist.measure.accuracy import EVAL_BATCH, answers, inference
from moist.nets.build import module
from moist.nets.cascade import CascadeNet
from moist.nets.mixture import MoIST
from moist.store.artifacts import Dataset
from moist.store.calls import Backend
from moist.store.runs import Run


@dataclass(frozen=True)
class Answer:
    """Logits (B, C); router logits (B, E) and whether each image (B,) was routed, if there are
    students to route to; whether each (B,) was deferred, of a cascade."""

    logits_BC: torch.Tensor
    gate_BE: torch.Tensor | None
    routed_B: torch.Tensor
    deferred_B: torch.Tensor | None = None


def predict_images(store: Backend, run: Run, paths: Sequence[Path]) -> list[dict[str, Any]]:
    """Classify images, one record each: class and probability; of a mixture also the expert and
    the router's confidence (None for an image that no expert saw), of a cascade whether the image
    was deferred.

    Images are read as the run's data were: same size, channels and normalization. Raises
    DataError for a file that can't be decoded, StageError for a model that needs labels, and
    StoreError for one that is gone.
    """
    data, model = stored(store, run)
    net = module(model, store.env.device)
    found: list[dict[str, Any]] = []
    with inference(net, store.env.device, run.config["precision"]):
        for start in range(0, len(paths), EVAL_BATCH):
            batch = paths[start : start + EVAL_BATCH]
            images_BHWC = torch.stack(
                [read_image(path, data.image_shape, data.crop) for path in batch]
            )
            x_BCHW = normalize(images_BHWC.to(store.env.device), data.mean, data.std)
            answer = answer_of(net, x_BCHW)
            found += [
                {"image": str(path), **_record(answer, i, data.classes)}
                for i, path in enumerate(batch)
            ]
    return found


def stored(store: Backend, run: Run) -> tuple[Dataset, Any]:
    """Return a run's images and its model. Raises StoreError for what is no longer stored."""
    if run.report.model_key is None:
        raise StoreError(
            f"run `{run.key}` was recorded by an older moist, without its model's key",
            f"run it again: `{run.command}`",
        )
    return store.load(run.artifacts["prepare"][0]), store.load(run.report.model_key)


def answer_of(net: nn.Module, x_BCHW: torch.Tensor) -> Answer:
    """Classify one batch; a cascade runs its second pass on deferred images only."""
    all_B = torch.ones(len(x_BCHW), dtype=torch.bool)
    if isinstance(net, CascadeNet):
        found = net.answer(x_BCHW)
        routed_B = found.deferred_B if isinstance(net.fallback, MoIST) else all_B
        return Answer(found.logits_BC, found.gate_BE, routed_B, found.deferred_B)
    plain = answers(net, x_BCHW)
    return Answer(plain.logits_NC, plain.gate_NE, all_B)


def _record(answer: Answer, i: int, classes: Sequence[str]) -> dict[str, Any]:
    prob_C = answer.logits_BC[i].float().softmax(0)
    found: dict[str, Any] = {
        "class": classes[int(prob_C.argmax())], "probability": float(prob_C.max())
    }  # fmt: skip
    if answer.gate_BE is not None:
        gate_E, routed = answer.gate_BE[i].softmax(0), bool(answer.routed_B[i])
        found["expert"] = int(gate_E.argmax()) if routed else None
        found["router_confidence"] = float(gate_E.max()) if routed else None
    if answer.deferred_B is not None:
        found["deferred"] = bool(answer.deferred_B[i])
    return found
