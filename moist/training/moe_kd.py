"""MoE-KD: the class that the teacher would give an image is a latent variable z of its class y.

p(y|x) = sum_z gate(z|x) p(y|x,z): the teacher's classifier is the gate, its levels make the
experts p(y|x,z), and the likelihood is raised by EM. So far the abstract of OpenReview
UC1UD0EIWn, all that is known of it; every formula below is our reading.

B images, C classes y, Z = C of them as z, D student features, M levels, K columns of a table.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from moist.config import DistillConfig
from moist.nets.latent_head import LatentHead, exactly
from moist.store.artifacts import Levels

FLAT = 1e-8  # a variance below this counts as none
Affine = tuple[torch.Tensor, torch.Tensor]


def em_bound(log_gate_BZ: torch.Tensor, log_fit_BZ: torch.Tensor) -> torch.Tensor:
    """Return the mean of -sum_z r_z [log gate_z + log fit_z]; r is the detached posterior.

    An upper bound of the negative log-likelihood, with its gradient: a step on it is a step of
    generalized EM. `fit` is p(y|x,z) of the label y. A gate that is not trained adds a constant.
    """
    log_joint_BZ = log_gate_BZ + log_fit_BZ
    posterior_BZ = log_joint_BZ.detach().softmax(1)
    return -(posterior_BZ * log_joint_BZ).sum(1).mean()


def offsets_matrix(
    tables_MCC: torch.Tensor, lambda_M: torch.Tensor, eps: float = 1e-3
) -> torch.Tensor:
    """Return B_zy = sum_m lambda_m log(eps + P_m(y|z)), from each level's table P_m."""
    return torch.einsum("m,mzy->zy", lambda_M, (eps + tables_MCC).log())


class Offsets(nn.Module):
    """E1: one head u, the student's own; log p(y|x,z) = log_softmax(u + B_z)_y."""

    tables_MCC: torch.Tensor

    def __init__(self, linear: nn.Linear, levels: Levels) -> None:
        super().__init__()
        self.head = linear
        self.mix_M = nn.Parameter(torch.zeros(len(levels.widths)))
        self.register_buffer("tables_MCC", levels.tables_MCC.clone())

    def offsets(self) -> torch.Tensor:
        """Return B, with lambda on the simplex: `mix_M` under a softmax, from uniform."""
        return offsets_matrix(self.tables_MCC, self.mix_M.softmax(0))

    def table(self) -> torch.Tensor:
        """Return exp(B), the table of a `LatentHead`."""
        return self.offsets().exp()

    def log_fit(self, features_BD: torch.Tensor, labels_B: torch.Tensor) -> torch.Tensor:
        """Return log p(y|x,z) (B, Z) of the label y."""
        log_prob_BZC = F.log_softmax(self.head(features_BD)[:, None] + self.offsets(), 2)
        return log_prob_BZC.take_along_dim(labels_B[:, None, None], 2).squeeze(2)

    def regression(self, features_BD: torch.Tensor, levels_BD: torch.Tensor) -> torch.Tensor:
        """Return 0: this form regresses nothing."""
        return features_BD.new_zeros(())

    def folded(self) -> Affine:
        """Return the experts' weight and bias in a `LatentHead`."""
        return self.head.weight, self.head.bias

    def ungated(self) -> Affine:
        """Return u without a gate, which learned the class given the teacher's."""
        return self.folded()


class Heads(nn.Module):
    """E2: a head per level, p(y|x,z) = sum_m a_zm softmax(h_m)_y, a_z on the simplex.

    Head m reads what a linear projector makes of the student's features, and the projector
    learns the teacher's pooled level m as well: each channel from its mean, in units of the
    level's deviation (ours), so that no level and no teacher weighs more.
    """

    mean_D: torch.Tensor
    scale_D: torch.Tensor

    def __init__(self, linear: nn.Linear, levels: Levels) -> None:
        super().__init__()
        self.widths, classes = levels.widths, linear.out_features
        self.projectors = nn.ModuleList(nn.Linear(linear.in_features, w) for w in self.widths)
        self.heads = nn.ModuleList(nn.Linear(w, classes) for w in self.widths)
        self.mix_ZM = nn.Parameter(torch.zeros(classes, len(self.widths)))
        features_ND = levels.features_VND[0].float()
        variances = torch.split(features_ND.var(0), list(self.widths))
        scales = [v.mean().clamp_min(FLAT).sqrt().expand_as(v) for v in variances]
        self.register_buffer("mean_D", features_ND.mean(0))
        self.register_buffer("scale_D", torch.cat(scales))

    def table(self) -> torch.Tensor:
        """Return a, rows on the simplex: `mix_ZM` under a softmax, from uniform."""
        return self.mix_ZM.softmax(1)

    def log_fit(self, features_BD: torch.Tensor, labels_B: torch.Tensor) -> torch.Tensor:
        """Return log p(y|x,z) (B, Z) of the label y."""
        pairs = zip(self.heads, self.projectors, strict=True)
        logits = [head(projector(features_BD)) for head, projector in pairs]
        log_prob_BMC = F.log_softmax(torch.stack(logits, 1), 2)
        own_BM = log_prob_BMC.take_along_dim(labels_B[:, None, None], 2).squeeze(2)
        return torch.logsumexp(own_BM[:, None] + self.mix_ZM.log_softmax(1), 2)

    def regression(self, features_BD: torch.Tensor, levels_BD: torch.Tensor) -> torch.Tensor:
        """Return the share of a level's variance that its projector misses, averaged."""
        wanted = torch.split((levels_BD - self.mean_D) / self.scale_D, list(self.widths), 1)
        pairs = zip(self.projectors, wanted, strict=True)
        return torch.stack([F.mse_loss(p(features_BD), level_BD) for p, level_BD in pairs]).mean()

    def folded(self) -> Affine:
        """Return each head after its projector as one linear layer, stacked."""
        weights, biases = [], []
        for head, projector in zip(self.heads, self.projectors, strict=True):
            assert isinstance(head, nn.Linear) and isinstance(projector, nn.Linear)
            weight, bias = after(head.weight, head.bias, projector)
            weights.append(weight)
            biases.append(bias)
        return torch.cat(weights), torch.cat(biases)

    def ungated(self) -> Affine:
        """Return, without a gate, the heads' logits weighted by their mean a over z, as one layer.

        Its softmax is the heads' geometric mean, whose loss is at most the weighted mean of
        theirs: normalizing a geometric mean of distributions only raises it.
        """
        share_M = self.table().mean(0)
        weight, bias = (x.view(len(share_M), -1, *x.shape[1:]) for x in self.folded())
        return torch.einsum("m,mcd->cd", share_M, weight), share_M @ bias


