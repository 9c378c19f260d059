"""Routers: images to cluster logits, never probabilities. B images, E experts, T tokens."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F

from moist.config.plugins import Registry
from moist.errors import StageError
from moist.nets.cnn import pooled, trunk
from moist.nets.entry import RouterEntry, Shape, router_entry

IMPOSSIBLE = -1e4
"""A logit whose softmax is exactly 0 in float32, and whose products stay finite."""


class CNNRouter(nn.Module):
    """The paper's router: the student's convolutions with batch norm, and two linear layers."""

    def __init__(
        self, image_shape: Shape, outputs: int, hidden_width: int, dropout: float
    ) -> None:
        super().__init__()
        depth, height, width = image_shape
        self.trunk = trunk(depth, (32, 64), batch_norm=True)
        self.fc1 = nn.Linear(64 * pooled(height) * pooled(width), hidden_width)
        self.dropout = nn.Dropout(dropout)
        self.fc2 = nn.Linear(hidden_width, outputs)

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        logits_BE: torch.Tensor = self.fc2(
            self.dropout(F.relu(self.fc1(self.trunk(x_BCHW).flatten(1))))
        )
        return logits_BE


class LinearRouter(nn.Module):
    """Linear layers on the pixels; the paper's has two hidden ones, of 128 and 64.

    The `shared` router is one, too: of one hidden layer, on the features of the students' trunk.
    """

    def __init__(
        self, image_shape: Shape, outputs: int, widths: tuple[int, ...], dropout: float
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Flatten()]
        inputs = math.prod(image_shape)
        for width in widths:
            layers += [nn.Linear(inputs, width), nn.ReLU(), nn.Dropout(dropout)]
            inputs = width
        self.layers = nn.Sequential(*layers, nn.Linear(inputs, outputs))

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        logits_BE: torch.Tensor = self.layers(x_BCHW)
        return logits_BE


class TransformerRouter(nn.Module):
    """Two encoder layers (4 heads, width 64, feed-forward 256) on 4x4 patches, mean-pooled.

    The paper gives the layers; patches, learned positions and pooling are ours. Edges that do
    not fill a patch are padded with zeros.
    """

    def __init__(self, image_shape: Shape, outputs: int, patch: int = 4, width: int = 64) -> None:
        super().__init__()
        depth, height, across = image_shape
        self.pad = (0, -across % patch, 0, -height % patch)
        tokens = math.ceil(height / patch) * math.ceil(across / patch)
        self.embed = nn.Conv2d(depth, width, patch, stride=patch)
        self.position = nn.Parameter(torch.randn(1, tokens, width) * 0.02)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 4, 256, dropout=0.0, batch_first=True)
            for _ in range(2)
        )
        self.head = nn.Linear(width, outputs)

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        tokens_BTD = self.embed(F.pad(x_BCHW, self.pad)).flatten(2).transpose(1, 2)
        tokens_BTD = tokens_BTD + self.position
        for layer in self.layers:
            tokens_BTD = layer(tokens_BTD)
        logits_BE: torch.Tensor = self.head(tokens_BTD.mean(1))
        return logits_BE


class OracleRouter(nn.Module):
    """A router that reads the label, at no cost: an upper bound on every router, not a system."""

    def __init__(self, image_shape: Shape, outputs: int) -> None:
        super().__init__()
        self.outputs = outputs

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        raise StageError(
            "`router=oracle` routes by the label, and a new image has none",
            "classify new images with a run of another router",
        )

    def logits_of(self, cluster_B: torch.Tensor) -> torch.Tensor:
        """Return one-hot logits (B, E) of the clusters (B,) of a batch."""
        logits_BE = torch.full((len(cluster_B), self.outputs), IMPOSSIBLE, device=cluster_B.device)
        return logits_BE.scatter_(1, cluster_B[:, None], 0.0)


class ClusterSums(nn.Module):
    """The router of a mixture behind a first model: its probability of each cluster, summed over
    the cluster's classes. It has no weights."""

    member_EC: torch.Tensor

    def __init__(self, member_EC: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("member_EC", member_EC, persistent=False)

    def forward(self, logits_BC: torch.Tensor) -> torch.Tensor:
        """Return the log-probabilities (B, E) of the clusters, given logits of the classes."""
        log_p_BC = F.log_softmax(logits_BC.float(), 1)
        own_BEC = log_p_BC[:, None].masked_fill(~self.member_EC, -math.inf)
        return torch.logsumexp(own_BEC, 2)


ROUTERS = Registry(
    "routers",
    {
        "cnn": RouterEntry(
            CNNRouter,
            lambda routing: {"hidden_width": routing.hidden_width, "dropout": routing.dropout},
        ),
        "linear": RouterEntry(
            LinearRouter, lambda routing: {"widths": routing.widths, "dropout": routing.dropout}
        ),
        "transformer": RouterEntry(TransformerRouter),
        "shared": RouterEntry(
            LinearRouter,
            lambda routing: {"widths": (routing.hidden_width,), "dropout": routing.dropout},
            reads_trunk=True,
        ),
        "oracle": RouterEntry(OracleRouter),
    },
    router_entry,
)
