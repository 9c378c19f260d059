"""Classify new images with the model of a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moist.artifacts import Dataset, Mixture
from moist.augment import normalize
from moist.images import read_image
from moist.measure import inference
from moist.mixture import MoIST, module
from moist.runs import Run
from moist.store import Store


def predict_images(store: Store, run: Run, paths: Sequence[Path]) -> list[dict[str, Any]]:
    """One record an image: class, its probability, the expert asked, the router's confidence.

    Images are read as the run's data were: same size, channels and normalization. Raises
    DataError for a file that can't be decoded, StageError for a model that needs labels.
    """
    import torch

    data: Dataset = store.load(run.artifacts["prepare"][0])
    mixture: Mixture = store.load(run.artifacts["train_jointly"][0])
    net = module(mixture, store.env.device)
    assert isinstance(net, MoIST)
    images_BHWC = torch.stack([read_image(path, data.image_shape) for path in paths])
    with inference(net, store.env.device, run.config["precision"]):
        x_BCHW = normalize(images_BHWC.to(store.env.device), data.mean, data.std)
        logits_BC, gate_BE = net.routed(x_BCHW)
        prob_BC, gate_BE = logits_BC.float().softmax(1).cpu(), gate_BE.softmax(1).cpu()
    return [
        {
            "image": str(path),
            "class": data.classes[int(prob_C.argmax())],
            "probability": float(prob_C.max()),
            "expert": int(gate_E.argmax()),
            "router_confidence": float(gate_E.max()),
        }
        for path, prob_C, gate_E in zip(paths, prob_BC, gate_BE, strict=True)
    ]
