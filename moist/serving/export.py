"""A run's model as a file for other programs, compared with the model in torch."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from moist.data.augment import normalize
from moist.errors import ConfigError, MoistError, StageError, brief
from moist.measure.accuracy import EVAL_BATCH, accuracy, inference
from moist.nets.build import module
from moist.nets.onnx_graph import check_installed, onnx_of
from moist.serving.exported import FORMATS, Loaded
from moist.serving.predict import stored
from moist.store.artifacts import Dataset, Split
from moist.store.calls import Backend
from moist.store.runs import Run, version

SAME_CLASS, SAME_LOGITS = 0.999, 1e-3
"""Parity: the least share of images that agree, and the largest relative difference of logits."""
SINGLY = 16
"""Images that parity also classifies one by one."""


@dataclass(frozen=True)
class Exported:
    """An exported file, and how it compares with the model in torch, on `n` images of a split.

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


def export_model(
    store: Backend, run: Run, form: str = "onnx", int8: bool = False, split: str | None = None
) -> Exported:
    """Export a run's model in one of `FORMATS`, compared with torch; in ONNX also as `int8`.

    They are compared on a split: validation images by default, training images without them.
    Raises ConfigError without the packages that the format needs and for int8 in another format
    than ONNX, StoreError for a model that is gone, and StageError for one that needs labels, that
    can't be traced, or that differs from its file, except by int8.
    """
    if int8 and form != "onnx":
        raise ConfigError(
            f"`--int8` quantizes ONNX models; `--format {form}` has float32 weights",
            "leave out `--int8`, or choose `--format onnx`",
        )
    chosen = FORMATS[form]
    check_installed(*chosen.to_write)
    data, model = stored(store, run)
    net = module(model).eval()
    split = split or ("val" if len(data.val) else "train")
    write = partial(onnx_of, int8=True) if int8 else chosen.write
    try:
        written = write(net, data, metadata(data, run))
        exported = compared(net, written, chosen.load(written), data, split)
    except MoistError:
        raise
    except Exception as error:  # of many types, from deep inside an exporter
        others = " or ".join(f"`--format {name}`" for name in FORMATS if name != form)
        raise StageError(
            f"`--format {form}` can't export this model: {brief(error)}", f"try {others}"
        ) from error
    recorded = {"val": run.report.val_accuracy, "test": run.report.accuracy}.get(split)
    exported = replace(exported, accuracy_recorded=recorded)
    if int8:
        return exported
    if exported.same_class < SAME_CLASS or exported.difference > SAME_LOGITS:
        raise StageError(
            f"the exported file differs from the model: {exported.same_class:.2%} of"
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


def compared(
    net: nn.Module, written: bytes, loaded: Loaded, data: Dataset, split: str
) -> Exported:
    """Compare a file with the model in torch on the images of a split."""
    images: Split = getattr(data, split)
    got_NC = classified(loaded, images)
    alone = Split(images.images_NHWC[:SINGLY], images.labels_N[:SINGLY])
    with inference(net, torch.device("cpu"), "float32"):
        want_NC = torch.cat([
            net(normalize(part, data.mean, data.std)).float()
            for part in torch.split(images.images_NHWC, EVAL_BATCH)
        ])  # fmt: skip
    got_NC = torch.cat([classified(loaded, alone, batch=1), got_NC[SINGLY:]])
    spread_N = (got_NC - want_NC).abs().amax(1) / want_NC.abs().amax(1)
    return Exported(
        data=written,
        split=split,
        n=len(images),
        same_class=float((got_NC.argmax(1) == want_NC.argmax(1)).double().mean()),
        difference=float(spread_N.quantile(SAME_CLASS, interpolation="lower")),
        accuracy_torch=accuracy(want_NC, images.labels_N),
        accuracy=accuracy(got_NC, images.labels_N),
    )


def classified(loaded: Loaded, images: Split, batch: int = EVAL_BATCH) -> torch.Tensor:
    """Return the logits (N, C) of a split's images."""
    return torch.cat([
        loaded.outputs(part)["logits"]
        for part in torch.split(images.images_NHWC, batch)
    ])  # fmt: skip