def after(weight: torch.Tensor, bias: torch.Tensor, inner: nn.Linear) -> Affine:
    """Compose a linear layer with an inner one that it follows."""
    return weight @ inner.weight, weight @ inner.bias + bias


EXPERTS: dict[str, type[Offsets] | type[Heads]] = {"offsets": Offsets, "heads": Heads}


class Latent(nn.Module):
    """A student in training: its body, the experts on its features, and the gate.

    `gate=student`: the teacher's last layer, frozen, on a linear projection of the student's
    features, tied to the teacher's probabilities at the temperature. The student keeps it.
    `gate=teacher`: the teacher's probabilities at the temperature, which a deployed student does
    not have; the experts alone are deployed then, as one linear layer. The body is `net` without
    its last linear layer.
    """

    weight_CF: torch.Tensor
    bias_C: torch.Tensor

    def __init__(
        self,
        net: nn.Module,
        last: str,
        levels: Levels,
        distill: DistillConfig,
        *,
        temperature: float,
    ) -> None:
        super().__init__()
        linear = net.get_submodule(last)
        assert isinstance(linear, nn.Linear)
        net.set_submodule(last, nn.Identity())
        self.net, self.last = net, last
        self.form, self.tie, self.temperature = distill.experts, distill.tie, temperature
        self.experts = EXPERTS[distill.experts](linear, levels)
        self.phi = (
            nn.Linear(linear.in_features, levels.weight_CF.shape[1])
            if distill.gate == "student"
            else None
        )
        self.register_buffer("weight_CF", levels.weight_CF.clone())
        self.register_buffer("bias_C", levels.bias_C.clone())

    def loss(
        self,
        images_BCHW: torch.Tensor,
        labels_B: torch.Tensor,
        teacher_BC: torch.Tensor,
        levels_BD: torch.Tensor,
    ) -> torch.Tensor:
        """Return the M-step's objective at the current posterior, averaged over images.

        `teacher_BC` are the teacher's logits on these images, `levels_BD` its pooled levels.
        """
        features_BD: torch.Tensor = self.net(images_BCHW)
        with exactly(features_BD):
            features_BD = features_BD.float()
            teacher_BZ = log_gate_BZ = F.log_softmax(teacher_BC / self.temperature, 1)
            tied = features_BD.new_zeros(())
            if self.phi is not None:
                gate_BZ = F.linear(self.phi(features_BD), self.weight_CF, self.bias_C)
                log_gate_BZ = F.log_softmax(gate_BZ, 1)
                tied = F.kl_div(log_gate_BZ, teacher_BZ, reduction="batchmean", log_target=True)
            bound = em_bound(log_gate_BZ, self.experts.log_fit(features_BD, labels_B))
            return bound + self.tie * tied + self.experts.regression(features_BD, levels_BD)

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        """Return log-probabilities (B, C) of the student that `deployed` returns."""
        logits_BC: torch.Tensor = self.folded()(self.net(images_BCHW))
        return F.log_softmax(logits_BC.float(), 1)

    @torch.no_grad()
    def folded(self) -> LatentHead | nn.Linear:
        """Build the student's last layer: each chain of linear layers as one."""
        classes = len(self.bias_C)
        with exactly(self.bias_C):
            if self.phi is None:
                weight, bias = self.experts.ungated()
                with torch.device("meta"):
                    linear = nn.Linear(weight.shape[1], classes)
                linear.load_state_dict({"weight": weight, "bias": bias}, assign=True)
                return linear
            weight, bias = self.experts.folded()
            gate_weight, gate_bias = after(self.weight_CF, self.bias_C, self.phi)
            with torch.device("meta"):
                head = LatentHead(weight.shape[1], classes, self.form, len(weight) // classes)
            state = {
                "gate.weight": gate_weight, "gate.bias": gate_bias, "experts.weight": weight,
                "experts.bias": bias, "table_ZK": self.experts.table(),
            }  # fmt: skip
            head.load_state_dict(state, assign=True)
            return head

    def deployed(self) -> tuple[dict[str, torch.Tensor], str | None]:
        """Return the student's state, and the form of its `LatentHead`, None if it has none."""
        last = self.folded().state_dict(prefix=f"{self.last}.")
        return {**self.net.state_dict(), **last}, None if self.phi is None else self.form
