"""Small networks of others: what they cost, by their published figures and by a second count.

fvcore counts a multiply-add as one, two operations an element for batch norm, and the inputs of
average pooling.
"""

import pytest
import torch
from torch import nn

from moist.measure.multiply_adds import cost
from moist.nets.peers import PEERS, ResNet8, mobilenetv2_x0_5, shufflenetv2_x0_5

CIFAR = (3, 32, 32)

COSTS = {
    "resnet8": (12_501_632, 78_186),
    "resnet20": (40_813_184, 272_474),
    "shufflenetv2_x0_5": (10_902_016, 352_042),
    "mobilenetv2_x0_5": (27_969_024, 700_490),
    "residual_2mf": (2_470_528, 72_954),
    "residual_7mf": (6_590_240, 189_390),
    "residual_9mf": (9_456_576, 272_194),
    "residual_26mf": (26_025_248, 387_418),
}
"""Multiply-adds and weights for CIFAR-10."""

PUBLISHED = {
    "resnet20": (40.81, 0.27),
    "shufflenetv2_x0_5": (10.90, 0.35),
    "mobilenetv2_x0_5": (27.97, 0.70),
}
"""The same in millions, from the table of chenyaofo/pytorch-cifar-models."""


@pytest.mark.parametrize("name", PEERS)
def test_a_peer_costs_what_fvcore_says_to_the_unit(name: str) -> None:
    found = cost(PEERS[name].build(CIFAR, 10), CIFAR)
    assert (found.macs, found.params) == COSTS[name]


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_peer_costs_what_its_authors_say(name: str) -> None:
    assert tuple(round(count / 1e6, 2) for count in COSTS[name]) == PUBLISHED[name]


def test_resnet8_has_flops_beyond_its_multiply_adds_in_batch_norm_and_pooling() -> None:
    found = cost(ResNet8(CIFAR, 10), CIFAR)
    assert found.flops - found.macs == 2 * (3 * 16 * 1024 + 2 * 32 * 256 + 2 * 64 * 64) + 64 * 64


def test_resnet8s_weights_are_those_of_its_layers_each_with_a_bias() -> None:
    stem = 27 * 16 + 16
    first = 2 * (144 * 16 + 16)
    second = (144 * 32 + 32) + (288 * 32 + 32) + (16 * 32 + 32)
    third = (288 * 64 + 64) + (576 * 64 + 64) + (32 * 64 + 64)
    batch_norm = 2 * (3 * 16 + 2 * 32 + 2 * 64)
    assert stem + first + second + third + batch_norm + 64 * 10 + 10 == COSTS["resnet8"][1]


def test_resnet20s_multiply_adds_are_those_of_its_twenty_layers_and_two_shortcuts() -> None:
    first = 9 * 3 * 16 * 32**2 + 6 * 9 * 16 * 16 * 32**2
    second = (9 * 16 * 32 + 5 * 9 * 32 * 32 + 16 * 32) * 16**2
    third = (9 * 32 * 64 + 5 * 9 * 64 * 64 + 32 * 64) * 8**2
    assert first + second + third + 64 * 10 == COSTS["resnet20"][0]


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        ("residual_2mf", ((16, 1), (32, 2), (64, 2))),
        ("residual_7mf", ((20, 2), (40, 3), (80, 3))),
        ("residual_9mf", ((24, 2), (48, 3), (96, 3))),
    ],
)
def test_a_residual_networks_multiply_adds_are_those_of_its_convolutions_and_no_shortcut(
    name: str, stages: tuple[tuple[int, int], ...]
) -> None:
    inputs = stages[0][0]
    total, normed, area = 9 * 3 * inputs * 16**2, inputs * 16**2, 16**2
    for width, count in stages:
        total += 9 * (inputs * width + (count - 1) * width**2) * area
        normed += width * count * area
        inputs, last, area = width, width * area, area // 4
    assert total + inputs * 10 == COSTS[name][0]
    found = cost(PEERS[name].build(CIFAR, 10), CIFAR)
    assert found.flops - found.macs == 2 * normed + last


