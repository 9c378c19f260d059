"""Teachers and students: the figures that the paper's own counts give, and what they are made of.

fvcore counts a multiply-add as one, two operations an element for batch norm, and the inputs of
average pooling.
"""

import pytest
import torch
from torch import nn

from moist.measure.multiply_adds import cost, count_flops
from moist.nets.build import module
from moist.nets.cnn import CNN, pooled, resnet18
from moist.nets.peers import ResNet8, stem
from moist.store.artifacts import Spec, Teacher

CIFAR = (3, 32, 32)


def student(width: int, batch_norm: bool = False) -> nn.Module:
    return CNN(CIFAR, 10, hidden_width=width, channels=(32, 64), batch_norm=batch_norm)


def test_the_teacher_costs_what_fvcore_says_to_the_unit() -> None:
    found = cost(resnet18(CIFAR, 10), CIFAR)
    assert found.flops == 556_659_712
    assert found.macs == 555_422_720
    assert found.params == 11_173_962


def test_the_teachers_cost_is_the_sum_of_its_operators() -> None:
    assert count_flops(resnet18(CIFAR, 10), CIFAR) == {
        "conv": 555_417_600,
        "linear": 5_120,
        "batch_norm": 1_228_800,
        "adaptive_avg_pool2d": 8_192,
    }


@pytest.mark.parametrize(("width", "macs"), [(16, 5_669_024), (256, 6_654_464), (1024, 9_807_872)])
def test_a_student_costs_what_fvcore_says_to_the_unit(width: int, macs: int) -> None:
    found = cost(student(width), CIFAR)
    assert found.flops == found.macs == macs


def test_batch_norm_adds_flops_but_no_multiply_adds() -> None:
    plain, normed = cost(student(256), CIFAR), cost(student(256, batch_norm=True), CIFAR)
    assert normed.macs == plain.macs
    assert normed.flops - plain.flops == 2 * (32 * 32 * 32 + 64 * 16 * 16)


def test_a_students_weights_are_counted_each_once() -> None:
    found = cost(student(256), CIFAR)
    expected = (27 + 1) * 32 + (288 + 1) * 64 + (4096 + 1) * 256 + (256 + 1) * 10
    assert found.params == expected
    assert found.bytes == 4 * expected


def test_the_teacher_is_torchvisions_with_another_stem() -> None:
    from torchvision.models import resnet18 as torchvision_resnet18

    torch.manual_seed(0)
    theirs = torchvision_resnet18(num_classes=10)
    theirs.conv1, theirs.maxpool = stem(CIFAR, 64), nn.Identity()
    torch.manual_seed(0)
    ours = resnet18(CIFAR, 10)
    assert [*ours.state_dict()] == [*theirs.state_dict()]
    images = torch.randn(2, *CIFAR)
    assert torch.equal(ours(images), theirs(images))


def test_the_teacher_keeps_the_resolution_of_small_images_in_its_stem() -> None:
    net = resnet18(CIFAR, 10)
    begin = nn.Sequential(net.conv1, net.bn1, net.relu, net.layer1)
    assert begin(torch.zeros(2, *CIFAR)).shape == (2, 64, 32, 32)


@pytest.mark.parametrize("side", [4, 7, 8, 30, 32, 45])
def test_pooled_is_the_side_that_two_poolings_leave(side: int) -> None:
    twice = nn.Sequential(nn.MaxPool2d(2), nn.MaxPool2d(2))
    assert twice(torch.zeros(1, 1, side, side)).shape[2] == pooled(side)


def test_a_student_sees_the_order_of_the_pixels() -> None:
    net = student(16)
    x_BCHW = torch.randn(1, *CIFAR, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert not torch.allclose(net(x_BCHW), net(x_BCHW.flip(2)))
        assert not torch.allclose(net(x_BCHW), net(x_BCHW.flip(3)))


def test_a_module_is_placed_in_the_memory_format_of_the_batches() -> None:
    fresh = ResNet8((3, 8, 8), 4)
    net = module(Teacher(Spec("resnet8", (3, 8, 8), 4, {}), fresh.state_dict(), ()))
    convolution = net.get_parameter("blocks.1.conv1.weight")
    assert convolution.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(convolution, fresh.get_parameter("blocks.1.conv1.weight"))
