"""Teacher and student networks. B images, C channels, H x W pixels; all return class logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from moist.config import StudentConfig
from moist.config.plugins import Registry
from moist.nets import zoo
from moist.nets.entry import NetworkEntry, Shape, network_entry
from moist.nets.fastnet import fastnet, fastnet_wide
from moist.nets.peers import PEERS, basic_resnet, stem
from moist.nets.residual import residual


def resnet18(image_shape: Shape, outputs: int) -> nn.Module:
    """Build torchvision's ResNet-18 (He et al. 2016) with a 3x3 stride-1 stem, no max-pool.

    State-dict names are torchvision's, so its weights and those trained from it load as they are.
    """
    large = nn.Conv2d(3, 64, 7, 2, padding=3, bias=False)  # drawn as torchvision's is
    net = basic_resnet(large, (64, 128, 256, 512), 2, outputs)
    net.conv1 = stem(image_shape, 64)
    return net


def pooled(side: int) -> int:
    """Return the pixels a side that two 2x2 poolings leave of `side`; odd edges are dropped."""
    return side // 4


def trunk(inputs: int, channels: tuple[int, int], batch_norm: bool) -> nn.Sequential:
    """Build two blocks of convolution 3x3, batch norm if chosen, ReLU, max-pool."""
    layers: list[nn.Module] = []
    for width in channels:
        layers += [nn.Conv2d(inputs, width, 3, padding=1)]
        layers += [nn.BatchNorm2d(width)] if batch_norm else []
        layers += [nn.ReLU(), nn.MaxPool2d(2)]
        inputs = width
    return nn.Sequential(*layers)


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
        """Return class logits (B, C)."""
        logits: torch.Tensor = self.fc2(F.relu(self.fc1(self.trunk(x_BCHW).flatten(1))))
        return logits


def _fast(build: Callable[[Shape, int], nn.Module]) -> NetworkEntry:
    levels = ("blocks.0", "blocks.1", "blocks.2")
    return NetworkEntry(build, last="fc", levels=levels, stem="stem")


def _cnn_sizes(student: StudentConfig, hidden_width: int) -> dict[str, Any]:
    return {
        "hidden_width": hidden_width,
        "channels": student.channels,
        "batch_norm": student.batch_norm,
    }


def _residual_sizes(student: StudentConfig, hidden_width: int) -> dict[str, Any]:
    return {"channels": student.channels, "blocks": student.blocks}


TEACHERS = Registry(
    "teachers",
    {
        "resnet18": NetworkEntry(
            resnet18, last="fc", levels=("layer1", "layer2", "layer3", "layer4")
        ),
        "fastnet": _fast(fastnet),
        "fastnet_wide": _fast(fastnet_wide),
        **PEERS,
    },
    network_entry,
    zoos={"torchvision": zoo.torchvision_entry, "timm": zoo.timm_entry},
)
STUDENTS = Registry(
    "students",
    {
        "cnn": NetworkEntry(CNN, last="fc2", options=_cnn_sizes),
        "residual": NetworkEntry(
            residual,
            last="fc",
            options=_residual_sizes,
            reduction=lambda channels, blocks: 2 ** len(channels),
        ),
        **PEERS,
    },
    network_entry,
)
