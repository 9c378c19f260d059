"""A home folder that the tests of systems share, and a folder of images."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from recipes import ran


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One home for all tests that only add to it, with the tiny run in it."""
    home = tmp_path_factory.mktemp("home")
    ran(home)
    return home


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three classes of eight training and three test images, 8x8 in colour, each of its hue."""
    random = np.random.default_rng(0)
    for split, count in (("train", 8), ("test", 3)):
        for c, name in enumerate(("blue", "green", "red")):
            place = tmp_path / "images" / split / name
            place.mkdir(parents=True)
            for i in range(count):
                pixels = random.integers(0, 60, (8, 8, 3), dtype=np.uint8)
                pixels[..., 2 - c] += 180
                Image.fromarray(pixels).save(place / f"{i}.png")
    return tmp_path / "images"
