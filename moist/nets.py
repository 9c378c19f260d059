"""Teacher and student networks. B images, C channels, H x W pixels; all return class logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from moist.config import Student

Shape = tuple[int, int, int]


def resnet18(image_shape: Shape, outputs: int) -> nn.Module:
    """torchvision's ResNet-18 for small images: 3x3 stride-1 stem, no max-pool (He et al. 2016).

    State-dict names are torchvision's, so its weights and those trained from it load as they are.
    """
    from torchvision.models import resnet18 as torchvision_resnet18

    net: nn.Module = torchvision_resnet18(num_classes=outputs)
    net.conv1 = nn.Conv2d(image_shape[0], 64, 3, stride=1, padding=1, bias=False)
    net.maxpool = nn.Identity()
    return net


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


TEACHERS: dict[str, Callable[..., nn.Module]] = {"resnet18": resnet18, "resnet8": ResNet8}
STUDENTS: dict[str, Callable[..., nn.Module]] = {"cnn": CNN}


def student_options(student: Student, hidden_width: int) -> dict[str, Any]:
    return {
        "hidden_width": hidden_width,
        "channels": student.channels,
        "batch_norm": student.batch_norm,
    }
