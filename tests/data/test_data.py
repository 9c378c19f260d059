"""Data sets: identified by content, rejected with a reason, decoded to their pixels."""

import json
import os
import struct
import urllib.request
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from moist import config
from moist.config.schema import choices
from moist.data.decode import STD_FLOOR, check_memory, mean_std, read_image
from moist.data.sources import IMAGES, VALIDATION, Source, locate, size_of, stratified_split
from moist.data.torchvision_sets import PUBLIC
from moist.env import Env, Silent
from moist.errors import ConfigError, DataError
from moist.stages.prepare import prepare
from moist.store.artifacts import Dataset


def save(path: Path, pixels: np.ndarray | Image.Image, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(path, **options)
    return path


def plain(value: int, size: int = 8) -> np.ndarray:
    return np.full((size, size, 3), value, dtype=np.uint8)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes, three training images and one test image each, every pixel of its own grey."""
    folder = tmp_path / "images"
    for c, name in enumerate(("cat", "dog")):
        for i in range(3):
            save(folder / "train" / name / f"{i}.png", plain(100 * c + i))
        save(folder / "test" / name / "0.png", plain(100 * c + 50))
    return folder


def found(root: Path | None, name: str = "folder", size: int | None = None) -> Source:
    home = (root or Path(os.devnull)).parent / "home"
    return locate(config.DataConfig(name=name, root=root, image_size=size), home)


def prepared(root: Path, size: int | None = None, val_fraction: float = 0.0) -> Dataset:
    return prepare(Env(torch.device("cpu")), source=found(root, size=size),
                   val_fraction=val_fraction)  # fmt: skip


def added(root: Path, image: Image.Image, name: str = "cat/a.png", **options: object) -> list:
    """The pixels that an image added to the training set decodes to, as nested lists."""
    save(root / "train" / name, image, **options)
    index = sorted(p.name for p in (root / "train" / "cat").iterdir()).index(Path(name).name)
    return prepared(root).train.images_NHWC[index].tolist()


# What is found, and its key


def test_the_key_follows_the_content_not_the_place(root: Path) -> None:
    before = found(root)
    moved = root.rename(root.parent / "elsewhere")
    after = found(moved)
    assert after.key == before.key and after.root == moved
    assert before.classes == ("cat", "dog")


changes = pytest.mark.parametrize(
    "change",
    [
        lambda root: save(root / "train/cat/0.png", plain(7)),
        lambda root: (root / "test/dog/0.png").rename(root / "test/dog/1.png"),
        lambda root: save(root / "train/cat/9.png", plain(7)),
        lambda root: (root / "train/cat/1.png").unlink(),
    ],
    ids=["a pixel", "a name", "one more", "one fewer"],
)


@changes
def test_any_change_of_the_files_changes_the_key(root: Path, change: object) -> None:
    before = found(root).key
    change(root)  # type: ignore[operator]
    assert found(root).key != before


@changes
def test_images_that_change_after_they_were_digested_are_refused(
    root: Path, change: object
) -> None:
    """What is decoded must be what the key was computed from."""
    source = found(root)
    change(root)  # type: ignore[operator]
    with pytest.raises(DataError, match="changed while they were read"):
        prepare(Env(torch.device("cpu")), source=source, val_fraction=0.0)


def test_the_key_sees_new_content_under_the_old_size_and_time(root: Path) -> None:
    path = root / "train/cat/0.png"
    before, stat = found(root).key, path.stat()
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert found(root).key != before


def test_the_key_depends_on_the_image_size_and_the_data_set(root: Path) -> None:
    keys = {found(root).key, found(root, size=8).key, found(root, size=4).key}
    keys |= {found(None, "digits").key, found(None, "digits", 16).key}
    assert len(keys) == 5


def test_files_that_are_no_images_do_not_count(root: Path) -> None:
    before = found(root).key
    (root / "train/cat/notes.txt").write_text("no image")
    (root / "train/cat/.hidden.png").write_text("no image")
    (root / "train/.cache").mkdir()
    (root / "README.md").write_text("no image")
    assert found(root).key == before


def test_images_are_read_at_every_depth_of_a_class_folder(root: Path) -> None:
    """In the order of their paths, so that a flat folder keeps its order and key."""
    save(root / "train/cat/session2/b/0.png", plain(9))
    save(root / "train/cat/session2/a.png", plain(8))
    save(root / "train/cat/2a.png", plain(7))
    (root / "train/cat/linked").symlink_to(root / "train/cat/session2")
    data = prepared(root)
    assert data.train.images_NHWC[:, 0, 0, 0].tolist() == [0, 1, 2, 7, 8, 9, 100, 101, 102]
    assert data.train.labels_N.tolist() == [0] * 6 + [1] * 3
    assert found(root).images == 11 and not found(root).warnings


def test_the_key_of_a_flat_folder_is_that_of_earlier_versions(tmp_path: Path) -> None:
    for split, name in product(("train", "test"), ("cat", "dog")):
        (tmp_path / split / name).mkdir(parents=True)
        (tmp_path / split / name / "0.png").write_bytes(f"{split} {name}".encode())
    data = config.DataConfig(name="folder", root=tmp_path, val_fraction=0)
    key = "540b7c42f3e959f2383df24d9e4a5b82489f2883f9a5a54f8bd0752da8deca97"
    assert locate(data, tmp_path / "home").key == key


def test_what_is_not_read_is_named_with_its_count(root: Path) -> None:
    (root / "more/cat").mkdir(parents=True)
    save(root / "train/loose.png", plain(1))
    (root / "train/cat/session2").mkdir()
    for name in ("b.HEIC", "session2/a.heic", "notes", ".DS_Store", "Thumbs.db", ".x/y.png"):
        (root / "train/cat" / name).parent.mkdir(exist_ok=True)
        (root / "train/cat" / name).write_text("no image")
    assert found(root).warnings == (
        f"not read: *.heic (no images): 2, as `{root}/train/cat/b.HEIC`;"
        f" files without suffix (no images): 1, as `{root}/train/cat/notes`;"
        f" *.png (in no class folder): 1, as `{root}/train/loose.png`; folder `{root}/more`",
    )


NO_IMAGES = set(".ps .eps .wmf .emf .mpg .mpeg .bufr .grib .h5 .hdf .palm .pdf".split())
"""PostScript, metafiles, video, scientific containers, and formats that Pillow only writes."""


def test_every_suffix_of_a_pixel_format_that_pillow_opens_is_an_image() -> None:
    assert set(Image.registered_extensions()) == IMAGES | NO_IMAGES
    assert not IMAGES & NO_IMAGES


def memo(root: Path) -> Path:
    (path,) = (root.parent / "home/data/fingerprints").iterdir()
    return path


def test_untouched_files_are_not_read_again(root: Path) -> None:
    before = found(root).key
    modified = memo(root).stat().st_mtime_ns
    assert found(root).key == before
    assert memo(root).stat().st_mtime_ns == modified


@pytest.mark.parametrize("damage", [b"", b"[]", b"{", b'{"content": 1}', b"\xff\xfe"])
def test_a_damaged_memo_is_computed_again(root: Path, damage: bytes) -> None:
    before = found(root).key
    memo(root).write_bytes(damage)
    assert found(root).key == before
    assert json.loads(memo(root).read_bytes())


def test_a_memo_with_one_wrong_digit_is_computed_again(root: Path) -> None:
    before = found(root).key
    values = json.loads(memo(root).read_bytes())
    first = values["content"][0]
    values["content"] = ("0" if first != "0" else "1") + values["content"][1:]
    memo(root).write_text(json.dumps(values))
    assert found(root).key == before


def test_whoever_only_asks_writes_nothing_and_sees_each_change(root: Path) -> None:
    (home := root.parent / "home").mkdir()
    keys = []
    for value in (1, 2):
        save(root / "train/cat/new.png", plain(value))
        data = config.DataConfig(name="folder", root=root)
        keys.append(locate(data, home, fetch=False).key)
        assert [*home.iterdir()] == []
    assert keys[0] != keys[1] == found(root).key


def test_every_data_set_of_the_config_has_classes_before_anything_is_decoded() -> None:
    names = set(choices(config.DataConfig, "name"))
    assert names == {"digits", "folder", *PUBLIC}
    assert [len(set(PUBLIC[name].classes)) for name in sorted(PUBLIC)] == [10, 100, 10, 10]
    assert PUBLIC["cifar100"].classes == tuple(sorted(PUBLIC["cifar100"].classes))


# Splits of a folder


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    """Two classes of ten images each without a split, every pixel of its own grey."""
    folder = tmp_path / "photos"
    for c, name in enumerate(("cat", "dog")):
        for i in range(10):
            save(folder / name / f"{i}.png", plain(100 * c + i))
    return folder


def data_of(root: Path, **values: object) -> tuple[Source, Dataset]:
    section = config.DataConfig(name="folder", root=root, **values)
    source = locate(section, root.parent / "home")
    return source, prepare(
        Env(torch.device("cpu")), source=source, val_fraction=section.val_fraction
    )


def greys(data: Dataset) -> list[list[int]]:
    return [one.images_NHWC[:, 0, 0, 0].tolist() for one in (data.train, data.val, data.test)]


def test_test_images_are_drawn_by_class_from_a_folder_without_splits(flat: Path) -> None:
    source, data = data_of(flat)
    train, val, test = greys(data)
    assert [len(part) for part in (train, val, test)] == [14, 2, 4]
    assert sorted(train + val + test) == [*range(10), *range(100, 110)]
    assert sum(grey < 100 for grey in test) == 2 and data.test.labels_N.tolist() == [0, 0, 1, 1]
    assert source.summary == (
        "data: 2 classes, 20 images: 16 training (2 of them for validation), 4 test"
        " (data.test_fraction=0.2)"
    )
    again, same = data_of(flat.rename(flat.parent / "moved"))
    assert again.key == source.key and greys(same) == [train, val, test]


def test_the_test_fraction_and_the_crop_are_part_of_the_key(flat: Path, root: Path) -> None:
    changes = ({}, {"test_fraction": 0.4}, {"crop": True}, {"crop": True, "image_size": 4})
    sources = [data_of(flat, **change)[0] for change in changes]
    assert len({source.key for source in sources}) == 4
    assert "8 test (data.test_fraction=0.4)" in sources[1].summary
    assert found(root).key != data_of(root, crop=True)[0].key


def test_copies_of_an_image_are_in_one_split(flat: Path) -> None:
    for i in range(10):
        for copy in ("cat/a", "dog/b"):  # of another class, too
            save(flat / f"{copy}{i}.png", plain(i))
    train, val, test = greys(data_of(flat)[1])
    assert len(test) == 3 * 2 + 2 and not {*test} & {*train, *val}


def test_test_images_that_are_training_images_too_are_warned_of(root: Path) -> None:
    assert not found(root).warnings
    save(root / "test/cat/copy.png", plain(1))
    (warning,) = found(root).warnings
    assert warning.startswith(
        "test images that are copies of training images: 1, as `test/cat/copy.png` of"
        " `train/cat/1.png`"
    )


@pytest.mark.parametrize("name", VALIDATION)
def test_a_validation_split_beside_a_test_split_is_used_as_it_is(root: Path, name: str) -> None:
    for c, one in enumerate(("cat", "dog")):
        save(root / name / one / "0.png", plain(200 + c))
    source, data = data_of(root)
    assert greys(data) == [[0, 1, 2, 100, 101, 102], [200, 201], [50, 150]]
    assert source.summary == "data: 2 classes, 10 images: 6 training, 2 validation, 2 test"
    with pytest.raises(DataError, match=r"val_fraction=0\.3` has no effect.*own split `val"):
        data_of(root, val_fraction=0.3)


@pytest.mark.parametrize("name", VALIDATION)
def test_a_validation_split_without_a_test_split_is_the_test_split(root: Path, name: str) -> None:
    (root / "test").rename(root / name)
    source, data = data_of(root)
    assert greys(data)[2] == [50, 150] and len(data.val) == 2
    assert source.summary == (
        "data: 2 classes, 8 images: 6 training (2 of them for validation), 2 test"
        f" (`{name}/`, as there is no `test/`)"
    )


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda root: (root / "val").mkdir(), "differ: only in `train` `cat`, `dog`, only in"),
        (lambda root: [(root / n).mkdir() for n in VALIDATION], "more than one validation split"),
    ],
)
def test_a_validation_split_that_does_not_fit_is_rejected(
    root: Path, change: object, reason: str
) -> None:
    change(root)  # type: ignore[operator]
    assert reason in rejected(root)


def test_a_test_fraction_of_a_folder_with_a_test_split_has_no_effect(root: Path) -> None:
    with pytest.raises(DataError, match=r"test_fraction=0\.3` has no effect.*own split `test`"):
        data_of(root, test_fraction=0.3)


def test_a_class_needs_two_images_of_its_own_for_a_test_image(flat: Path) -> None:
    for i in range(1, 10):
        (flat / f"cat/{i}.png").unlink()
    assert "class `cat`" in (reason := rejected(flat)) and "has 1 image;" in reason
    save(flat / "cat/0.png", plain(100))
    save(flat / "cat/1.png", plain(101))
    (flat / "cat").rename(flat / "elk")
    assert "class `elk`" in (reason := rejected(flat)) and "has no image of its own" in reason


def test_classes_may_be_named_as_splits_where_others_are_not(flat: Path) -> None:
    (flat / "dog").rename(flat / "valid")
    (flat / "cat").rename(flat / "invalid")
    assert found(flat).classes == ("invalid", "valid")


def test_a_folder_around_the_classes_is_named(flat: Path) -> None:
    (flat.parent / "outer").mkdir()
    flat.rename(flat.parent / "outer/photos")
    reason = rejected(flat.parent / "outer")
    assert "found `photos`" in reason and f"data.root={flat.parent}/outer/photos`" in reason


def test_the_centre_square_is_taken_in_training_as_in_prediction(flat: Path) -> None:
    pixels = np.zeros((8, 24, 3), dtype=np.uint8)
    pixels[:, 8:16] = 255
    for number, path in enumerate([*flat.rglob("*.png")]):
        pixels[0, 0] = number  # images of their own, which differ outside the centre
        save(path, pixels)
    path = flat / "cat/1.png"
    stretched = read_image(path, (3, 4, 4))
    assert int(stretched.min()) == 0 and int(read_image(path, (3, 4, 4), crop=True).min()) == 255
    source, data = data_of(flat, crop=True, image_size=4)
    assert data.crop and source.pixels == (4, 4)
    assert source.summary.endswith("; the centre square of each, at 4x4 pixels")
    assert data.train.images_NHWC.shape[1:] == (4, 4, 3)
    whole, kept = data_of(flat, crop=True)
    assert kept.image_shape == (3, 8, 8) and whole.pixels == (8, 8)


def test_photos_that_do_not_fit_the_memory_at_their_size_are_refused() -> None:
    check_memory(20, (8, 8, 3))
    with pytest.raises(DataError, match=r"(?s)4000x3000 pixels need 36000\.0 GB.*image_size=64"):
        check_memory(1_000_000, (3000, 4000, 3))


# What is rejected


def rejected(root: Path | None, size: int | None = None) -> str:
    with pytest.raises(DataError) as error:
        prepare(Env(torch.device("cpu")), source=found(root, size=size), val_fraction=0.0)
    assert error.value.hint
    return str(error.value)


def test_a_folder_data_set_needs_a_root() -> None:
    reason = rejected(None)
    assert "needs `data.root`" in reason and "ROOT/train/<class>" in reason


def test_a_root_that_is_not_there_or_is_a_file_is_named(root: Path) -> None:
    assert "does not exist" in rejected(root / "none")
    assert "is a file" in rejected(root / "train/cat/0.png")


def test_a_root_without_permission_is_named(root: Path) -> None:
    user, mode = os.geteuid(), root.stat().st_mode
    root.chmod(0)
    try:
        if user == 0:
            os.seteuid(65534)
        with pytest.raises(DataError, match="Permission denied"):
            found(root)
    finally:
        if user == 0:
            os.seteuid(0)
        root.chmod(mode)


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_missing_split_is_named_beside_what_was_found(root: Path, split: str) -> None:
    (root / split).rename(root / "other")
    reason = rejected(root)
    assert f"has no folder `{split}`" in reason and "`other`" in reason
    assert ("data.root=" in reason) == (split == "test")


def test_classes_must_be_the_same_in_both_splits(root: Path) -> None:
    save(root / "train/emu/0.png", plain(1))
    assert "only in `train` `emu`" in rejected(root)
    save(root / "test/emu/0.png", plain(1))
    save(root / "test/yak/0.png", plain(1))
    assert "only in `test` `yak`" in rejected(root)


@pytest.mark.parametrize(
    ("place", "target", "reason"),
    [
        ("cat/back", "..", "is a link to a folder that contains it"),
        ("cat/all", "/", "is a link to a folder that contains it"),
        ("cat/self", "self", "Too many levels of symbolic links"),
        ("cat/none.png", "none", "No such file"),
    ],
)
def test_a_link_that_leads_nowhere_or_in_a_circle_is_named(
    root: Path, place: str, target: str, reason: str
) -> None:
    (root / "train" / place).symlink_to(target)
    with pytest.raises(DataError, match=rf"{place}`.*{reason}"):
        found(root)


def test_a_pipe_with_the_name_of_an_image_is_not_waited_for(root: Path) -> None:
    os.mkfifo(root / "train/cat/a.png")
    assert "a.png` is no regular file" in rejected(root)
    with pytest.raises(DataError, match="no regular file"):
        read_image(root / "train/cat/a.png", (3, 8, 8))


def test_linked_folders_of_many_are_read_in_linear_time(root: Path) -> None:
    """Each of 12 folders links to all: there are 12! paths without a circle."""
    folders = [root / f"train/cat/{i:02}" for i in range(12)]
    for folder in folders:
        folder.mkdir()
        for other in folders:
            if other != folder:
                (folder / other.name).symlink_to(other)
    save(folders[0] / "a.png", plain(5))
    assert found(root).images == 9


@pytest.mark.parametrize("other", ["cafe\u0301", "caf\xe9 ", "caf\xe9\u200b"])
@pytest.mark.parametrize("splits", [("train", "test"), ("test",)])
def test_class_names_that_print_alike_are_told_apart_in_the_error(
    root: Path, other: str, splits: tuple[str, ...]
) -> None:
    """NFC and NFD, as files from a Mac have it; a blank at the end; a zero-width character."""
    for split in ("train", "test"):
        (root / split / "cat").rename(root / split / "caf\xe9")
    for split in splits:
        (root / split / "dog").rename(root / split / other)
    reason = rejected(root)
    assert "print alike" in reason and ascii(other) in reason and r"'caf\xe9'" in reason


@pytest.mark.parametrize(
    ("name", "reason"),
    [(b"c\nt", "control character"), (b"\x1b[31m", "control character"), (b"c\xe9", "UTF-8")],
)
def test_a_class_name_that_a_table_can_not_show_is_refused(
    root: Path, name: bytes, reason: str
) -> None:
    for split in ("train", "test"):
        (root / split / "cat").rename(root / split / os.fsdecode(name))
    with pytest.raises(ConfigError, match=reason):
        found(root)


def test_an_image_whose_name_is_no_text_is_refused(root: Path) -> None:
    (root / "train/cat/0.png").rename(root / "train/cat" / os.fsdecode(b"\xe9.png"))
    with pytest.raises(ConfigError, match="not UTF-8"):
        found(root)


def test_one_training_image_a_class_leaves_none_to_hold_out(root: Path) -> None:
    for name, i in product(("cat", "dog"), (1, 2)):
        (root / f"train/{name}/{i}.png").unlink()
    with pytest.raises(
        DataError, match=r"val_fraction=0\.1` holds out nothing.*\nhint: add images"
    ):
        found(root)
    data = config.DataConfig(name="folder", root=root, val_fraction=0)
    assert locate(data, root.parent / "home").images == 4


def header_of(pixels: int) -> bytes:
    """The head of a portable greymap of so many pixels, which do not follow."""
    return f"P5 10000 {pixels // 10_000} 255\n".encode()


def test_an_image_too_large_for_pillow_is_named_and_half_as_many_pixels_are_no_warning(
    root: Path,
) -> None:
    path = root / "train/cat/0.png"
    path.write_bytes(header_of(200_000_000))
    reason = rejected(root)
    assert "cat/0.png` has more than 178,956,970 pixels" in reason and "smaller" in reason
    path.write_bytes(header_of(100_000_000))
    assert size_of(path) == (10_000, 10_000)
    assert "can't decode" in rejected(root)  # only its header is there


def test_one_class_is_not_enough(root: Path) -> None:
    for split in ("train", "test"):
        (root / split / "dog").rename(root / split / ".dog")
    assert "2 or more class folders; found `cat`" in rejected(root)


def test_a_class_without_images_is_named(root: Path) -> None:
    (root / "test/dog/0.png").rename(root / "test/dog/0.txt")
    reason = rejected(root)
    assert "test/dog` contains no image; found `0.txt`" in reason and "*.png" in reason


@pytest.mark.parametrize(
    "content",
    [b"", b"not an image", b"\x89PNG\r\n\x1a\n" + bytes(40)],
    ids=["none", "text", "png"],
)
def test_an_image_of_damaged_bytes_is_named(root: Path, content: bytes) -> None:
    (root / "train/dog/1.png").write_bytes(content)
    assert "dog/1.png`" in rejected(root)


def test_an_image_cut_short_is_named(root: Path) -> None:
    noise = np.random.RandomState(0).randint(0, 256, (8, 8, 3), dtype=np.uint8)
    path = save(root / "test/cat/9.jpg", noise)
    path.write_bytes(path.read_bytes()[:-60])
    reason = rejected(root)
    assert "cat/9.jpg`" in reason and "re-encode" in reason


def test_images_of_differing_sizes_need_an_image_size(root: Path) -> None:
    save(root / "test/dog/0.png", plain(1)[:6])
    reason = rejected(root)
    assert "is 8x8" in reason and "dog/0.png` is 8x6" in reason and "data.image_size=32" in reason
    assert prepared(root, size=4).image_shape == (3, 4, 4)


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_a_download_that_fails_says_what_was_tried(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")  # the discard port: no server
    for variable in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(urllib.request, "_opener", None)  # it keeps the proxies it began with
    with pytest.raises(DataError) as error:
        found(tmp_path / name, name)
    reason = str(error.value)
    assert f"`{name}` is not in `{tmp_path / name}`" in reason and "refused" in reason
    assert f"data.name={name} data.root=DIR" in error.value.hint
    assert list((tmp_path / name).iterdir()) == []


# What is decoded


def test_a_folder_decodes_to_its_pixels_class_by_class(root: Path) -> None:
    data = prepared(root)
    assert data.train.images_NHWC.shape == (6, 8, 8, 3)
    assert data.train.images_NHWC[:, 0, 0, 0].tolist() == [0, 1, 2, 100, 101, 102]
    assert data.train.labels_N.tolist() == [0, 0, 0, 1, 1, 1]
    assert data.test.images_NHWC[:, 0, 0, 0].tolist() == [50, 150]
    assert (data.name, data.classes, data.image_shape) == ("folder", ("cat", "dog"), (3, 8, 8))
    assert len(data.val) == 0 and data.val.images_NHWC.shape == (0, 8, 8, 3)


def test_extensions_are_read_in_any_case(root: Path) -> None:
    save(root / "train/cat/3.PNG", plain(3))
    save(root / "train/cat/4.Bmp", plain(4))
    assert prepared(root).train.images_NHWC[3:5, 0, 0, 0].tolist() == [3, 4]


@pytest.mark.parametrize("extension", ["png", "bmp", "gif", "webp", "ppm", "pgm", "tif", "tiff"])
def test_every_lossless_format_gives_the_same_pixels(root: Path, extension: str) -> None:
    options = {"lossless": True} if extension == "webp" else {}
    image = Image.fromarray(plain(77))
    image = image.convert("L") if extension == "pgm" else image
    pixels = added(root, image, f"cat/a.{extension}", **options)
    assert pixels == plain(77).tolist()


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK"])
def test_other_modes_become_rgb(root: Path, mode: str) -> None:
    image = Image.fromarray(plain(255)).convert(mode)
    name = "cat/a.tif" if mode == "CMYK" else "cat/a.png"
    assert added(root, image, name) == plain(255).tolist()


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_composited_over_black(root: Path, mode: str) -> None:
    image = Image.new(mode, (8, 8), (200, 200, 200, 51) if mode == "RGBA" else (200, 51))
    assert added(root, image) == plain(40).tolist()


def test_a_transparent_palette_entry_is_black(root: Path) -> None:
    image = Image.new("P", (8, 8), 1)
    image.putpalette([9, 9, 9, 200, 100, 50])
    image.putpixel((0, 0), 0)
    pixels = added(root, image, transparency=1)
    assert pixels[0][0] == [9, 9, 9] and pixels[1][1] == [0, 0, 0]


def test_bytes_of_transparency_in_a_palette_weigh_its_colours(root: Path) -> None:
    image = Image.new("P", (8, 8), 1)
    image.putpalette([9, 9, 9, 200, 100, 50])
    assert added(root, image, transparency=bytes([255, 51]))[3][3] == [40, 20, 10]


def test_sixteen_bits_of_grey_are_scaled_to_eight(root: Path) -> None:
    grey = np.linspace(0, 65535, 64).reshape(8, 8).astype(np.uint16)
    want = np.rint(grey / 257).astype(int)
    for name in ("cat/a.png", "cat/b.tif"):
        assert np.array_equal(np.array(added(root, Image.fromarray(grey), name))[..., 1], want)
    values = struct.pack(">64H", *grey.ravel().tolist())
    (root / "train/cat/c.pgm").write_bytes(b"P5 8 8 65535\n" + values)
    assert np.array_equal(prepared(root).train.images_NHWC[5, ..., 1].numpy(), want)


def test_floating_point_pixels_are_refused(root: Path) -> None:
    save(root / "train/cat/a.tif", np.zeros((8, 8), dtype=np.float32))
    assert "floating-point" in rejected(root)


def test_exif_orientation_is_applied(root: Path) -> None:
    pixels = plain(0)
    pixels[0] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned right: the top row is seen on the right
    shown = np.array(added(root, Image.fromarray(pixels), "cat/a.png", exif=exif))
    assert (shown[:, 7] == 255).all() and (shown[:, :7] == 0).all()


def test_images_are_resized_to_a_square(root: Path) -> None:
    left = np.zeros((16, 32, 3), dtype=np.uint8)
    left[:, :16] = 255
    save(root / "train/cat/0.png", left)
    image = prepared(root, size=8).train.images_NHWC[0]
    assert image.shape == (8, 8, 3)
    assert (image[:, :3] > 230).all() and (image[:, 5:] < 25).all()


def test_large_images_decode_in_threads_to_the_same_pixels(root: Path) -> None:
    small = prepared(root)
    for path in root.rglob("*.png"):
        save(path, np.asarray(Image.open(path).resize((128, 128))))
    large = prepared(root)
    assert torch.equal(large.train.images_NHWC[:, :8, :8], small.train.images_NHWC)


def test_one_image_is_read_as_its_data_set_reads_it(root: Path) -> None:
    path = root / "train/dog/1.png"
    assert torch.equal(read_image(path, (3, 8, 8)), prepared(root).train.images_NHWC[4])
    small = prepared(root, size=4).train.images_NHWC[4]
    assert torch.equal(read_image(path, (3, 4, 4)), small)
    assert read_image(path, (1, 6, 8)).tolist() == [[[101]] * 8] * 6
    path.write_bytes(b"")
    with pytest.raises(DataError, match=r"dog/1\.png"):
        read_image(path, (3, 8, 8))


def test_digits_are_split_the_same_way_every_time() -> None:
    data = prepare(Env(torch.device("cpu")), source=found(None, "digits"), val_fraction=0.1)
    assert (len(data.train) + len(data.val), len(data.test)) == (1437, 360)
    assert data.image_shape == (1, 8, 8) and data.classes == tuple("0123456789")
    images = data.train.images_NHWC
    assert images.dtype == torch.uint8 and int(images.max()) == 255
    assert data.train.labels_N.dtype == torch.int64
    assert data.test.labels_N.bincount().min() >= 34


def test_digits_resize_too() -> None:
    data = prepare(Env(torch.device("cpu")), source=found(None, "digits", 16), val_fraction=0.0)
    assert data.image_shape == (1, 16, 16) and len(data.train) == 1437


def fashion(root: Path, n: int = 20) -> None:
    """The raw files of a tiny Fashion-MNIST."""
    folder = root / "FashionMNIST/raw"
    folder.mkdir(parents=True)
    labels = np.arange(n, dtype=np.uint8) % 10
    images = np.repeat(labels, 28 * 28)
    for part in ("train", "t10k"):
        head = struct.pack(">4i", 0x803, n, 28, 28)
        (folder / f"{part}-images-idx3-ubyte").write_bytes(head + images.tobytes())
        head = struct.pack(">2i", 0x801, n)
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(head + labels.tobytes())


def test_a_copy_of_a_public_set_is_read_without_a_download(tmp_path: Path) -> None:
    fashion(tmp_path / "copy")
    source = found(tmp_path / "copy", "fashion_mnist")
    data = prepare(Env(torch.device("cpu")), source=source, val_fraction=0.5)
    assert data.image_shape == (1, 28, 28) and data.classes[9] == "Ankle boot"
    assert (len(data.train), len(data.val), len(data.test)) == (10, 10, 20)
    assert torch.equal(data.test.images_NHWC[:, 3, 3, 0].long(), data.test.labels_N)


def test_a_damaged_public_set_is_named(tmp_path: Path) -> None:
    fashion(tmp_path / "copy")
    path = tmp_path / "copy/FashionMNIST/raw/t10k-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match="can't read `fashion_mnist`"):
        prepare(
            Env(torch.device("cpu")),
            source=found(tmp_path / "copy", "fashion_mnist"),
            val_fraction=0.0,
        )


class Recorder(Silent):
    def __init__(self) -> None:
        self.events: list[tuple[int, int]] = []

    def advanced(self, stage: str, done: int, total: int, metrics: object) -> None:
        self.events.append((done, total))


def test_progress_ends_at_the_total(root: Path) -> None:
    recorder = Recorder()
    prepare(Env(torch.device("cpu"), recorder), source=found(root), val_fraction=0.0)
    assert recorder.events == [(6, 8), (8, 8)]


# Splits and statistics

LABELS = st.lists(st.integers(0, 5), min_size=1, max_size=200).map(np.array)


@given(LABELS, st.floats(0, 0.5))
def test_a_split_is_a_sorted_partition_of_the_asked_size(
    labels: np.ndarray, fraction: float
) -> None:
    train, val = stratified_split(labels, fraction)
    assert sorted([*train, *val]) == list(range(len(labels)))
    assert all((np.diff(part) > 0).all() for part in (train, val))
    for label in np.unique(labels):
        n, held = (labels == label).sum(), (labels[val] == label).sum()
        assert n - held >= 1
        assert held == min(max(round(fraction * n), int(fraction > 0)), n - 1)


@given(LABELS, st.floats(0, 0.5))
def test_a_split_is_the_same_each_time(labels: np.ndarray, fraction: float) -> None:
    first, second = (stratified_split(labels, fraction) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def test_another_seed_gives_another_split() -> None:
    labels = np.repeat(np.arange(10), 50)
    assert not np.array_equal(*(stratified_split(labels, 0.2, seed)[1] for seed in (0, 1)))


def test_validation_images_are_none_of_the_training_images(root: Path) -> None:
    data = prepared(root, val_fraction=0.4)
    seen = [set(part.images_NHWC[:, 0, 0, 0].tolist()) for part in (data.train, data.val)]
    assert (len(data.train), len(data.val)) == (4, 2)
    assert seen[0] | seen[1] == {0, 1, 2, 100, 101, 102}
    assert data.train.images_NHWC.is_contiguous()
    assert data.mean == mean_std(data.train.images_NHWC)[0]


@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 3]), st.integers(1, 600))
def test_mean_and_std_are_those_of_all_pixels(seed: int, channels: int, n: int) -> None:
    random = np.random.RandomState(seed)
    images = random.randint(0, 256, (n, 2, 3, channels), dtype=np.uint8)
    mean, std = mean_std(torch.from_numpy(images))
    pixels = images.astype(np.float64) / 255
    np.testing.assert_allclose(mean, pixels.mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(std, np.maximum(pixels.std((0, 1, 2)), STD_FLOOR), rtol=1e-9)


def test_a_constant_channel_can_still_be_divided_by() -> None:
    assert mean_std(torch.full((5, 4, 4, 1), 255, dtype=torch.uint8)) == ((1.0,), (1 / 255,))
