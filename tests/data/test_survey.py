"""A folder of images, examined in one pass."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from moist.data.survey import Survey, survey


def save(path: Path, value: int, size: tuple[int, int] = (32, 32), mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((*reversed(size), 3), value, dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes of ten images each without a split."""
    for c, name in enumerate(("cat", "dog")):
        for i in range(10):
            save(tmp_path / "photos" / name / f"{i}.png", 100 * c + i)
    return tmp_path / "photos"


def split(root: Path) -> Path:
    """Ten training and ten test images of two classes."""
    for part, c in (("train", 0), ("test", 1)):
        for i in range(10):
            for k, name in enumerate(("cat", "dog")):
                save(root.parent / "split" / part / name / f"{i}.png", 100 * c + 20 * k + i)
    return root.parent / "split"


def examined(root: Path) -> Survey:
    return survey(root, root.parent / "home")


def found(root: Path) -> list[tuple[str, str, tuple[str, ...]]]:
    return [(one.severity, one.what, one.files) for one in examined(root).findings]


def test_nothing_is_found_in_a_folder_that_is_well(root: Path) -> None:
    for one in (root, split(root)):
        well = examined(one)
        assert not well.findings and well.possible and well.summary.startswith("data: 2 classes")
        assert well.sizes == {"32x32": well.images} and well.modes == {"RGB": well.images}
    assert not (root.parent / "home").exists()


def test_everything_is_found_in_one_pass(root: Path) -> None:
    (root / "cat/a.png").write_bytes(b"no image")
    (root / "dog/b.jpg").write_bytes(b"")
    (root / "dog/c.heic").write_text("no image")
    (root / "dog/.DS_Store").write_text("no image")
    (root / "elk").mkdir()
    save(root / "fox/1.png", 200)
    save(root / "dog/tall.png", 201, (32, 128))
    save(root / "dog/tiny.png", 202, (8, 8))
    save(root / "dog/large.png", 203, (5000, 2000))
    save(root / "dog/grey.png", 204, mode="L")
    save(root / "dog/clear.png", 205, mode="RGBA")
    save(root / "dog/film.gif", 206).unlink()
    frames = [Image.new("RGB", (32, 32), (value, 0, 0)) for value in (10, 200)]
    frames[0].save(root / "dog/film.gif", save_all=True, append_images=frames[1:])
    (root / "cat/copy.png").write_bytes((root / "cat/1.png").read_bytes())
    (root / "cat/other.png").write_bytes((root / "dog/1.png").read_bytes())
    assert found(root) == [
        ("error", "a class folder without images", ("elk",)),
        ("error", "can't be decoded", ("cat/a.png", "dog/b.jpg")),
        ("error", "a class with too few images for a test split", ("fox (all: 1)",)),
        ("warning", "one image in two classes", ("cat/other.png = dog/1.png",)),
        ("warning", "a side below 16 pixels", ("dog/tiny.png",)),
        ("note", "not read: no image by its suffix", ("dog/c.heic",)),
        ("note", "copies of an image", ("cat/1.png = cat/copy.png",)),
        ("note", "a side above 4096 pixels", ("dog/large.png",)),
        ("note", "sides of more than 3:1", ("dog/tall.png",)),
        ("note", "animated or of several pages", ("dog/film.gif",)),
        ("note", "another size than 32x32", ("dog/large.png", "dog/tall.png", "dog/tiny.png")),
        ("note", "grey among colour images", ("dog/grey.png",)),
        ("note", "with an alpha channel", ("dog/clear.png",)),
    ]
    assert not examined(root).possible and not examined(root).summary


def test_test_images_that_are_training_images_are_listed(root: Path) -> None:
    folder = split(root)
    (folder / "test/cat/copy.png").write_bytes((folder / "train/cat/1.png").read_bytes())
    pair = ("test/cat/copy.png = train/cat/1.png",)
    assert found(folder) == [("warning", "test image = training image", pair)]
    assert examined(folder).possible


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda root: (root / "dog").rename(root / "cat "), "print alike"),
        (lambda root: (root / "dog").rename(root / ".dog"), "fewer than 2 class folders"),
        (lambda root: (root / "cat").rename(root / "train"), "has no folder `test`"),
        (lambda root: (root / "cat/self").symlink_to("self"), "Too many levels"),
        (lambda root: (root / "cat/x.png").symlink_to("gone"), "No such file"),
    ],
)
def test_a_folder_that_is_not_laid_out_as_classes_is_an_error(
    root: Path, change: object, what: str
) -> None:
    change(root)  # type: ignore[operator]
    assert [one for one in found(root) if one[0] == "error" and what in one[1]]


def test_a_class_that_a_split_lacks_is_listed_beside_other_errors(root: Path) -> None:
    folder = split(root)
    save(folder / "train/elk/1.png", 250)
    (folder / "train/cat/1.png").write_bytes(b"")
    errors = [one for one in found(folder) if one[0] == "error"]
    assert errors == [
        ("error", "a class is not in each split", ("test/elk",)),
        ("error", "can't be decoded", ("train/cat/1.png",)),
    ]
