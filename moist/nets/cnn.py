"""Teacher and student networks. B images, C channels, H x W pixels; all return class logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from moist.config import StudentConfig
from moist.nets.peers import PEERS, stem

Shape = tuple[int, int, int]


def resnet18(image_shape: Shape, outputs: int) -> nn.Module:
    """torchvision's ResNet-18 for small images: 3x3 stride-1 stem, no max-pool (He et al. 2016).

    State-dict names are torchvision's, so its weights and those trained from it load as they are.
    """
    from torchvision.models import resnet18 as torchvision_resnet18

    net: nn.Module = torchvision_resnet18(num_classes=outputs)
    net.conv1 = stem(image_shape, 64)
    net.maxpool = nn.Identity()
    return net


def pooled(side: int) -> int:
    """The side that two 2x2 poolings leave of `side` pixels; odd edges are dropped."""
    return side // 4


def trunk(inputs: int, channels: tuple[int, int], batch_norm: bool) -> nn.Sequential:
    """Two times convolution 3x3, batch norm if asked, ReLU, 2x2 max-pool; then flat features."""
    layers: list[nn.Module] = []
    for width in channels:
        layers += [nn.Conv2d(inputs, width, 3, padding=1)]
        layers += [nn.BatchNorm2d(width)] if batch_norm else []
        layers += [nn.ReLU(), nn.MaxPool2d(2)]
        inputs = width
    return nn.Sequential(*layers, nn.Flatten())


TRUNK = "trunk"
"""The submodule of a CNN that `router=shared` shares."""


def features(image_shape: Shape, channels: tuple[int, int]) -> Shape:
    """The shape of the feature maps a trunk ends in, before they are made flat."""
    _, height, width = image_shape
    return channels[1], pooled(height), pooled(width)


class CNN(nn.Module):
    """The paper's student: two convolutions and two linear layers."""

    def __init__(
        self,
        image_shape: Shape,
        outputs: int,
        hidden_width: int,
        channels: tuple[int, int],
        batch_norm: bool,
    ) -> None:
        super().__init__()
        depth, height, width = image_shape
        self.trunk = trunk(depth, channels, batch_norm)
        self.fc1 = nn.Linear(channels[1] * pooled(height) * pooled(width), hidden_width)
        self.fc2 = nn.Linear(hidden_width, outputs)

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.fc2(F.relu(self.fc1(self.trunk(x_BCHW))))
        return logits


TEACHERS: dict[str, Callable[..., nn.Module]] = {"resnet18": resnet18, **PEERS}
STUDENTS: dict[str, Callable[..., nn.Module]] = {"cnn": CNN, **PEERS}

LAST: dict[str, str] = {
    "cnn": "fc2",
    "resnet18": "fc",
    "resnet8": "fc",
    "resnet20": "fc",
    "shufflenetv2_x0_5": "fc",
    "mobilenetv2_x0_5": "classifier.1",
}
"""The last linear layer of every teacher and student."""

LEVELS: dict[str, tuple[str, ...]] = {
    "resnet18": ("layer1", "layer2", "layer3", "layer4"),
    "resnet8": ("blocks.0", "blocks.1", "blocks.2"),
    "resnet20": ("layer1", "layer2", "layer3"),
    "shufflenetv2_x0_5": ("stage2", "stage3", "stage4"),
    "mobilenetv2_x0_5": ("features.3", "features.6", "features.13", "features.17"),
}
"""The stages of every teacher, shallow to deep; each gives feature maps (B, C, H, W).

Ours for MobileNetV2, whose stages have no names: the last block at each resolution.
"""


def student_options(student: StudentConfig, hidden_width: int) -> dict[str, Any]:
    """What a student is built from besides shapes; a peer has no sizes to choose."""
    if student.arch in PEERS:
        return {}
    return {
        "hidden_width": hidden_width,
        "channels": student.channels,
        "batch_norm": student.batch_norm,
    }