def test_the_pooled_residual_network_convolves_before_and_after_each_pooling() -> None:
    total, inputs = 4 * 3 * 24 * 31**2, 24
    for width, before, after in [(32, 31, 15), (96, 15, 7), (128, 7, 3)]:
        total += 9 * inputs * width * before**2 + 9 * width**2 * after**2
        inputs = width
    assert total + 128 * 10 == COSTS["residual_26mf"][0]


def test_shufflenets_multiply_adds_are_those_of_its_branches() -> None:
    total, inputs = 9 * 3 * 24 * 32**2, 24
    for outputs, repeats, side in [(48, 4, 16), (96, 8, 8), (192, 4, 4)]:
        half, area = outputs // 2, side**2
        total += (9 * inputs + inputs * half) * area  # the shortcut that halves the side
        total += (4 * inputs * half + 9 * half + half * half) * area
        total += (repeats - 1) * (half * half + 9 * half + half * half) * area
        inputs = outputs
    assert total + 192 * 1024 * 4**2 + 1024 * 10 == COSTS["shufflenetv2_x0_5"][0]


def test_mobilenets_multiply_adds_are_those_of_its_bottlenecks() -> None:
    total, inputs, before = 9 * 3 * 16 * 32**2, 16, 32
    stages = [
        (8, 1, 32),
        (16, 2, 32),
        (16, 3, 16),
        (32, 4, 8),
        (48, 3, 8),
        (80, 3, 4),
        (160, 1, 4),
    ]
    for stage, (outputs, repeats, side) in enumerate(stages):
        for _ in range(repeats):
            wide = 6 * inputs if stage else inputs
            total += inputs * wide * before**2 if stage else 0
            total += (9 * wide + wide * outputs) * side**2
            inputs, before = outputs, side
    assert total + 160 * 1280 * 4**2 + 1280 * 10 == COSTS["mobilenetv2_x0_5"][0]


def test_peers_from_torchvision_keep_its_names_and_differ_in_the_stem() -> None:
    from torchvision.models import mobilenet_v2, shufflenet_v2_x0_5

    pairs = [
        (shufflenetv2_x0_5, shufflenet_v2_x0_5(num_classes=10), "conv1.0"),
        (mobilenetv2_x0_5, mobilenet_v2(num_classes=10, width_mult=0.5), "features.0.0"),
    ]
    for build, theirs, stem in pairs:
        wanted, ours = theirs.state_dict(), build((1, 8, 8), 10).state_dict()
        assert list(ours) == list(wanted)
        assert [n for n in ours if ours[n].shape != wanted[n].shape] == [f"{stem}.weight"]


def test_resnet20_has_the_names_of_a_torchvision_resnet_of_three_stages() -> None:
    from torchvision.models.resnet import BasicBlock, ResNet

    theirs = ResNet(BasicBlock, [3, 3, 3, 0], num_classes=10).state_dict()
    ours = PEERS["resnet20"].build(CIFAR, 10).state_dict()
    assert list(ours) == [name for name in theirs if not name.startswith("layer4")]


@pytest.mark.parametrize(
    ("name", "sides"),
    [
        ("resnet8", [32, 16, 8]),
        ("resnet20", [32, 16, 8]),
        ("shufflenetv2_x0_5", [16, 8, 4]),
        ("mobilenetv2_x0_5", [32, 16, 8, 4]),
        ("residual_7mf", [16, 8, 4]),
        ("residual_26mf", [15, 7, 3]),
    ],
)
def test_a_peers_stages_end_where_the_resolution_halves(name: str, sides: list[int]) -> None:
    net = PEERS[name].build(CIFAR, 10).eval()
    found: list[int] = []
    for level in PEERS[name].levels:
        stage = net.get_submodule(level)
        stage.register_forward_hook(lambda _, __, maps_BCHW: found.append(maps_BCHW.shape[3]))
    with torch.inference_mode():
        net(torch.zeros(1, *CIFAR))
    assert found == sides


@pytest.mark.parametrize("name", PEERS)
def test_a_peer_takes_any_number_of_channels_and_small_images(name: str) -> None:
    for shape in [(1, 8, 8), (1, 28, 28), (5, 9, 12)]:
        net: nn.Module = PEERS[name].build(shape, 3).eval()
        with torch.inference_mode():
            assert net(torch.zeros(2, *shape)).shape == (2, 3)
