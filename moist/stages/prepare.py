"""Decode a data set once: every other stage starts from its uint8 tensors."""

from __future__ import annotations

import torch

from moist.data.decode import decode, mean_std
from moist.data.sources import Source, check_untouched, stratified_split
from moist.env import Env
from moist.stages import stage
from moist.store.artifacts import Dataset, Split


@stage(version=1)
def prepare(env: Env, *, source: Source, val_fraction: float) -> Dataset:
    """Decode the data set, split off its validation images, and find its mean and deviation.

    Stored, this is the decoded cache: later runs map the tensors instead of decoding again.
    Raises DataError for images that can't be used, or change meanwhile.
    """
    images, test = decode(source, env.advanced)
    check_untouched(source)
    train_index, val_index = stratified_split(images.labels_N.numpy(), val_fraction)
    train = _taken(images, torch.from_numpy(train_index))
    mean, std = mean_std(train.images_NHWC)
    return Dataset(
        name=source.name,
        classes=source.classes,
        mean=mean,
        std=std,
        train=train,
        val=_taken(images, torch.from_numpy(val_index)),
        test=test,
    )


def _taken(split: Split, index: torch.Tensor) -> Split:
    return Split(split.images_NHWC[index], split.labels_N[index])
