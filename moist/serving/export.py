"""A run's model as a file for other programs, compared with the model in torch."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from moist.data.augment import normalize
from moist.errors import StageError
from moist.measure.accuracy import EVAL_BATCH, accuracy, inference
from moist.nets.build import module
from moist.nets.onnx_graph import check_installed, onnx_of, session
from moist.serving.predict import stored
from moist.store.artifacts import Dataset, Split
from moist.store.calls import Backend
from moist.store.runs import Run, version

if TYPE_CHECKING:
    import onnxruntime

SAME_CLASS, SAME_LOGITS = 0.999, 1e-3
"""Parity: the least share of images that agree, and the largest relative difference of logits."""
SINGLY = 16
"""Images that parity also classifies one by one."""


@dataclass(frozen=True)
class Exported:
    """An exported graph, and how it compares with the model in torch, on `n` images of a split.

    `same_class`: share of images with the same class; `difference`: of logits, relative to the
    image's largest, where all but one in a thousand images are below. `accuracy_recorded` is that
    of the run's report, None for training images.
    """

    data: bytes = field(repr=False)
    split: str
    n: int
    same_class: float
    difference: float
    accuracy_torch: float
    accuracy: float
    accuracy_recorded: float | None = None

    def report(self) -> dict[str, Any]:
        """Return the figures as JSON values."""
        figures = {name: value for name, value in vars(self).items() if name != "data"}
        return {**figures, "bytes": len(self.data)}


def export_onnx(
    store: Backend, run: Run, int8: bool = False, split: str | None = None
) -> Exported:
    """Export a run's model, compared with torch; its weights and activations as `int8`.

    They are compared on a split: validation images by default, training images without them.
    Raises ConfigError without onnx or onnxruntime, StoreError for a model that is gone, and
    StageError for one that needs labels, or whose graph differs from it, except by int8.
    """
    check_installed("onnx", "onnxruntime")
    data, model = stored(store, run)
    net = module(model).eval()
    split = split or ("val" if len(data.val) else "train")
    exported = compared(net, onnx_of(net, data, metadata(data, run), int8), data, split)
    recorded = {"val": run.report.val_accuracy, "test": run.report.accuracy}.get(split)
    exported = replace(exported, accuracy_recorded=recorded)
    if int8:
        return exported
    if exported.same_class < SAME_CLASS or exported.difference > SAME_LOGITS:
        raise StageError(
            f"the exported graph differs from the model: {exported.same_class:.2%} of"
            f" {exported.n} images have the same class, logits differ by"
            f" {exported.difference:.1g}; it was not written",
            "please report it, with the output of `moist show` of this run",
        )
    return exported


def metadata(data: Dataset, run: Run) -> dict[str, str]:
    """Return what the file says of the model, as texts: some of them JSON."""
    numbers = run.report.model_dump(mode="json")
    figures = {k: v for k, v in numbers.items() if isinstance(v, int | float | None)}
    return {
        "moist": version(),
        "run": run.key,
        "command": run.command,
        "classes": json.dumps(data.classes),
        "crop": json.dumps(data.crop),
        "config": json.dumps(run.config),
        "figures": json.dumps(figures),
    }


def compared(net: nn.Module, graph: bytes, data: Dataset, split: str) -> Exported:
    """Compare a graph with the model in torch on the images of a split."""
    images: Split = getattr(data, split)
    runs = session(graph)
    got_NC = classified(runs, images)
    alone = Split(images.images_NHWC[:SINGLY], images.labels_N[:SINGLY])
    with inference(net, torch.device("cpu"), "float32"):
        want_NC = torch.cat([
            net(normalize(part, data.mean, data.std)).float()
            for part in torch.split(images.images_NHWC, EVAL_BATCH)
        ])  # fmt: skip
    got_NC = torch.cat([classified(runs, alone, batch=1), got_NC[SINGLY:]])
    spread_N = (got_NC - want_NC).abs().amax(1) / want_NC.abs().amax(1)
    return Exported(
        data=graph,
        split=split,
        n=len(images),
        same_class=float((got_NC.argmax(1) == want_NC.argmax(1)).double().mean()),
        difference=float(spread_N.quantile(SAME_CLASS, interpolation="lower")),
        accuracy_torch=accuracy(want_NC, images.labels_N),
        accuracy=accuracy(got_NC, images.labels_N),
    )


def classified(
    runs: onnxruntime.InferenceSession, images: Split, batch: int = EVAL_BATCH
) -> torch.Tensor:
    """Return the logits (N, C) of a split's images."""
    return torch.cat([
        torch.from_numpy(runs.run(["logits"], {"images": part.numpy()})[0])
        for part in torch.split(images.images_NHWC, batch)
    ])  # fmt: skip
