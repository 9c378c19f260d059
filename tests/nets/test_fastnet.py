"""Fast teachers: what they cost, what they start from, and what their stem does to patches."""

import pytest
import torch
from torch.nn import functional as F

from moist.measure.multiply_adds import cost
from moist.nets.cnn import TEACHERS
from moist.nets.fastnet import FastBlock, FastNet, whiten

CIFAR = (3, 32, 32)


@pytest.mark.parametrize(
    ("name", "widths", "macs"),
    [("fastnet", (64, 256, 256), 118_147_360), ("fastnet_wide", (128, 384, 384), 301_560_864)],
)
def test_its_multiply_adds_are_those_of_its_seven_convolutions(
    name: str, widths: tuple[int, ...], macs: int
) -> None:
    found = cost(TEACHERS[name].build(CIFAR, 10), CIFAR)
    total, inputs, side = 12 * 24 * 31**2, 24, 31
    for width in widths:
        total += 9 * inputs * width * side**2 + 9 * width**2 * (side // 2) ** 2
        inputs, side = width, side // 2
    assert found.macs == macs == total + 10 * inputs


def test_a_block_begins_by_passing_its_maps_through() -> None:
    block, x_BCHW = FastBlock(4, 8), torch.randn(2, 4, 6, 6)
    torch.testing.assert_close(block.conv1(x_BCHW)[:, :4], x_BCHW)
    y_BCHW = torch.randn(2, 8, 6, 6)
    torch.testing.assert_close(block.conv2(y_BCHW), y_BCHW)
    assert block.conv1.weight[4:].any() and not torch.equal(block.conv1(x_BCHW)[:, 4:], x_BCHW)


def test_logits_are_a_ninth_of_the_last_layers_of_the_largest_pixels() -> None:
    net = FastNet(CIFAR, 5, (8, 8, 8)).eval()
    seen: list[torch.Tensor] = []
    net.blocks.register_forward_hook(lambda _, __, maps_BCHW: seen.append(maps_BCHW))
    with torch.inference_mode():
        logits_BC = net(torch.randn(2, *CIFAR))
        torch.testing.assert_close(logits_BC * 9, net.fc(seen[0].amax((2, 3))))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_whitened_stem_gives_uncorrelated_maps_of_deviation_1_and_their_negatives(
    channels: int,
) -> None:
    generator = torch.Generator().manual_seed(0)
    images_NCHW = F.avg_pool2d(torch.randn(600, channels, 11, 11, generator=generator), 3, 1)
    net = FastNet((channels, 9, 9), 2, (8, 8, 8))
    whiten(net.stem, images_NCHW)
    maps_CM = net.stem(images_NCHW).detach().transpose(0, 1).flatten(1)
    half = len(maps_CM) // 2
    assert half == 4 * channels
    torch.testing.assert_close(maps_CM[half:], -maps_CM[:half])
    torch.testing.assert_close(maps_CM[:half].cov(), torch.eye(half), atol=0.05, rtol=0)
    assert not net.stem.weight.requires_grad and net.stem.bias.requires_grad


def test_the_filters_of_a_stem_do_not_depend_on_the_signs_of_a_decomposition() -> None:
    """Images whose channels are exchanged have the same filters with channels exchanged."""
    images_NCHW = torch.randn(50, 2, 5, 5, generator=torch.Generator().manual_seed(1))
    images_NCHW[:, 0] *= 3
    one, other = (FastNet((2, 5, 5), 2, (8, 8, 8)).stem for _ in range(2))
    whiten(one, images_NCHW)
    whiten(other, images_NCHW.flip(1))
    torch.testing.assert_close(one.weight, other.weight.flip(1), atol=1e-4, rtol=1e-4)


def test_a_patch_direction_without_variance_stays_finite() -> None:
    net = FastNet((1, 4, 4), 2, (8, 8, 8))
    whiten(net.stem, torch.zeros(3, 1, 4, 4))
    assert net.stem.weight.isfinite().all()
