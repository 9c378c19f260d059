"""Classify new images with the model of a run."""

from __future__ import annotations

from collections.abc import Sequence
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
from moist.store.artifacts import Dataset
from moist.store.runs import Run
from moist.store.store import Store

Answer = tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]
"""Logits (B, C); router logits (B, E), if it routes; deferred (B,), if it is a cascade."""


def predict_images(store: Store, run: Run, paths: Sequence[Path]) -> list[dict[str, Any]]:
    """Classify images, one record each: class and probability; of a mixture also the expert and
    the router's confidence, of a cascade whether the image was deferred.

    Images are read as the run's data were: same size, channels and normalization. Raises
    DataError for a file that can't be decoded, StageError for a model that needs labels, and
    StoreError for one that is gone.
    """
    if run.report.model_key is None:
        raise StoreError(
            f"run `{run.key}` was recorded by an older moist, without its model's key",
            f"run it again: `{run.command}`",
        )
    data: Dataset = store.load(run.artifacts["prepare"][0])
    net = module(store.load(run.report.model_key), store.env.device)
    found: list[dict[str, Any]] = []
    with inference(net, store.env.device, run.config["precision"]):
        for start in range(0, len(paths), EVAL_BATCH):
            batch = paths[start : start + EVAL_BATCH]
            images_BHWC = torch.stack([read_image(path, data.image_shape) for path in batch])
            x_BCHW = normalize(images_BHWC.to(store.env.device), data.mean, data.std)
            answer = answer_of(net, x_BCHW)
            found += [
                {"image": str(path), **_record(answer, i, data.classes)}
                for i, path in enumerate(batch)
            ]
    return found


def answer_of(net: nn.Module, x_BCHW: torch.Tensor) -> Answer:
    """Classify one batch; a cascade runs its second pass on deferred images only."""
    if isinstance(net, CascadeNet):
        return net.answer(x_BCHW)
    found = answers(net, x_BCHW)
    return found.logits_NC, found.gate_NE, None


def _record(answer: Answer, i: int, classes: Sequence[str]) -> dict[str, Any]:
    logits_BC, gate_BE, deferred_B = answer
    prob_C = logits_BC[i].float().softmax(0)
    found = {"class": classes[int(prob_C.argmax())], "probability": float(prob_C.max())}
    if gate_BE is not None:
        gate_E = gate_BE[i].softmax(0)
        found |= {"expert": int(gate_E.argmax()), "router_confidence": float(gate_E.max())}
    if deferred_B is not None:
        found |= {"deferred": bool(deferred_B[i])}
    return found
