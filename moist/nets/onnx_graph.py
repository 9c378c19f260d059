"""A model as one ONNX graph, which a program without moist or torch can run.

Input `images` is uint8 (B, H, W, C), as Pillow gives pixels; normalization is inside. Output
`logits` is float32 (B, C); beside it `router_logits` (B, E) of a model that routes, and `deferred`
(B,) of a cascade. Each student is a branch that gets its own images only, and is not taken without
any: one file serves every batch size, and an image costs what it costs in torch.

B images, C classes, E experts.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from moist.errors import ConfigError
from moist.nets.cascade import CascadeNet
from moist.nets.int8 import quantized
from moist.nets.mixture import MoIST
from moist.nets.tracing import plain_encoder_layers
from moist.store.artifacts import Dataset

if TYPE_CHECKING:
    import onnx
    import onnxruntime

OPSET = 18
SAMPLE = 2
"""Training images to trace with."""
CALIBRATION = 512
"""Training images, at most, on which the ranges of activations are measured for int8."""


def check_installed(*packages: str) -> None:
    """Raise ConfigError, with what to install, for a package that can't be imported."""
    from importlib.util import find_spec

    if missing := [name for name in packages if find_spec(name) is None]:
        raise ConfigError(
            f"ONNX models need {' and '.join(missing)}, which can't be imported",
            "`pip install 'moist[onnx]'`",
        )


def onnx_of(
    net: nn.Module, data: Dataset, properties: dict[str, str], int8: bool = False
) -> bytes:
    """Return a module's ONNX file with these properties, a network or a whole model."""
    count = min(CALIBRATION, len(data.train)) if int8 else SAMPLE
    chosen = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(0))[:count]
    with torch.no_grad(), plain_encoder_layers():
        graph = Graph(data.train.images_NHWC[chosen], int8)
        return graph.to_bytes(assemble(net, graph, data), properties)


