"""A stranger's path: from folders of photos to a frontier and a prediction."""

import json
from pathlib import Path

import numpy as np
import pytest
from forked import moist
from PIL import Image
from shell import Said, of_nobody

from moist.env import Env
from moist.sweepfile import config_of, grid, problems, read_sweep

SHORT = [
    "teacher.epochs=1", "distill.epochs=1", "distill.views=1", "routing.epochs=1",
    "joint.epochs=1", "latency.repeats=10", "latency.seconds=0.01", "router=linear",
    "data.image_size=8", "augment.shift=1",
]  # fmt: skip


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Photos of three classes, of many sizes and formats, one turned by EXIF, and a stray file."""
    random = np.random.RandomState(0)
    folder = tmp_path / "my photos"
    for c, name in enumerate(("cat", "dog", "elk")):
        (folder / name).mkdir(parents=True)
        for i in range(10):
            shape = random.randint(20, 60, 2)
            pixels = random.randint(80 * c, 80 * c + 90, (*shape, 3), dtype=np.uint8)
            image, exif = Image.fromarray(pixels), Image.Exif()
            exif[0x0112] = 6
            suffix = ("jpg", "png", "webp")[i % 3]
            image.convert("RGBA" if suffix == "png" else "RGB").save(
                folder / name / f"photo {i}.{suffix}", **({"exif": exif} if i == 0 else {})
            )
    (folder / "cat/.DS_Store").write_bytes(b"Bud1")
    return folder


def said(capsys: pytest.CaptureFixture[str], *words: object) -> Said:
    return Said(capsys, *words)


def test_init_writes_a_file_that_searches_the_images(photos, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    answer = said(capsys, "init", photos)
    assert answer.code == 0, answer.err
    *_, last = answer.out.splitlines()
    assert last.split() == ["moist", "sweep", "optuna", "my-photos.yaml"]
    assert (
        "data: 3 classes, 30 images: 24 training (3 of them for validation), 6 test" in answer.out
    )
    path = tmp_path / "my-photos.yaml"
    assert problems(path) == []
    sweep = read_sweep(path)
    assert sweep.fixed["data.root"] == str(photos) and sweep.fixed["data.crop"] is True
    assert 16 <= sweep.fixed["data.image_size"] <= 64
    assert (sweep.fixed.get("precision") == "float32") == bool(Env().emulation("bf16"))
    assert max(point["k"] for point in grid(sweep)) == 3
    assert config_of(sweep, next(iter(grid(sweep)))).data.name == "folder"
    again = said(capsys, "init", photos)
    assert again.code == 2 and "exists already" in again.err


def test_init_of_a_folder_that_can_not_be_trained_on_lists_why_and_writes_nothing(
    photos, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    for name in ("cat/a.png", "dog/b.png"):
        (photos / name).write_bytes(b"no image")
    answer = said(capsys, "init", photos)
    assert answer.code == 2 and "can't be decoded" in answer.out and "cat/a.png" in answer.out
    assert not (tmp_path / "my-photos.yaml").exists()
    checked = said(capsys, "data", "check", photos, "--json")
    assert checked.code == 1
    errors = [one for one in json.loads(checked.out)["findings"] if one["severity"] == "error"]
    assert [one["files"] for one in errors] == [["cat/a.png", "dog/b.png"]]


@pytest.mark.slow
def test_a_stranger_gets_from_photos_to_a_prediction(photos, tmp_path):
    env = of_nobody(tmp_path)

    def done(*words: object) -> str:
        ran = moist(*words, env=env, cwd=tmp_path)
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    assert "3 classes, 30 images" in done("data", "check", photos)
    done("init", photos)
    options = ["--trials", 2, "--threads", 1, "--wandb", "off"]
    out = done("sweep", "optuna", "my-photos.yaml", *SHORT, *options)
    assert "Pareto frontier of my-photos" in out
    assert json.loads(done("best", "my-photos", "--json"))
    new = tmp_path / "new.png"
    Image.new("L", (300, 200), 200).save(new)
    [found] = json.loads(done("predict", "last", new, "--json"))
    assert found["class"] in {"cat", "dog", "elk"} and 0 < found["probability"] <= 1
