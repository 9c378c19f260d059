"""The MoIST module: a router sends each image to one student. B images, C classes, E experts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from moist.nets.entry import TRUNK
from moist.nets.routers import IMPOSSIBLE, ClusterSums, OracleRouter
from moist.store.artifacts import Clusters, Student


class MoIST(nn.Module):
    """k students behind a router; an image costs the router and one student.

    `masked`: student j's softmax is restricted to the classes of cluster j, which makes router
    and students one two-level softmax. `gated`: a student's logits are scaled by the router's
    probability for it (Switch), which is how the router gets a gradient under hard routing.
    `shared`: the students have one trunk, whose features router and students read;
    without it the trunk returns images unchanged. Without a router a first model routes: `route`
    takes its class logits in place of images.
    """

    cluster_C: torch.Tensor
    member_EC: torch.Tensor
    deviation_E: nn.Parameter
    """Of the router's noise, before a softplus; only while `joint.objective=noisy_topk` trains."""

    def __init__(
        self,
        router: nn.Module | None,
        students: Sequence[nn.Module],
        clusters: Clusters,
        *,
        masked: bool,
        gated: bool = False,
        shared: bool = False,
    ) -> None:
        super().__init__()
        cluster_C = torch.tensor(clusters.of_class)
        member_EC = cluster_C[None] == torch.arange(clusters.k)[:, None]
        self.trunk: nn.Module = nn.Identity()
        if shared:
            self.trunk = students[0].get_submodule(TRUNK)
            for student in students:
                student.set_submodule(TRUNK, nn.Identity())
        self.router = ClusterSums(member_EC) if router is None else router
        self.students = nn.ModuleList(students)
        self.masked, self.gated, self.router_frozen = masked, gated, False
        self.register_buffer("cluster_C", cluster_C, persistent=False)
        self.register_buffer("member_EC", member_EC, persistent=False)

    def freeze_router(self) -> None:
        """Keep the router's weights, batch-norm statistics and dropout out of training."""
        self.router_frozen = True
        self.router.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> MoIST:
        """Set the training mode; a frozen router stays in evaluation mode."""
        super().train(mode)
        if self.router_frozen:
            self.router.eval()
        return self

    def route(self, x_BCHW: torch.Tensor, labels_B: torch.Tensor | None = None) -> torch.Tensor:
        """Return router logits (B, E), float32, of the trunk's output; an oracle needs labels."""
        if isinstance(self.router, OracleRouter) and labels_B is not None:
            return self.router.logits_of(self.cluster_C[labels_B])
        gate_BE: torch.Tensor = self.router(x_BCHW).float()
        return gate_BE

    def expert(self, j: int, x_BCHW: torch.Tensor) -> torch.Tensor:
        """Return student j's logits (B, C), float32, restricted to its classes if masked."""
        logits_BC: torch.Tensor = self.students[j](x_BCHW).float()
        if self.masked:
            logits_BC = logits_BC.masked_fill(~self.member_EC[j], IMPOSSIBLE)
        return logits_BC

    def experts(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        """Return every student's logits (B, E, C), which soft mixing and EM need."""
        return torch.stack([self.expert(j, x_BCHW) for j in range(len(self.students))], 1)

    def dispatch(self, x_BCHW: torch.Tensor, expert_B: torch.Tensor) -> torch.Tensor:
        """Return the logits (B, C) of each image's expert, with one forward pass per expert."""
        used = sorted(set(expert_B.tolist()))  # for one image faster than torch.unique
        if len(used) == 1:
            return self.expert(used[0], x_BCHW)
        out_BC = x_BCHW.new_empty(len(x_BCHW), self.member_EC.shape[1], dtype=torch.float32)
        for j in used:
            rows = (expert_B == j).nonzero().squeeze(1)
            out_BC = out_BC.index_copy(0, rows, self.expert(j, x_BCHW[rows]))
        return out_BC

    def forward(
        self, images_BCHW: torch.Tensor, labels_B: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return class logits (B, C) whose softmax is the model's distribution; see `combine`."""
        return self.routed(images_BCHW, labels_B)[0]

    def routed(
        self, images_BCHW: torch.Tensor, labels_B: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return class logits (B, C) and router logits (B, E)."""
        logits_BC, gate_BE, _ = self.answer(self.trunk(images_BCHW), labels_B)
        return logits_BC, gate_BE

    def answer(
        self, x_BCHW: torch.Tensor, labels_B: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Classify the trunk's output: class logits (B, C), router logits (B, E), and the
        logits (B, C) of each image's expert alone."""
        gate_BE = self.route(x_BCHW, labels_B)
        expert_B = gate_BE.argmax(1)
        own_BC = self.dispatch(x_BCHW, expert_B)
        return self.combine(gate_BE, expert_B, own_BC), gate_BE, own_BC

    def combine(
        self, gate_BE: torch.Tensor, expert_B: torch.Tensor, logits_BC: torch.Tensor
    ) -> torch.Tensor:
        """Combine the router's and the expert's logits into class logits (B, C).

        Unmasked students answer for all classes, so their logits stand (scaled if gated). A
        masked one has only its cluster: it divides the router's probability of that cluster,
        and each other cluster's probability is spread evenly over its classes, so that the result
        is a proper distribution at the price of one student.
        """
        if self.gated:
            return logits_BC * F.softmax(gate_BE, 1).gather(1, expert_B[:, None])
        if not self.masked:
            return logits_BC
        log_gate_BC = F.log_softmax(gate_BE, 1)[:, self.cluster_C]
        size_C = self.member_EC.sum(1)[self.cluster_C]
        inside_BC = self.member_EC[expert_B]
        return log_gate_BC + torch.where(inside_BC, F.log_softmax(logits_BC, 1), -size_C.log())

    def two_experts(
        self, x_BCHW: torch.Tensor, gate_BE: torch.Tensor, own_BC: torch.Tensor
    ) -> torch.Tensor:
        """Return log-probabilities (B, C) of the router's two best experts, weighted by its
        probabilities; `own_BC` are the logits of the best one.

        Unmasked experts: the router's two probabilities are made to sum to 1. Masked ones share
        out that of their clusters, and the other clusters' is spread as in `combine`.
        """
        second_BC = self.dispatch(x_BCHW, gate_BE.topk(2).indices[:, 1])
        return self.combine_two(gate_BE, own_BC, second_BC)

    def combine_two(
        self, gate_BE: torch.Tensor, own_BC: torch.Tensor, second_BC: torch.Tensor
    ) -> torch.Tensor:
        """Combine the logits (B, C) of the router's two best experts as `two_experts` says."""
        best_B2 = gate_BE.topk(2).indices
        logits_2BC = torch.stack([own_BC, second_BC])
        if self.gated:
            logits_2BC = logits_2BC * F.softmax(gate_BE, 1).gather(1, best_B2).T[:, :, None]
        log_p_2BC = logits_2BC.log_softmax(2)
        if not self.masked:
            log_w_B2 = F.log_softmax(gate_BE.gather(1, best_B2), 1)
            return torch.logsumexp(log_w_B2.T[:, :, None] + log_p_2BC, 0)
        size_C = self.member_EC.sum(1)[self.cluster_C]
        inner_BC = -size_C.log().expand_as(own_BC)
        for i in range(2):
            inner_BC = torch.where(self.member_EC[best_B2[:, i]], log_p_2BC[i], inner_BC)
        return F.log_softmax(gate_BE, 1)[:, self.cluster_C] + inner_BC

    def student_states(self) -> list[dict[str, torch.Tensor]]:
        """Return the whole state of each student, the shared trunk included."""
        trunk = {f"{TRUNK}.{name}": value for name, value in self.trunk.state_dict().items()}
        return [trunk | student.state_dict() for student in self.students]


def duplicate(student: Student, k: int) -> tuple[Student, ...]:
    """Start k students from one student's knowledge."""
    return (student,) * k