def session(graph: bytes | str) -> onnxruntime.InferenceSession:
    """Load an exported graph in onnxruntime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


Branch = tuple[Callable[[torch.Tensor], torch.Tensor], nn.Module]
"""What a part of the rows gets, and the network whose weights it reads."""


class Graph:
    """ONNX nodes in the order of computation, and every value of them on sample images."""

    def __init__(self, images_BHWC: torch.Tensor, int8: bool = False) -> None:
        self.values, self.int8 = {"images": images_BHWC}, int8
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
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
        part = self._traced(Part(compute, net), samples, inputs, output)
        self.nodes += part.node
        self.weights += part.initializer
        self.values[output] = compute(*samples)
        return output

    def dispatch(self, into: str, chosen: str, x: str, branches: Sequence[Branch]) -> str:
        """Replace rows of a value, each by what the branch with its number in `chosen` computes
        of the same row of `x`; -1 keeps a row. Returns the output.

        A branch that no row has is not taken.
        """
        from onnx import TensorProto, helper

        self.count += 1
        name, node = f"dispatch{self.count}", helper.make_node
        some = [f"{name}_some{j}" for j in range(len(branches))]
        self.weights += [
            _integers(f"{name}_numbers", range(len(branches))),
            _integers(f"{name}_first", [0]),
            _integers(f"{name}_last", [1]),
            _integers(f"{name}_all", [-1]),
        ]
        self.nodes += [
            node("Unsqueeze", [chosen, f"{name}_last"], [f"{name}_column"]),
            node("Equal", [f"{name}_column", f"{name}_numbers"], [f"{name}_is"]),
            node("Cast", [f"{name}_is"], [f"{name}_one"], to=TensorProto.INT32),
            node("ReduceMax", [f"{name}_one", f"{name}_first"], [f"{name}_most"], keepdims=0),
            node("Cast", [f"{name}_most"], [f"{name}_any"], to=TensorProto.BOOL),
            node("Split", [f"{name}_any"], some, axis=0, num_outputs=len(branches)),
        ]
        for j, (compute, net) in enumerate(branches):
            rows = (self.values[chosen] == j).nonzero().squeeze(1)
            sample = self.values[x][rows] if len(rows) >= SAMPLE else self.values[x]
            one = f"{name}_{j}"
            part = self._traced(Part(compute, net), (sample,), (f"{one}_x",), f"{one}_y")
            taken = [
                node("Equal", [chosen, f"{one}_number"], [f"{one}_is"]),
                node("NonZero", [f"{one}_is"], [f"{one}_found"]),
                node("Reshape", [f"{one}_found", f"{name}_all"], [f"{one}_rows"]),
                node("Gather", [x, f"{one}_rows"], [f"{one}_x"]),
                *part.node,
                node("Unsqueeze", [f"{one}_rows", f"{name}_last"], [f"{one}_places"]),
                node("ScatterND", [into, f"{one}_places", f"{one}_y"], [f"{one}_replaced"]),
            ]
            # weights in the branch: onnxruntime lays out no convolution whose weights are outside
            weights = [*part.initializer, _integers(f"{one}_number", [j])]
            kept = [node("Identity", [into], [f"{one}_kept"])]
            both = {
                f"{kind}_branch": helper.make_graph(
                    nodes,
                    f"{one}_{kind}",
                    [],
                    [helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, None)],
                    own,
                )
                for kind, nodes, own in (("then", taken, weights), ("else", kept, []))
            }
            output = f"{into}_{self.count}.{j}"
            self.nodes.append(node("If", [some[j]], [output], **both))
            result = self.values[into].clone()
            if len(rows):
                result[rows] = compute(self.values[x][rows])
            self.values[output], into = result, output
        return into

    def to_bytes(self, outputs: dict[str, str], properties: dict[str, str]) -> bytes:
        """Return the file; `outputs` has the value of each output's name."""
        import onnx
        from onnx import TensorProto, helper

        types = {
            torch.float32: TensorProto.FLOAT,
            torch.bool: TensorProto.BOOL,
            torch.uint8: TensorProto.UINT8,
        }

        def described(name: str, value: torch.Tensor) -> onnx.ValueInfoProto:
            shape = ["batch", *value.shape[1:]]
            return helper.make_tensor_value_info(name, types[value.dtype], shape)

        named = [helper.make_node("Identity", [value], [name]) for name, value in outputs.items()]
        graph = helper.make_graph(
            [*self.nodes, *named],
            "moist",
            [described("images", self.values["images"])],
            [described(name, self.values[value]) for name, value in outputs.items()],
            self.weights,
        )
        opset = helper.make_opsetid("", OPSET)
        built = helper.make_model(graph, opset_imports=[opset], ir_version=8)
        helper.set_model_props(built, properties)
        onnx.checker.check_model(built, full_check=True)
        data: bytes = built.SerializeToString()
        return data

    def _traced(
        self,
        part: Part,
        samples: tuple[torch.Tensor, ...],
        inputs: tuple[str, ...],
        output: str,
    ) -> onnx.GraphProto:
        """Trace a part: 0.3 s with the legacy exporter, which folds batch norm."""
        import onnx
        from onnx import compose

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it is the legacy one; of Python values
            torch.onnx.export(
                part.eval(),
                tuple(x[:SAMPLE].contiguous() for x in samples),
                written := io.BytesIO(),  # type: ignore[arg-type]
                dynamo=False,
                opset_version=OPSET,
                input_names=list(inputs),
                output_names=[output],
                dynamic_axes={name: {0: "batch"} for name in (*inputs, output)},
            )
        built = onnx.load_model_from_string(written.getvalue())
        if self.int8:
            built = quantized(built, dict(zip(inputs, samples, strict=True)))
        renamed = compose.add_prefix(
            built, f"{output}/", rename_inputs=False, rename_outputs=False
        )
        return renamed.graph


class Part(nn.Module):
    """A function that reads a network's weights, as a module."""

    def __init__(self, compute: Callable[..., torch.Tensor], net: nn.Module | None) -> None:
        super().__init__()
        self.compute, self.net = compute, net

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        """Return what the function computes."""
        return self.compute(*inputs)


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


def _integers(name: str, values: Sequence[int]) -> onnx.TensorProto:
    from onnx import TensorProto, helper

    return helper.make_tensor(name, TensorProto.INT64, [len(values)], values)


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
