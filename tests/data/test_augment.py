"""Training views: what is done to the pixels, and that only seed, view and image decide it."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moist.config import AugmentConfig
from moist.data.augment import (
    Batch,
    Pass,
    View,
    batches,
    draw,
    normalize,
    plain_batches,
    render,
)
from moist.data.random import derive
from moist.errors import ConfigError
from moist.store.artifacts import Dataset, Split

CPU = torch.device("cpu")
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
ALL = AugmentConfig(flip=True, shift=2, cutout=3)
NONE = AugmentConfig(flip=False, shift=0, cutout=0)


def pictures(n: int = 12, height: int = 8, width: int = 8, channels: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(n)
    shape = (n, height, width, channels)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def split(n: int) -> Split:
    return Split(pictures(n), torch.arange(n) % 3)


def dataset(train: Split) -> Dataset:
    return Dataset("pictures", ("a", "b", "c"), MEAN, STD, train, val=split(0), test=split(0))


def same(n: int, flip: bool = False, dy: int = 0, dx: int = 0, y: int = 0, x: int = 0) -> View:
    """The same change for each of n images."""
    return View(torch.full((n,), flip), *(torch.full((n,), value) for value in (dy, dx, y, x)))


def passed(
    split: Split,
    augment: AugmentConfig = ALL,
    seed: int = 0,
    view: int = 0,
    order: int = 0,
    batch_size: int = 4,
    shown_N: torch.Tensor | None = None,
) -> Iterator[Batch]:
    return batches(
        dataset(split),
        Pass(view, order, shown_N),
        augment=augment,
        seed=seed,
        batch_size=batch_size,
        device=CPU,
    )


def gathered(parts: Iterator[Batch]) -> torch.Tensor:
    """All images of a pass, back in the split's order."""
    seen = list(parts)
    index = torch.cat([batch.index_B for batch in seen])
    return torch.cat([batch.images_BCHW for batch in seen])[index.argsort()]


# The pixels


