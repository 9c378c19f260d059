"""A model as one ONNX graph, which a program without moist or torch can run."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from moist.errors import ConfigError
from moist.nets.graph import SAMPLE, Graph, Part, assemble
from moist.nets.int8 import quantized
from moist.nets.tracing import plain_encoder_layers
from moist.store.artifacts import Dataset

if TYPE_CHECKING:
    import onnx
    import onnxruntime

OPSET = 18
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
        graph = OnnxGraph(data.train.images_NHWC[chosen], int8)
        return graph.to_bytes(assemble(net, graph, data), properties)


def session(graph: bytes | str) -> onnxruntime.InferenceSession:
    """Load an exported graph in onnxruntime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


class OnnxGraph(Graph):
    """The steps as ONNX nodes; a student is the branch of an `If`."""

    def __init__(self, images_BHWC: torch.Tensor, int8: bool = False) -> None:
        super().__init__(images_BHWC)
        self.int8 = int8
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def add_part(
        self,
        part: Part,
        samples: tuple[torch.Tensor, ...],
        inputs: tuple[str, ...],
        output: str,
    ) -> None:
        """Add a part's nodes and weights."""
        traced = self._traced(part, samples, inputs, output)
        self.nodes += traced.node
        self.weights += traced.initializer

    def add_branches(
        self, into: str, chosen: str, x: str, parts: Sequence[tuple[Part, torch.Tensor]]
    ) -> str:
        """Add an `If` for each part, which is not taken without rows."""
        from onnx import TensorProto, helper

        name, node = f"dispatch{self.count}", helper.make_node
        some = [f"{name}_some{j}" for j in range(len(parts))]
        self.weights += [
            _integers(f"{name}_numbers", range(len(parts))),
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
            node("Split", [f"{name}_any"], some, axis=0, num_outputs=len(parts)),
        ]
        for j, (part, sample) in enumerate(parts):
            one = f"{name}_{j}"
            traced = self._traced(part, (sample,), (f"{one}_x",), f"{one}_y")
            taken = [
                node("Equal", [chosen, f"{one}_number"], [f"{one}_is"]),
                node("NonZero", [f"{one}_is"], [f"{one}_found"]),
                node("Reshape", [f"{one}_found", f"{name}_all"], [f"{one}_rows"]),
                node("Gather", [x, f"{one}_rows"], [f"{one}_x"]),
                *traced.node,
                node("Unsqueeze", [f"{one}_rows", f"{name}_last"], [f"{one}_places"]),
                node("ScatterND", [into, f"{one}_places", f"{one}_y"], [f"{one}_replaced"]),
            ]
            # weights in the branch: onnxruntime lays out no convolution whose weights are outside
            weights = [*traced.initializer, _integers(f"{one}_number", [j])]
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
            into = output
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


def _integers(name: str, values: Sequence[int]) -> onnx.TensorProto:
    from onnx import TensorProto, helper

    return helper.make_tensor(name, TensorProto.INT64, [len(values)], values)
