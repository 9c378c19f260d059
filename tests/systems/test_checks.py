"""A config that cannot work on the data is reported before anything is computed."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from recipes import env, ran, tiny, weights
from torch import nn

from moist.data.sources import locate
from moist.errors import ConfigError
from moist.nets.cnn import TEACHERS
from moist.pipeline import run
from moist.store import maintenance
from moist.store.objects import ObjectStore
from moist.store.plan import Plan
from moist.store.store import Store
from moist.systems.shared import prepared


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["k=11"], r"`k=11` .* than `digits` has classes \(10\)\nhint: set k between 1 and 10"),
        (["augment.shift=8"], "`augment.shift=8` is too far for 8x8 images\nhint: .*shift=7"),
        (["data.image_size=12", "augment.shift=12"], "too far for 12x12 images"),
        (["data.image_size=3"], "leave nothing of 3x3 images\nhint: set `data.image_size=4`"),
        (["data.name=folder"], "needs `data.root`"),
        (["student.arch=residual_7mf"], "one pixel of 8x8 images, .*`data.image_size=16`, or"),
        (
            ["student.arch=residual", "student.channels=4,8,8"],
            "one pixel of 8x8 images, .*`data.image_size=16`, or",
        ),
    ],
)
def test_a_request_that_can_not_work_computes_nothing(tmp_path, overrides, said):
    config = tiny(*overrides)
    for store in (Plan(tmp_path, env()), Store(tmp_path, env())):
        with pytest.raises(ConfigError, match=f"(?s){said}"):
            run(config, store)
    assert maintenance.entries(ObjectStore(tmp_path)) == []


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ("augment.shift=8", "`augment.shift=8` is too far for 8x8 images"),
        (
            "student.arch=mobilenetv2_x0_5",
            "(?s)leaves one pixel of 8x8 images, .*set `data.image_size=16`",
        ),
    ],
)
def test_a_folders_images_are_looked_at_before_anything_is_computed(
    tmp_path, folder, overrides, said
):
    data = ["data.name=folder", f"data.root={folder}", overrides]
    with pytest.raises(ConfigError, match=said):
        ran(tmp_path / "home", *data)
    assert maintenance.entries(ObjectStore(tmp_path / "home")) == []


def test_k_auto_needs_three_classes(tmp_path, folder):
    for split in ("train", "test"):
        (folder / split / "red").rename(tmp_path / split)
    with pytest.raises(ConfigError, match="`k=auto` needs 3 or more classes, found 2"):
        ran(tmp_path / "home", "data.name=folder", f"data.root={folder}", "k=auto")
    assert maintenance.entries(ObjectStore(tmp_path / "home")) == []


def state(**changed: Any) -> dict[str, torch.Tensor]:
    return TEACHERS["resnet8"].build((1, 8, 8), 10).state_dict() | changed


BIAS = {"fc.bias": torch.full((10,), math.nan)}
HUGE = {"fc.bias": torch.full((10,), 1e300, dtype=torch.float64)}


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (lambda path: None, "No such file"),
        (lambda path: path.write_text("version https://git-lfs.github.com"), "a Git LFS pointer"),
        (lambda path: path.write_text("<!DOCTYPE html>"), "it is a web page"),
        (lambda path: path.write_bytes(weights(path).read_bytes()[:9999]), "damaged or cut off"),
        (lambda path: weights(path, classes=4), "does not fit teacher.arch=resnet8 on 10 classes"),
        (lambda path: weights(path, channels=3), r"does not .* \(1, 8, 8\) images:\n  `conv1"),
        (lambda path: torch.save(state(**BIAS), path), "has NaN in `fc.bias`"),
        (lambda path: torch.save(state(**HUGE), path), "has infinity in `fc.bias`"),
        (lambda path: torch.save(nn.Linear(1, 1), path), "it holds Python objects"),
        (lambda path: torch.save({"epoch": 3}, path), "does not contain a state dict of tensors"),
    ],
)  # fmt: skip
def test_bad_weights_are_refused_by_a_plan_and_a_run_before_anything_is_computed(
    tmp_path: Path, write: Callable[[Path], object], said: str
) -> None:
    write(path := tmp_path / "w.pth")
    config = tiny(f"teacher.weights={path}")
    for store in (Plan(tmp_path, env()), Store(tmp_path, env())):
        with pytest.raises(ConfigError, match=said):
            run(config, store)
    assert maintenance.entries(ObjectStore(tmp_path)) == []


@pytest.mark.parametrize("size", ["none", "12"])
def test_the_shape_of_the_images_is_known_before_they_are_decoded(
    tmp_path: Path, folder: Path, size: str
) -> None:
    store = Store(tmp_path / "home", env())
    for words in ([], ["data.name=folder", f"data.root={folder}"]):
        config = tiny(*words, f"data.image_size={size}")
        source = locate(config.data, store.home)
        shape = prepared(config, store)[0].value.image_shape
        assert (source.channels, *source.pixels) == shape
