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
    """Decode the data set, split off validation images if it has none, and find its mean and
    deviation.

    Stored, this is the decoded cache: later runs map the tensors instead of decoding again.
    Raises DataError for images that can't be used, or change meanwhile.
    """
    train, test, val = decode(source, env.advanced)
    check_untouched(source)
    if val is None:
        train_index, val_index = stratified_split(train.labels_N.numpy(), val_fraction)
        val = _taken(train, torch.from_numpy(val_index))
        train = _taken(train, torch.from_numpy(train_index))
    mean, std = mean_std(train.images_NHWC)
    return Dataset(
        name=source.name,
        classes=source.classes,
        mean=mean,
        std=std,
        train=train,
        val=val,
        test=test,
        crop=source.crop,
    )


def _taken(split: Split, index: torch.Tensor) -> Split:
    return Split(split.images_NHWC[index], split.labels_N[index])
