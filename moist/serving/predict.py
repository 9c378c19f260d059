"""Classify new images, with the model of a run or in general."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from moist.data.augment import normalize
from moist.data.decode import as_image, read_image
from moist.errors import DataError, StoreError
from moist.measure.accuracy import EVAL_BATCH, answers, inference
from moist.nets.build import module
from moist.nets.cascade import CascadeNet
from moist.nets.mixture import MoIST
from moist.store.artifacts import Dataset
from moist.store.calls import Backend
from moist.store.keys import SHORT
from moist.store.runs import Run


@dataclass(frozen=True)
class Answer:
    """Logits (B, C); router logits (B, E) and whether each image (B,) was routed, if there are
    students to route to; whether each (B,) was deferred, of a cascade."""

    logits_BC: torch.Tensor
    gate_BE: torch.Tensor | None
    routed_B: torch.Tensor
    deferred_B: torch.Tensor | None = None


Images = torch.Tensor | np.ndarray[Any, Any] | Image.Image | str | Path | Sequence[Any]
"""N images: uint8 pixels (N, H, W, C), floats (N, C, H, W) normalized as in training, or images of
Pillow's or files, one or a sequence."""


@dataclass(frozen=True)
class Predictions:
    """Of N images: names of classes (N), and probabilities (N, C), columns as `Model.classes`.

    `experts` (N) has the number of the student that answered, None where the router was not
    asked; of a model without router it is None.
    """

    classes: tuple[str, ...]
    probabilities: torch.Tensor
    experts: tuple[int | None, ...] | None


class Model(ABC):
    """A model that classifies new images.

    `classes` are their names, in the order of the logits; `image_shape` is (C, H, W), and `crop`
    whether the centre of a larger image is taken, as of the images it was trained on.
    """

    def __init__(
        self, classes: tuple[str, ...], image_shape: tuple[int, int, int], crop: bool
    ) -> None:
        self.classes, self.image_shape, self.crop = classes, image_shape, crop

    @abstractmethod
    def answer(self, images_BHWC: torch.Tensor) -> Answer:
        """Classify a batch of uint8 pixels."""

    def __call__(self, images: Images) -> torch.Tensor:
        """Return the logits (N, C) of N images, float32 on the CPU.

        Pixels, Pillow's images and files are read as the run's data were: same size, channels and
        normalization. Raises DataError for what are no images, and StageError for a model that
        needs labels (`router=oracle`).
        """
        parts = [answer.logits_BC.float().cpu() for answer in self._answers(images)]
        return torch.cat(parts) if parts else torch.empty(0, len(self.classes))

    def predict(self, images: Images) -> Predictions:
        """Return class, probabilities and expert of each image. Raises as a call does."""
        probs, experts = [torch.empty(0, len(self.classes))], list[int | None]()
        routes = False
        for answer in self._answers(images):
            probs.append(answer.logits_BC.float().cpu().softmax(1))
            routes = answer.gate_BE is not None
            experts += [_expert(answer, i) for i in range(len(probs[-1]))]
        found_NC = torch.cat(probs)
        names = tuple(self.classes[i] for i in found_NC.argmax(1).tolist())
        return Predictions(names, found_NC, tuple(experts) if routes else None)

    def records(
        self,
        paths: Iterable[Path],
        top: int = 1,
        unread: Callable[[DataError], object] | None = None,
    ) -> Iterator[dict[str, Any]]:
        """Yield a record for each image file, a batch at a time.

        It has class and probability (of the `top` classes: class_2, ...); of a mixture also the
        expert and the router's confidence (None for an image that no expert saw), of a cascade
        whether the image was deferred. `unread` is called with the error of a file that is no
        image, which is left out; without it, the error is raised.
        """
        left = iter(paths)
        while some := list(islice(left, EVAL_BATCH)):
            read = [
                (path, found) for path in some if (found := self._try(path, unread)) is not None
            ]
            if read:
                answer = self.answer(torch.stack([pixels for _, pixels in read]))
                for i, (path, _) in enumerate(read):
                    yield {"image": str(path), **_record(answer, i, self.classes, top)}

    def _try(
        self, path: Path, unread: Callable[[DataError], object] | None
    ) -> torch.Tensor | None:
        """Read an image file as uint8 pixels; None for one that was reported as unread."""
        try:
            return self._read(path)
        except DataError as error:
            if unread is None:
                raise
            unread(error)
            return None

    def _answers(self, images: Images) -> Iterator[Answer]:
        """Classify images a batch at a time."""
        given = [images] if isinstance(images, Image.Image | str | Path) else images
        for start in range(0, len(given), EVAL_BATCH):
            yield self._batch(given[start : start + EVAL_BATCH])

    def _batch(self, images: Any) -> Answer:
        if isinstance(images, torch.Tensor | np.ndarray):
            images = _pixels(np.asarray(images))
        return self.answer(torch.stack([self._read(image) for image in images]))

    def _read(self, image: Any) -> torch.Tensor:
        if isinstance(image, str | Path):
            return read_image(Path(image), self.image_shape, self.crop)
        if isinstance(image, Image.Image):
            return as_image(image, self.image_shape, self.crop)
        raise _no_images(type(image).__name__, "a sequence of Pillow's images or of files")


