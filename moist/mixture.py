"""The MoIST module: a router sends each image to one student. B images, C classes, E experts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn import functional as F

from moist import config
from moist.artifacts import Clusters, Mixture, Network, Router, Spec, Student, Teacher
from moist.fit import seeded
from moist.nets import STUDENTS, TEACHERS, Shape, student_options
from moist.routers import IMPOSSIBLE, ROUTERS, OracleRouter

N = TypeVar("N", bound=Network)


class MoIST(nn.Module):
    """k students behind a router; an image costs the router and one student.

    `masked`: student j's softmax is restricted to the classes of cluster j, which makes router
    and students one two-level softmax. `gated`: a student's logits are scaled by the router's
    probability for it (Switch), which is how the router gets a gradient under hard routing.
    """

    cluster_C: torch.Tensor
    member_EC: torch.Tensor

    def __init__(
        self,
        router: nn.Module,
        students: Sequence[nn.Module],
        clusters: Clusters,
        *,
        masked: bool,
        gated: bool = False,
    ) -> None:
        super().__init__()
        self.router = router
        self.students = nn.ModuleList(students)
        self.masked, self.gated, self.router_frozen = masked, gated, False
        cluster_C = torch.tensor(clusters.of_class)
        self.register_buffer("cluster_C", cluster_C, persistent=False)
        member_EC = cluster_C[None] == torch.arange(clusters.k)[:, None]
        self.register_buffer("member_EC", member_EC, persistent=False)

    def freeze_router(self) -> None:
        """Keep the router's weights, batch-norm statistics and dropout out of training."""
        self.router_frozen = True
        self.router.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> MoIST:
        super().train(mode)
        if self.router_frozen:
            self.router.eval()
        return self

    def route(self, x_BCHW: torch.Tensor, labels_B: torch.Tensor | None = None) -> torch.Tensor:
        """Router logits (B, E), in float32; an oracle needs the labels."""
        if isinstance(self.router, OracleRouter) and labels_B is not None:
            return self.router.told(self.cluster_C[labels_B])
        gate_BE: torch.Tensor = self.router(x_BCHW).float()
        return gate_BE

    def expert(self, j: int, x_BCHW: torch.Tensor) -> torch.Tensor:
        """Student j's class logits (B, C) in float32, restricted to its classes if masked."""
        logits_BC: torch.Tensor = self.students[j](x_BCHW).float()
        if self.masked:
            logits_BC = logits_BC.masked_fill(~self.member_EC[j], IMPOSSIBLE)
        return logits_BC

    def experts(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        """Every student's logits (B, E, C): what soft mixing and EM need."""
        return torch.stack([self.expert(j, x_BCHW) for j in range(len(self.students))], 1)

    def dispatch(self, x_BCHW: torch.Tensor, expert_B: torch.Tensor) -> torch.Tensor:
        """The logits (B, C) of each image's expert: images grouped, one forward an expert."""
        used = torch.unique(expert_B).tolist()
        if len(used) == 1:
            return self.expert(used[0], x_BCHW)
        out_BC = x_BCHW.new_empty(len(x_BCHW), self.member_EC.shape[1], dtype=torch.float32)
        for j in used:
            rows = (expert_B == j).nonzero().squeeze(1)
            out_BC = out_BC.index_copy(0, rows, self.expert(j, x_BCHW[rows]))
        return out_BC

    def forward(self, x_BCHW: torch.Tensor, labels_B: torch.Tensor | None = None) -> torch.Tensor:
        """Class logits (B, C) whose softmax is the model's distribution; see `combine`."""
        return self.routed(x_BCHW, labels_B)[0]

    def routed(
        self, x_BCHW: torch.Tensor, labels_B: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Class logits (B, C) and router logits (B, E)."""
        gate_BE = self.route(x_BCHW, labels_B)
        expert_B = gate_BE.argmax(1)
        return self.combine(gate_BE, expert_B, self.dispatch(x_BCHW, expert_B)), gate_BE

    def combine(
        self, gate_BE: torch.Tensor, expert_B: torch.Tensor, logits_BC: torch.Tensor
    ) -> torch.Tensor:
        """What router and expert say together.

        Unmasked students answer for all classes, so their logits stand (scaled if gated). A
        masked one knows only its cluster: it shares out the router's probability of that cluster,
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


def duplicate(student: Student, k: int) -> tuple[Student, ...]:
    """k students that start from one student's knowledge."""
    return (student,) * k


REGISTRIES: dict[type[Network], dict[str, Any]] = {
    Teacher: TEACHERS,
    Student: STUDENTS,
    Router: ROUTERS,
}


def student_spec(
    student: config.Student, hidden_width: int, image_shape: Shape, classes: int
) -> Spec:
    return Spec(student.arch, image_shape, classes, student_options(student, hidden_width))


def fresh(kind: type[N], spec: Spec) -> N:
    """A network before its training, with weights from torch's current stream of numbers."""
    net = REGISTRIES[kind][spec.name](spec.image_shape, spec.outputs, **spec.options)
    return kind(spec, net.state_dict(), ())


def untrained(student: Spec, router: Spec, *, masked: bool, gated: bool) -> Mixture:
    """The mixture before any training: what it costs is known from it.

    Who serves which class is not known yet; the classes are dealt to the students in turn.
    """
    clusters = Clusters(tuple(c % router.outputs for c in range(student.outputs)), {})
    with seeded(0, "untrained"):
        students = duplicate(fresh(Student, student), router.outputs)
        return Mixture(fresh(Router, router), students, clusters, masked, gated, ())


def module(model: Network | Mixture, device: torch.device | str = "cpu") -> nn.Module:
    """The module that an artifact describes, with its weights, ready to train or to evaluate."""
    net: nn.Module
    if isinstance(model, Mixture):
        students = [module(student) for student in model.students]
        net = MoIST(
            module(model.router), students, model.clusters, masked=model.masked, gated=model.gated
        )
    else:
        spec = model.spec
        build = REGISTRIES[type(model)][spec.name]
        net = build(spec.image_shape, spec.outputs, **spec.options)
        net.load_state_dict(dict(model.state))
    placed: nn.Module = net.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return placed
