"""The last layer of a student distilled with MoE-KD: a gate and experts in one (B, C) output.

B images, C classes y, Z = C of them as the latent z, D student features, M levels, K columns of a
table. `moist.training.moe_kd` trains it and names its source.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


def exactly(x: torch.Tensor) -> torch.autocast:
    """Compute in float32 whatever the run's precision: probabilities are multiplied inside."""
    return torch.autocast(x.device.type, enabled=False)


class LatentHead(nn.Module):
    """The layer that a student deploys in place of its last linear layer: log p(y|x) (B, C).

    `offsets`: p(y|x,z) ~ softmax(u)_y table_zy, where table = exp(B); one product with the table
    normalizes it for each z, another sums over z. `heads`: sum_m table_zm softmax(h_m)_y, where
    each row of the table sums to 1. The table is fixed, not a parameter.
    """

    table_ZK: torch.Tensor

    def __init__(self, inputs: int, outputs: int, form: str, levels: int) -> None:
        super().__init__()
        self.form, self.outputs = form, outputs
        heads, columns = (levels, levels) if form == "heads" else (1, outputs)
        self.gate = nn.Linear(inputs, outputs)
        self.experts = nn.Linear(inputs, heads * outputs)
        self.register_buffer("table_ZK", torch.full((outputs, columns), 1 / columns))

    def forward(self, features_BD: torch.Tensor) -> torch.Tensor:
        """Return log-probabilities (B, C) of features (B, D)."""
        with exactly(features_BD):
            features_BD = features_BD.float()
            gate_BZ = F.softmax(self.gate(features_BD), 1)
            logits_BMC = self.experts(features_BD).unflatten(1, (-1, self.outputs))
            log_prob_BMC = F.log_softmax(logits_BMC, 2)
            if self.form == "heads":
                log_share_BM = (gate_BZ @ self.table_ZK).log()
                return torch.logsumexp(log_share_BM[:, :, None] + log_prob_BMC, 1)
            log_prob_BC = log_prob_BMC.squeeze(1)
            total_BZ = F.linear(log_prob_BC.exp(), self.table_ZK)
            return log_prob_BC + (gate_BZ / total_BZ @ self.table_ZK).log()


def give_head(net: nn.Module, last: str, form: str, levels: int) -> None:
    """Put a `LatentHead` in the place of the last linear layer."""
    linear = net.get_submodule(last)
    assert isinstance(linear, nn.Linear)
    net.set_submodule(last, LatentHead(linear.in_features, linear.out_features, form, levels))
