"""A config that cannot work on the data is reported before anything is computed."""

import pytest
import torch
from recipes import env, ran, tiny
from safetensors.torch import save_file

from moist.errors import ConfigError
from moist.pipeline import run
from moist.store import maintenance
from moist.store.objects import ObjectStore
from moist.store.plan import Plan
from moist.store.store import Store


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


def test_weights_that_are_not_there_are_refused_before_anything_trains(tmp_path):
    with pytest.raises(ConfigError, match=r"can't read teacher.weights `/nowhere.pth`"):
        ran(tmp_path, "teacher.weights=/nowhere.pth")
    assert {entry.stage for entry in maintenance.entries(ObjectStore(tmp_path))} <= {"prepare"}


def test_weights_that_do_not_fit_are_refused_by_tensor(tmp_path):
    save_file({"fc.weight": torch.ones(3, 64)}, tmp_path / "w.safetensors")
    with pytest.raises(ConfigError, match=r"does not fit teacher.arch=resnet8 on 10 classes"):
        ran(tmp_path / "home", f"teacher.weights={tmp_path / 'w.safetensors'}")
    stored = {entry.stage for entry in maintenance.entries(ObjectStore(tmp_path / "home"))}
    assert stored == {"prepare", "measure_latency"}
