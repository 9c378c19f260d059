"""Classify new images with the model of a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moist.artifacts import Cascade, Dataset
from moist.augment import normalize
from moist.errors import StoreError
from moist.images import read_image
from moist.measure import Answers, answers, inference
from moist.models import module
from moist.runs import Run
from moist.store import Store


def predict_images(store: Store, run: Run, paths: Sequence[Path]) -> list[dict[str, Any]]:
    """One record an image: class and its probability; of a mixture also the expert asked and the
    router's confidence, of a cascade whether a second opinion was asked for.

    Images are read as the run's data were: same size, channels and normalization. Raises
    DataError for a file that can't be decoded, StageError for a model that needs labels, and
    StoreError for one that is gone.
    """
    import torch

    if run.report.model_key is None:
        raise StoreError(
            f"run `{run.key}` was recorded by an older moist, without its model's key",
            f"run it again: `{run.command}`",
        )
    data: Dataset = store.load(run.artifacts["prepare"][0])
    model = store.load(run.report.model_key)
    net = module(model, store.env.device)
    images_BHWC = torch.stack([read_image(path, data.image_shape) for path in paths])
    with inference(net, store.env.device, run.config["precision"]):
        x_BCHW = normalize(images_BHWC.to(store.env.device), data.mean, data.std)
        said = answers(net, x_BCHW)
    threshold = model.threshold if isinstance(model, Cascade) else None
    return [
        {"image": str(path), **_record(said, i, data.classes, threshold)}
        for i, path in enumerate(paths)
    ]


def _record(
    said: Answers, i: int, classes: Sequence[str], threshold: float | None
) -> dict[str, Any]:
    logits_NC = said.logits_NC if threshold is None else said.settled(threshold)
    prob_C = logits_NC[i].softmax(0)
    found = {"class": classes[int(prob_C.argmax())], "probability": float(prob_C.max())}
    if said.gate_NE is not None:
        gate_E = said.gate_NE[i].softmax(0)
        found |= {"expert": int(gate_E.argmax()), "router_confidence": float(gate_E.max())}
    if threshold is not None:
        found |= {"second_opinion": bool(said.below(threshold)[i])}
    return found
