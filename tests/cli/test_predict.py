"""`moist predict`: files, folders and lists, by a run, a study or an exported file."""

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from shell import Said
from tiny import TINY


@pytest.fixture(scope="module")
def home(trained) -> Path:
    """A home with a finished study of four trials."""
    return trained()


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """A larger grey image of a bright upright stroke."""
    pixels = np.zeros((32, 32), dtype=np.uint8)
    pixels[4:28, 14:18] = 255
    Image.fromarray(pixels).save(tmp_path / "one.png")
    return tmp_path / "one.png"


def test_an_image_is_classified_by_a_stored_run(home, capsys, picture):
    (row,) = Said(capsys, "predict", "last", picture, "--json", "--home", home).json
    assert row["image"] == str(picture) and row["class"] in set("0123456789")
    assert 0.1 <= row["probability"] <= 1 and row["expert"] in {0, 1}
    assert 0.5 <= row["router_confidence"] <= 1
    many = Said(capsys, "predict", "last", picture, picture, "--home", home)
    assert many.code == 0 and many.out.count("one.png") == 2 and "2 images in" in many.err


def test_a_file_that_is_not_an_image_is_rejected_by_name(home, capsys, tmp_path):
    (tmp_path / "text.png").write_text("no image")
    for path in (tmp_path / "nowhere.png", tmp_path / "text.png"):
        found = Said(capsys, "predict", "last", path, "--home", home)
        assert found.code == 2 and str(path) in found.err and found.out == ""


def test_an_oracle_can_not_classify_and_the_error_says_why(trained, capsys, picture):
    home = trained()
    key = Said(capsys, "run", *TINY, "router=oracle", "--json", "--home", home).json["key"]
    found = Said(capsys, "predict", key, picture, "--home", home)
    assert found.code == 1 and "`router=oracle` routes by the label" in found.err
    shown = Said(capsys, "show", key, "--home", home).out
    assert "oracle router (routed by the true class)" in shown


@pytest.fixture
def album(tmp_path) -> Path:
    """Three images, one of them in a folder below, and a text."""
    (tmp_path / "album" / "below").mkdir(parents=True)
    for name, grey in (("a.png", 0), ("b.jpg", 128), ("below/c.png", 255)):
        Image.new("L", (20, 30), grey).save(tmp_path / "album" / name)
    (tmp_path / "album" / "notes.txt").write_text("not an image")
    return tmp_path / "album"


def test_all_images_of_a_folder_or_a_list_are_classified(home, capsys, album, monkeypatch):
    folder = Said(capsys, "predict", "last", album, "--json", "--home", home).json
    assert [Path(row["image"]).name for row in folder] == ["a.png", "b.jpg", "c.png"]
    text = "\n".join(row["image"] for row in folder) + "\n\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    assert Said(capsys, "predict", "last", "-", "--json", "--home", home).json == folder


def test_the_most_probable_classes_are_sorted_and_more_than_there_are_is_all(home, capsys, album):
    found = Said(capsys, "predict", "last", album, "--top", 99, "--csv", "--home", home)
    rows = pd.read_csv(io.StringIO(found.out))
    names = ["probability", *(f"probability_{rank}" for rank in range(2, 11))]
    assert (rows[names].diff(axis=1).iloc[:, 1:] <= 0).all(axis=None)
    assert rows[names].sum(axis=1).to_numpy() == pytest.approx(1, abs=1e-5)
    shown = Said(capsys, "predict", "last", album, "--top", 3, "--home", home).out
    first = rows.iloc[0]
    assert f"{first['class_2']} {first['probability_2']:.1%}, {first['class_3']}" in shown


def test_a_file_that_is_no_image_is_named_and_the_others_are_classified(home, capsys, album):
    (album / "broken.png").write_text("not an image")
    found = Said(capsys, "predict", "last", album, "--json", "--home", home)
    assert found.code == 1 and len(json.loads(found.out)) == 3
    assert f"can't decode `{album / 'broken.png'}`" in found.err
    empty = Said(capsys, "predict", "last", album.parent / "empty", "--home", home)
    assert empty.code == 2 and empty.out == ""


def test_a_folder_without_images_is_an_error(home, capsys, tmp_path):
    found = Said(capsys, "predict", "last", tmp_path, "--home", home)
    assert found.code == 2 and f"there are no images in `{tmp_path}`" in found.err


def test_a_study_is_asked_by_its_best_trial_and_an_exported_file_says_the_same(
    home, capsys, album, tmp_path
):
    best = Said(capsys, "best", "four", "--json", "--home", home).json["key"]
    rows = Said(capsys, "predict", best, album, "--json", "--home", home).json
    assert Said(capsys, "predict", "four", album, "--json", "--home", home).json == rows
    for runtime, file in (("onnxruntime", "four.onnx"), ("torch", "four.pt2")):
        found = Said(capsys, "export", "four", "-o", tmp_path / file, "--home", home)
        assert found.code == 0 and f"{file}: " in found.out and f"runs in {runtime}\n" in found.out
        exported = Said(capsys, "predict", tmp_path / file, album, "--json").json
        assert [{**row, "probability": 0, "router_confidence": 0} for row in exported] == [
            {**row, "probability": 0, "router_confidence": 0} for row in rows
        ]
        got, wanted = ([row["probability"] for row in some] for some in (exported, rows))
        assert got == pytest.approx(wanted, abs=1e-4)


def test_the_format_and_the_ending_of_the_file_must_agree(home, capsys, tmp_path):
    words = ("export", "last", "--format", "torch-export", "-o", tmp_path / "a.onnx")
    found = Said(capsys, *words, "--home", home)
    assert found.code == 2 and "`--format torch-export` writes `.pt2` files" in found.err


def test_what_is_no_model_is_reported(home, capsys, picture, tmp_path):
    for name in ("text.onnx", "text.pt2"):
        (tmp_path / name).write_text("no graph")
    with zipfile.ZipFile(tmp_path / "other.pt2", "w") as archive:
        archive.writestr("archive/extra/notes", "another program's")
    for model, message in (
        (tmp_path / "nowhere.onnx", "there is no file"),
        (tmp_path / "text.onnx", "can't load"),
        (tmp_path / "text.pt2", "can't load"),
        (tmp_path / "other.pt2", "its metadata lacks classes, config, crop, moist"),
        ("nonesuch", "`nonesuch` is neither a study nor a run"),
    ):
        found = Said(capsys, "predict", model, picture, "--home", home)
        assert found.code == 2 and message in found.err, found.err
