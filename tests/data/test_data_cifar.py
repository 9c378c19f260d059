"""60,000 real JPEG files: found at once the second time, decoded to CIFAR-10's own statistics."""

import os
import time
from pathlib import Path

import pytest
import torch

from moist import config
from moist.data.sources import locate
from moist.env import Env
from moist.stages.prepare import prepare

FOLDER = os.environ.get("MOIST_CIFAR10_JPEG")


@pytest.mark.skipif(not FOLDER, reason="set MOIST_CIFAR10_JPEG to the folder of JPEG files")
def test_cifar10_as_jpeg_has_its_known_mean_and_deviation(tmp_path: Path) -> None:
    data = config.DataConfig(name="folder", root=FOLDER)
    first = locate(data, tmp_path)
    start = time.perf_counter()
    assert locate(data, tmp_path) == first
    assert time.perf_counter() - start < 4
    images = prepare(Env(torch.device("cpu")), source=first, val_fraction=0.1)
    assert [len(part) for part in (images.train, images.val, images.test)] == [45000, 5000, 10000]
    assert images.val.labels_N.bincount().tolist() == [500] * 10
    assert images.mean == pytest.approx((0.4914, 0.4822, 0.4465), abs=2e-3)
    assert images.std == pytest.approx((0.2470, 0.2435, 0.2616), abs=3e-3)
