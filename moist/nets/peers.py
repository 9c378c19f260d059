"""Small networks that others use, in their forms for small images. B images, C channels, H x W.

Each is built for an image shape (C, H, W) and a number of outputs, and returns class logits.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

from moist.nets.entry import NetworkEntry, Shape
from moist.nets.residual import LEVELS, pooled_residual, residual


def stem(image_shape: Shape, outputs: int) -> nn.Conv2d:
    """Build a first convolution that keeps the resolution: small images have none to spare."""
    return nn.Conv2d(image_shape[0], outputs, 3, padding=1, bias=False)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut; the shortcut is a bare 1x1 convolution when the
    shape changes (as in MLPerf Tiny's reference, which has no batch norm there)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(outputs)
        changes = stride > 1 or inputs != outputs
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride=stride) if changes else nn.Identity()

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.bn1(self.conv1(x_BCHW)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x_BCHW))


class ResNet8(nn.Module):
    """MLPerf Tiny's image classifier: three residual blocks of 16, 32 and 64 filters."""

    def __init__(self, image_shape: Shape, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(image_shape[0], 16, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(16)
        self.blocks = nn.Sequential(
            ResidualBlock(16, 16, 1), ResidualBlock(16, 32, 2), ResidualBlock(32, 64, 2)
        )
        self.fc = nn.Linear(64, outputs)

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        x = self.blocks(F.relu(self.bn1(self.conv1(x_BCHW))))
        logits: torch.Tensor = self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut (He et al. 2016), by torchvision's names.

    Written out, since importing torchvision takes as long as importing torch.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        narrow = None
        if stride > 1:
            shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            narrow = nn.Sequential(shortcut, nn.BatchNorm2d(outputs))
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = narrow

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.bn1(self.conv1(x_BCHW)), inplace=True)
        y = self.bn2(self.conv2(y))
        y += x_BCHW if self.downsample is None else self.downsample(x_BCHW)
        return F.relu(y, inplace=True)


def basic_resnet(
    first: nn.Conv2d, widths: Sequence[int], blocks: int, outputs: int
) -> nn.Sequential:
    """Build a ResNet of basic blocks without max-pool, by torchvision's names.

    It is initialized as torchvision's: normal weights of variance 2 / fan-out.
    """
    inputs, stages = widths[0], dict[str, nn.Module]()
    for index, width in enumerate(widths):
        parts = [BasicBlock(inputs, width, 2 if index else 1)]
        parts += [BasicBlock(width, width, 1) for _ in range(blocks - 1)]
        stages[f"layer{index + 1}"], inputs = nn.Sequential(*parts), width
    layers: dict[str, nn.Module] = {
        "conv1": first, "bn1": nn.BatchNorm2d(widths[0]), "relu": nn.ReLU(inplace=True), **stages,
        "avgpool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten(),
        "fc": nn.Linear(inputs, outputs),
    }  # fmt: skip
    net = nn.Sequential(OrderedDict(layers))
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return net


def resnet20(image_shape: Shape, outputs: int) -> nn.Module:
    """Build the CIFAR ResNet of He et al. 2016 with n=3: stages of 16, 32 and 64 filters.

    Shortcuts that change the shape are a 1x1 convolution and batch norm, and state-dict names
    are torchvision's, both as in chenyaofo/pytorch-cifar-models.
    """
    return basic_resnet(stem(image_shape, 16), (16, 32, 64), 3, outputs)


def shufflenetv2_x0_5(image_shape: Shape, outputs: int) -> nn.Module:
    """Build torchvision's ShuffleNetV2 x0.5 (Ma et al. 2018): stride-1 stem, no max-pool.

    As chenyaofo/pytorch-cifar-models changes it for CIFAR; its weights load as they are.
    """
    from torchvision.models import shufflenet_v2_x0_5

    net: nn.Module = shufflenet_v2_x0_5(num_classes=outputs)
    net.set_submodule("conv1.0", stem(image_shape, 24))
    net.maxpool = nn.Identity()
    return net


def mobilenetv2_x0_5(image_shape: Shape, outputs: int) -> nn.Module:
    """Build torchvision's MobileNetV2 x0.5 (Sandler et al. 2018): stride 1 in stem and stage 2.

    As chenyaofo/pytorch-cifar-models changes it for CIFAR; its weights load as they are.
    """
    from torchvision.models import mobilenet_v2

    expansion_filters_blocks_stride = [
        [1, 16, 1, 1], [6, 24, 2, 1], [6, 32, 3, 2], [6, 64, 4, 2],
        [6, 96, 3, 1], [6, 160, 3, 2], [6, 320, 1, 1],
    ]  # fmt: skip
    net: nn.Module = mobilenet_v2(
        num_classes=outputs,
        width_mult=0.5,
        inverted_residual_setting=expansion_filters_blocks_stride,
    )
    net.set_submodule("features.0.0", stem(image_shape, 16))
    return net


PEERS: dict[str, NetworkEntry] = {
    "resnet8": NetworkEntry(
        ResNet8, last="fc", levels=("blocks.0", "blocks.1", "blocks.2"), reduction=lambda: 4
    ),
    "resnet20": NetworkEntry(
        resnet20, last="fc", levels=("layer1", "layer2", "layer3"), reduction=lambda: 4
    ),
    "shufflenetv2_x0_5": NetworkEntry(
        shufflenetv2_x0_5, last="fc", levels=("stage2", "stage3", "stage4"), reduction=lambda: 8
    ),
    # MobileNetV2's stages have no names: these are the last blocks at each resolution (ours)
    "mobilenetv2_x0_5": NetworkEntry(
        mobilenetv2_x0_5,
        last="classifier.1",
        levels=("features.3", "features.6", "features.13", "features.17"),
        reduction=lambda: 8,
    ),
    # named by their multiply-adds on images of 32x32 pixels, in millions
    "residual_2mf": NetworkEntry(
        partial(residual, channels=(16, 32, 64), blocks=(1, 2, 2)),
        last="fc", levels=LEVELS, reduction=lambda: 8,
    ),
    "residual_7mf": NetworkEntry(
        partial(residual, channels=(20, 40, 80), blocks=(2, 3, 3)),
        last="fc", levels=LEVELS, reduction=lambda: 8,
    ),
    "residual_9mf": NetworkEntry(
        partial(residual, channels=(24, 48, 96), blocks=(2, 3, 3)),
        last="fc", levels=LEVELS, reduction=lambda: 8,
    ),
    "residual_26mf": NetworkEntry(
        partial(pooled_residual, channels=(32, 96, 128)),
        last="fc", levels=LEVELS, reduction=lambda: 16,
    ),
}  # fmt: skip
"""Networks that are teachers, students and fallbacks alike."""