class TorchModel(Model):
    """The model of a recorded run, in torch; `run` is the record.

    Raises StoreError for what is no longer stored.
    """

    def __init__(self, store: Backend, run: Run) -> None:
        data, model = stored(store, run)
        super().__init__(data.classes, data.image_shape, data.crop)
        self.run, self.mean, self.std = run, data.mean, data.std
        self.device = store.env.device
        self.net = module(model, self.device).eval()

    def __repr__(self) -> str:
        return f"<model of run {self.run.key[:SHORT]}: {self.image_shape} to {len(self.classes)}>"

    def answer(self, images_BHWC: torch.Tensor) -> Answer:
        """Classify a batch of uint8 pixels."""
        return self._classify(normalize(images_BHWC.to(self.device), self.mean, self.std))

    def _classify(self, x_BCHW: torch.Tensor) -> Answer:
        with inference(self.net, self.device, self.run.config["precision"]):
            return answer_of(self.net, x_BCHW)

    def _batch(self, images: Any) -> Answer:
        """Classify a batch, which may also be floats, normalized as in training."""
        if not (isinstance(images, torch.Tensor) and images.is_floating_point()):
            return super()._batch(images)
        if tuple(images.shape[1:]) != tuple(self.image_shape):
            raise _no_images(images.shape, f"floats (N, {', '.join(map(str, self.image_shape))})")
        return self._classify(images.to(self.device, torch.float32))


def _pixels(array: np.ndarray[Any, Any]) -> list[Image.Image]:
    """Return uint8 pixels (N, H, W, C) as images. Raises DataError for other arrays."""
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[3] not in {1, 3, 4}:
        raise _no_images(f"{array.dtype} {array.shape}", "uint8 (N, H, W, C) with 1, 3 or 4 C")
    return [Image.fromarray(one[..., 0] if one.shape[2] == 1 else one) for one in array]


def _no_images(found: object, wanted: str) -> DataError:
    return DataError(
        f"expected {wanted}, found {found}",
        "give uint8 pixels (N, H, W, C), images of Pillow's, files, or normalized floats"
        " (N, C, H, W)",
    )


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


def _record(answer: Answer, i: int, classes: Sequence[str], top: int) -> dict[str, Any]:
    best = answer.logits_BC[i].float().softmax(0).topk(min(top, len(classes)))
    found: dict[str, Any] = {}
    pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    for rank, (index, probability) in enumerate(pairs, 1):
        suffix = f"_{rank}" if rank > 1 else ""
        found |= {f"class{suffix}": classes[index], f"probability{suffix}": probability}
    if answer.gate_BE is not None:
        expert, gate_E = _expert(answer, i), answer.gate_BE[i].softmax(0)
        found["expert"] = expert
        found["router_confidence"] = None if expert is None else float(gate_E.max())
    if answer.deferred_B is not None:
        found["deferred"] = bool(answer.deferred_B[i])
    return found


def _expert(answer: Answer, i: int) -> int | None:
    """Return the student that answered an image; None if none was chosen."""
    if answer.gate_BE is None or not answer.routed_B[i]:
        return None
    return int(answer.gate_BE[i].argmax())