def test_normalized_pixels_are_as_defined() -> None:
    images = pictures()
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    want = (images.permute(0, 3, 1, 2).float() / 255 - mean) / std
    torch.testing.assert_close(normalize(images, MEAN, STD), want, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("channels", [1, 3])
def test_rendered_images_are_float32_and_channels_last(channels: int) -> None:
    images = pictures(5, 6, 8, channels)
    mean, std = MEAN[:channels], STD[:channels]
    view = draw(5, ALL, (6, 8), 0, 0)
    for rendered in (render(images, view, ALL, mean, std), normalize(images, mean, std)):
        assert rendered.shape == (5, channels, 6, 8) and rendered.dtype == torch.float32
        assert rendered.is_contiguous(memory_format=torch.channels_last)


def test_no_augmentation_only_normalizes() -> None:
    images = pictures()
    view = draw(12, NONE, (8, 8), 0, 0)
    assert torch.equal(render(images, view, NONE, MEAN, STD), normalize(images, MEAN, STD))


def test_rendering_leaves_the_images_as_they_are() -> None:
    images = pictures()
    before = images.clone()
    render(images, draw(12, ALL, (8, 8), 0, 0), ALL, MEAN, STD)
    assert torch.equal(images, before)


def test_a_flip_mirrors_left_and_right_so_two_change_nothing() -> None:
    images, flip = pictures(), AugmentConfig(flip=True, shift=0)
    once = render(images, same(12, flip=True), flip, MEAN, STD)
    assert torch.equal(once, normalize(images, MEAN, STD).flip(3))
    twice = render(images.flip(2), same(12, flip=True), flip, MEAN, STD)
    assert torch.equal(twice, normalize(images, MEAN, STD))


@given(st.integers(2, 9), st.integers(2, 9), st.booleans(), st.data())
def test_a_shift_is_a_crop_of_the_reflect_padded_image(
    height: int, width: int, flip: bool, data: st.DataObject
) -> None:
    shift = data.draw(st.integers(0, min(height, width) - 1))
    dy, dx = (data.draw(st.integers(-shift, shift)) for _ in range(2))
    images = pictures(2, height, width)
    flat = normalize(images, MEAN, STD)
    pads = (shift, shift, shift, shift)
    padded = torch.nn.functional.pad(flat.flip(3) if flip else flat, pads, mode="reflect")
    want = padded[:, :, shift + dy : shift + dy + height, shift + dx : shift + dx + width]
    view = same(2, flip, dy, dx)
    got = render(images, view, AugmentConfig(flip=flip, shift=shift), MEAN, STD)
    assert torch.equal(got, want)


@given(st.integers(1, 12), st.integers(0, 7), st.integers(0, 5))
def test_cutout_sets_a_square_clipped_at_the_borders_to_the_mean(
    side: int, y: int, x: int
) -> None:
    images = pictures(2, 8, 6)
    got = render(images, same(2, y=y, x=x), AugmentConfig(shift=0, cutout=side), MEAN, STD)
    want = normalize(images, MEAN, STD)
    top, left = y - side // 2, x - side // 2
    want[:, :, max(top, 0) : top + side, max(left, 0) : left + side] = 0
    assert torch.equal(got, want)


# What is drawn


def test_draws_stay_in_their_bounds_and_reach_them() -> None:
    view = draw(5000, ALL, (6, 8), 0, 0)
    for values, low, high in (
        (view.dy_B, -2, 2), (view.dx_B, -2, 2), (view.cut_y_B, 0, 5), (view.cut_x_B, 0, 7),
    ):  # fmt: skip
        assert values.unique().tolist() == list(range(low, high + 1))
    assert 0.45 < view.flip_B.float().mean() < 0.55
    assert not draw(100, NONE, (6, 8), 0, 0).flip_B.any()


@pytest.mark.parametrize("flip", [False, True])
def test_alternate_views_mirror_what_the_view_before_did_not(flip: bool) -> None:
    augment = AugmentConfig(flip=flip, shift=0, alternate=True)
    views = [draw(400, augment, (8, 8), 0, view).flip_B for view in range(4)]
    assert views[0].float().mean().item() == pytest.approx(0.5 * flip, abs=0.1)
    assert torch.equal(views[0], views[2]) and torch.equal(views[1], views[3])
    assert torch.equal(views[0], ~views[1])
    assert torch.equal(views[0], draw(400, AugmentConfig(flip=flip), (8, 8), 0, 0).flip_B)
    images = pictures()
    first, second = (
        render(images, draw(12, augment, (8, 8), 0, view), augment, MEAN, STD) for view in (0, 1)
    )
    assert torch.equal(second, first.flip(3))


def test_a_shift_that_reflection_cannot_fill_is_refused() -> None:
    draw(1, AugmentConfig(shift=5), (6, 8), 0, 0)
    with pytest.raises(ConfigError, match=r"augment\.shift=6") as error:
        draw(1, AugmentConfig(shift=6), (6, 8), 0, 0)
    assert "augment.shift=5" in error.value.hint


def test_one_augmentation_does_not_disturb_the_draws_of_another() -> None:
    full, bare = (draw(50, augment, (8, 8), 3, 1) for augment in (ALL, AugmentConfig(shift=2)))
    assert torch.equal(full.dx_B, bare.dx_B) and torch.equal(full.cut_x_B, bare.cut_x_B)


@given(st.integers(1, 40), st.integers(1, 40))
def test_the_draws_of_an_image_do_not_depend_on_how_many_there_are(n: int, more: int) -> None:
    few, many = draw(n, ALL, (8, 8), 0, 0), draw(n + more, ALL, (8, 8), 0, 0)
    assert torch.equal(few.dy_B, many.dy_B[:n]) and torch.equal(few.flip_B, many.flip_B[:n])


@given(st.integers(0, 2**31 - 1), st.text(), st.integers(0, 10**6))
def test_a_derived_seed_suits_torch_and_tells_streams_apart(seed: int, name: str, i: int) -> None:
    derived = derive(seed, name, i)
    assert 0 <= derived < 2**63 and derived == derive(seed, name, i)
    others = {derive(seed + 1, name, i), derive(seed, name, i + 1), derive(seed, name + "x", i)}
    assert derived not in others
    torch.Generator().manual_seed(derived)


def test_derived_seeds_are_the_same_on_every_machine() -> None:
    assert derive(0, "view", 0) == 5151351845430579485


# The batches


def test_one_seed_and_view_give_the_same_bits() -> None:
    first, second = (list(passed(split(11))) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a.index_B, b.index_B)
        assert torch.equal(a.images_BCHW, b.images_BCHW)


def test_another_view_or_seed_gives_other_images() -> None:
    images = [gathered(passed(split(12), **kind)) for kind in ({}, {"view": 1}, {"seed": 1})]
    assert not torch.equal(images[0], images[1]) and not torch.equal(images[0], images[2])


def test_order_and_batch_size_do_not_change_an_image() -> None:
    want = gathered(passed(split(13)))
    for order, size in ((1, 4), (0, 5), (7, 13), (2, 1)):
        assert torch.equal(gathered(passed(split(13), order=order, batch_size=size)), want)


def test_another_order_shuffles_anew() -> None:
    first, second = (torch.cat([b.index_B for b in passed(split(40), order=o)]) for o in (0, 1))
    assert not torch.equal(first, second)
    assert not torch.equal(first, torch.arange(40))


@given(st.integers(0, 40), st.integers(1, 12))
def test_a_pass_covers_each_image_once_with_its_label(n: int, size: int) -> None:
    data = split(n)
    for parts in (
        list(passed(data, batch_size=size)),
        list(plain_batches(data, mean=MEAN, std=STD, batch_size=size, device=CPU)),
    ):
        index = [i for batch in parts for i in batch.index_B.tolist()]
        assert sorted(index) == list(range(n))
        for batch in parts:
            assert torch.equal(batch.labels_B, data.labels_N[batch.index_B])
            assert len(batch.images_BCHW) == len(batch.index_B)


def test_a_pass_of_some_images_is_the_pass_of_all_without_the_others() -> None:
    shown_N = torch.arange(13) % 3 > 0
    parts = list(passed(split(13), order=2, shown_N=shown_N))
    assert [len(batch.index_B) for batch in parts] == [4, 4]
    index = torch.cat([batch.index_B for batch in parts])
    all_N = torch.cat([batch.index_B for batch in passed(split(13), order=2)])
    assert torch.equal(index, all_N[shown_N[all_N]])
    images = torch.cat([batch.images_BCHW for batch in parts])
    assert torch.equal(images, gathered(passed(split(13)))[index])


@given(st.integers(2, 60), st.integers(2, 12))
def test_no_training_batch_holds_a_single_image(n: int, size: int) -> None:
    sizes = [len(batch.index_B) for batch in passed(split(n), batch_size=size)]
    assert min(sizes) >= 2 and max(sizes) <= size + 1
    assert set(sizes[:-1]) <= {size}


def test_plain_batches_are_in_order_and_unchanged() -> None:
    data = split(10)
    parts = list(plain_batches(data, mean=MEAN, std=STD, batch_size=4, device=CPU))
    assert [batch.index_B.tolist() for batch in parts] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    images = torch.cat([batch.images_BCHW for batch in parts])
    assert torch.equal(images, normalize(data.images_NHWC, MEAN, STD))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU to compare with")
def test_a_gpu_renders_the_same_images() -> None:
    data, gpu = dataset(split(33)), torch.device("cuda")
    kind = dict(one=Pass(view=2, order=1), augment=ALL, seed=0, batch_size=8)
    pairs = zip(batches(data, device=CPU, **kind), batches(data, device=gpu, **kind), strict=True)
    for here, there in pairs:
        assert there.images_BCHW.device.type == "cuda"
        assert torch.equal(here.index_B, there.index_B.cpu())
        assert torch.equal(here.images_BCHW, there.images_BCHW.cpu())
