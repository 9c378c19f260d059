"""A model as a program of torch.export, which a program with torch but without moist can run."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr
from itertools import count
from operator import attrgetter
from typing import Any

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from moist.nets.graph import SAMPLE, Graph, Part, assemble
from moist.nets.tracing import plain_encoder_layers
from moist.store.artifacts import Dataset

ATEN = torch.ops.aten
ANY_NUMBER = {0: torch.export.Dim("batch", min=1)}
"""Of images."""


def program_of(net: nn.Module, data: Dataset, properties: Mapping[str, str]) -> bytes:
    """Return a module's `.pt2` file with these texts as extra files."""
    images_BHWC = data.train.images_NHWC[:SAMPLE]
    example = torch.zeros_like(images_BHWC)  # the file keeps it, and is to have no user's images
    with torch.no_grad(), plain_encoder_layers(), warnings.catch_warnings():
        # of weights in channels_last format; they are written whole
        warnings.filterwarnings("ignore", "No complete tensor found")
        graph = TorchGraph(images_BHWC)
        outputs = assemble(net, graph, data)
        program = _exported(Steps(graph, outputs), (example,), (ANY_NUMBER,))
        for name, tensor in program.state_dict.items():
            if isinstance(tensor, nn.Parameter):
                program.state_dict[name] = nn.Parameter(tensor.detach(), requires_grad=False)
        torch.export.save(program, written := io.BytesIO(), extra_files=dict(properties))
    return written.getvalue()


class TorchGraph(Graph):
    """The steps as modules, in which batch norm is part of the convolution before it."""

    def __init__(self, images_BHWC: torch.Tensor) -> None:
        super().__init__(images_BHWC)
        self.steps: list[tuple[nn.Module, tuple[str, ...], str]] = []

    def add_part(
        self,
        part: Part,
        samples: tuple[torch.Tensor, ...],
        inputs: tuple[str, ...],
        output: str,
    ) -> None:
        """Add a part."""
        self.steps.append((folded(part, samples), inputs, output))

    def add_branches(
        self, into: str, chosen: str, x: str, parts: Sequence[tuple[Part, torch.Tensor]]
    ) -> str:
        """Add a step for each part.

        It is not skipped without rows, where an operator takes 2 to 18 us (CPU): with torch.cond
        the export takes twice as long, and one image of three small students is no faster.
        """
        for j, (part, sample) in enumerate(parts):
            output = f"{into}_{self.count}.{j}"
            self.steps.append((Chosen(folded(part, (sample,)), j), (into, chosen, x), output))
            into = output
        return into


class Chosen(nn.Module):
    """A branch for the rows that have chosen its number; there may be none."""

    def __init__(self, branch: nn.Module, number: int) -> None:
        super().__init__()
        self.branch, self.number = branch, number

    def forward(
        self, into_BC: torch.Tensor, chosen_B: torch.Tensor, x: torch.Tensor
    ) -> torch.Tensor:
        """Replace the rows, each by what the branch computes of its row of `x`."""
        rows = (chosen_B == self.number).nonzero().squeeze(1)
        return into_BC.index_copy(0, rows, self.branch(x[rows]))


class Steps(nn.Module):
    """All steps of a graph, from images to the named outputs."""

    def __init__(self, graph: TorchGraph, outputs: Mapping[str, str]) -> None:
        super().__init__()
        self.names = [(inputs, output) for _, inputs, output in graph.steps]
        self.steps = nn.ModuleList(step for step, _, _ in graph.steps)
        self.outputs = outputs

    def forward(self, images_BHWC: torch.Tensor) -> dict[str, torch.Tensor]:
        values = {"images": images_BHWC}
        for step, (inputs, output) in zip(self.steps, self.names, strict=True):
            values[output] = step(*(values[name] for name in inputs))
        return {name: values[value] for name, value in self.outputs.items()}


def folded(part: Part, samples: tuple[torch.Tensor, ...]) -> nn.Module:
    """Replace each batch norm by a scale and a shift, of the convolution before it if it can be.

    torch.export can't trace batch norm of a number of images that is not known before it runs.
    """
    part.eval()
    if not any(isinstance(one, nn.modules.batchnorm._BatchNorm) for one in part.modules()):
        return part
    inputs = tuple(x[:SAMPLE].contiguous() for x in samples)
    traced = _exported(part, inputs, ((ANY_NUMBER,) * len(inputs),))
    module: Any = traced.module(check_guards=False)
    graph, numbers = module.graph, count()

    def value(node: Any) -> Any:
        return None if node is None else attrgetter(node.target)(module)

    def constant(tensor: torch.Tensor) -> Any:
        name = f"folded{next(numbers)}"
        module.register_buffer(name, tensor.detach())
        return graph.get_attr(name)

    for norm in graph.find_nodes(op="call_function", target=ATEN.batch_norm.default):
        before, *affine, mean, variance, _, _, epsilon, _ = norm.args
        statistics = (value(mean), value(variance), epsilon, *map(value, affine))
        with graph.inserting_before(norm):
            if before.target is ATEN.conv2d.default and len(before.users) == 1:
                x, weight, *others = before.args
                bias, *others = others or [None]
                merged = fuse_conv_bn_weights(value(weight), value(bias), *statistics)
                new = graph.call_function(
                    before.target, (x, *map(constant, merged), *others), before.kwargs
                )
            else:
                one_C = torch.ones_like(value(mean))
                scale_C, shift_C = fuse_conv_bn_weights(one_C[:, None], None, *statistics)
                shape = (-1, *(1,) * (norm.meta["val"].ndim - 2))
                scaled = graph.call_function(
                    ATEN.mul.Tensor, (before, constant(scale_C.reshape(shape)))
                )
                new = graph.call_function(
                    ATEN.add.Tensor, (scaled, constant(shift_C.reshape(shape)))
                )
        norm.replace_all_uses_with(new)
        graph.erase_node(norm)
    graph.eliminate_dead_code()
    return torch.fx.GraphModule(module, graph)  # copies what is read only


def _exported(
    module: nn.Module, inputs: tuple[torch.Tensor, ...], shapes: tuple[Any, ...]
) -> torch.export.ExportedProgram:
    with redirect_stderr(io.StringIO()):  # torch prints all of a graph that it can't trace
        return torch.export.export(module.eval(), inputs, dynamic_shapes=shapes, strict=False)
