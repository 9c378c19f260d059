"""What a model computes of uint8 images, step by step, for the formats that it is exported to.

Input `images` is uint8 (B, H, W, C), as Pillow gives pixels; normalization is inside. Output
`logits` is float32 (B, C); beside it `router_logits` (B, E) of a model that routes, and `deferred`
(B,) of a cascade. Each student gets its own images only: one file serves every batch size, and an
image costs what it costs in torch.

B images, C classes, E experts.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from moist.nets.cascade import CascadeNet
from moist.nets.mixture import MoIST
from moist.store.artifacts import Dataset

SAMPLE = 2
"""Training images to trace with."""

Branch = tuple[Callable[[torch.Tensor], torch.Tensor], nn.Module]
"""What a part of the rows gets, and the network whose weights it reads."""


class Part(nn.Module):
    """A function that reads a network's weights, as a module."""

    def __init__(self, compute: Callable[..., torch.Tensor], net: nn.Module | None) -> None:
        super().__init__()
        self.compute = compute
        self.net = None if compute is net else net  # whose tensors are listed once

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        """Return what the function computes."""
        return self.compute(*inputs)


class Graph(ABC):
    """Steps in the order of computation, and every value of them on sample images."""

    def __init__(self, images_BHWC: torch.Tensor) -> None:
        self.values = {"images": images_BHWC}
        self.count = 0

    def add(
        self,
        compute: Callable[..., torch.Tensor],
        inputs: tuple[str, ...],
        output: str,
        net: nn.Module | None = None,
    ) -> str:
        """Add what a function computes; `net` is the network whose weights it reads.

        Returns the output.
        """
        samples = tuple(self.values[name] for name in inputs)
        self.add_part(Part(compute, net), samples, inputs, output)
        self.values[output] = compute(*samples)
        return output

    def dispatch(self, into: str, chosen: str, x: str, branches: Sequence[Branch]) -> str:
        """Replace rows of a value, each by what the branch with its number in `chosen` computes
        of the same row of `x`; -1 keeps a row. Returns the output.
        """
        self.count += 1
        parts, result = list[tuple[Part, torch.Tensor]](), self.values[into].clone()
        for j, (compute, net) in enumerate(branches):
            rows = (self.values[chosen] == j).nonzero().squeeze(1)
            sample = self.values[x][rows] if len(rows) >= SAMPLE else self.values[x]
            parts.append((Part(compute, net), sample))
            if len(rows):
                result[rows] = compute(self.values[x][rows])
        output = self.add_branches(into, chosen, x, parts)
        self.values[output] = result
        return output

    @abstractmethod
    def add_part(
        self,
        part: Part,
        samples: tuple[torch.Tensor, ...],
        inputs: tuple[str, ...],
        output: str,
    ) -> None:
        """Add a part, given the values of its inputs on the sample images."""

    @abstractmethod
    def add_branches(
        self, into: str, chosen: str, x: str, parts: Sequence[tuple[Part, torch.Tensor]]
    ) -> str:
        """Add `dispatch`, given the rows of the sample images for each branch; returns the
        output."""


def assemble(net: nn.Module, graph: Graph, data: Dataset) -> dict[str, str]:
    """Add a whole model to a graph; returns the value of each output."""
    mean_C11, std_C11 = (
        torch.tensor(values, dtype=torch.float64)[:, None, None]
        for values in (data.mean, data.std)
    )
    scale_C11, bias_C11 = (1 / (255 * std_C11)).float(), (-mean_C11 / std_C11).float()
    graph.add(
        lambda x_BHWC: x_BHWC.permute(0, 3, 1, 2).float() * scale_C11 + bias_C11,
        ("images",),
        "pixels",
    )
    first: Any = net.first if isinstance(net, CascadeNet) else net
    found: dict[str, str] = {}
    x = own = ""
    if isinstance(first, MoIST):
        x = "pixels"
        if not isinstance(first.trunk, nn.Identity):
            x = graph.add(first.trunk, (x,), "features", first.trunk)
        found["router_logits"] = graph.add(first.route, (x,), "gate", first.router)
        expert = graph.add(lambda gate_BE: gate_BE.argmax(1), ("gate",), "expert")
        own = _dispatch(graph, first, x, expert, _zeros(graph, first, "own"))
        logits = graph.add(first.combine, ("gate", expert, own), "first")
    else:
        logits = graph.add(lambda x_BCHW: first(x_BCHW).float(), ("pixels",), "first", first)
    if not isinstance(net, CascadeNet):
        return {"logits": logits, **found}
    fallback, threshold = net.fallback, net.threshold
    if fallback is None:
        assert isinstance(first, MoIST)
        certainty = graph.add(_margin, ("gate",), "certainty")
    else:
        certainty = graph.add(lambda z_BC: z_BC.softmax(1).amax(1), (logits,), "certainty")
    deferred = graph.add(lambda sure_B: sure_B < threshold, (certainty,), "is_deferred")
    if fallback is None:
        second = graph.add(_second, ("gate", deferred), "second_expert")
        other = _dispatch(graph, first, x, second, _zeros(graph, first, "other"))
        both = graph.add(first.combine_two, ("gate", own, other), "both")
        logits = graph.add(_where, (deferred, both, logits), "answer")
    elif isinstance(fallback, MoIST):
        found["router_logits"] = graph.add(fallback.route, (logits,), "gate")
        expert = graph.add(_routed, ("gate", deferred), "expert")
        logits = _dispatch(graph, fallback, "pixels", expert, logits)
    else:
        chosen = graph.add(lambda deferred_B: deferred_B.long() - 1, (deferred,), "chosen")
        logits = graph.dispatch(logits, chosen, "pixels", [(net.second_pass, fallback)])
    return {"logits": logits, **found, "deferred": deferred}


def _dispatch(graph: Graph, net: MoIST, x: str, expert: str, into: str) -> str:
    """Add the students, each for the rows of its images; -1 is no expert."""
    branches = [(partial(net.expert, j), student) for j, student in enumerate(net.students)]
    return graph.dispatch(into, expert, x, branches)


def _zeros(graph: Graph, net: MoIST, name: str) -> str:
    classes = net.member_EC.shape[1]
    return graph.add(lambda gate_BE: gate_BE[:, :1] * torch.zeros(classes), ("gate",), name)


def _margin(gate_BE: torch.Tensor) -> torch.Tensor:
    best_B2 = gate_BE.softmax(1).topk(2).values
    return best_B2[:, 0] - best_B2[:, 1]


def _second(gate_BE: torch.Tensor, deferred_B: torch.Tensor) -> torch.Tensor:
    return torch.where(deferred_B, gate_BE.topk(2).indices[:, 1], -1)


def _routed(gate_BE: torch.Tensor, deferred_B: torch.Tensor) -> torch.Tensor:
    return torch.where(deferred_B, gate_BE.argmax(1), -1)


def _where(chosen_B: torch.Tensor, a_BC: torch.Tensor, b_BC: torch.Tensor) -> torch.Tensor:
    return torch.where(chosen_B[:, None], a_BC, b_BC)
