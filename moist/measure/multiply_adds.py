"""Count operations per image with fvcore, part by part; a multiply-add is one."""

from __future__ import annotations

import math
import warnings

import torch
from torch import nn

from moist.errors import StageError
from moist.measure.accuracy import inference
from moist.nets.cascade import CascadeNet
from moist.nets.ensemble import EnsembleNet
from moist.nets.entry import Shape
from moist.nets.mixture import MoIST
from moist.nets.routers import ClusterSums, OracleRouter
from moist.nets.tracing import plain_encoder_layers
from moist.results.report import Cost

FREE = {
    "add", "add_", "clone", "div", "dropout", "dropout_", "expand", "flatten", "mean", "mul",
    "pad", "relu", "relu_", "max_pool2d", "softmax", "transpose", "unflatten", "view",
    "constant_pad_nd", "feature_dropout", "avg_pool2d", "exp", "log", "log_softmax", "logsumexp",
    "hardtanh_", "gelu", "sigmoid", "sigmoid_", "tanh", "silu", "silu_", "hardsigmoid",
    "hardsigmoid_", "hardswish", "hardswish_", "leaky_relu", "leaky_relu_", "elu", "elu_", "sub",
    "rsub", "pow", "sqrt", "rsqrt", "clamp", "clamp_min", "ne", "fill_", "zero_", "numel",
    "expand_as", "reshape_as", "linalg_vector_norm", "masked_fill", "cumsum", "cos", "sin",
}  # fmt: skip
"""Operators fvcore leaves uncounted: elementwise, or moving data, as in its own conventions."""

NOT_MACS = {"batch_norm", "layer_norm", "adaptive_avg_pool2d"}
"""Counted by fvcore, but no multiply-adds of a convolution or a linear layer."""


def count_flops(module: nn.Module, shape: tuple[int, ...]) -> dict[str, int]:
    """Count an image's operations with fvcore, by operator; a multiply-add is one.

    Raises StageError when the module has an operator whose cost fvcore does not know: an
    inexact count is worse than none.
    """
    was_training = module.training
    module.eval()
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    with plain_encoder_layers(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fvcore is built on torch.jit, which is deprecated
        from fvcore.nn import FlopCountAnalysis

        analysis = FlopCountAnalysis(module, torch.zeros(1, *shape, device=device))
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        analysis.set_op_handle("aten::scaled_dot_product_attention", _attention_flops)
        counts = {op: int(count) for op, count in analysis.by_operator().items()}
        unknown = {op.removeprefix("aten::") for op in analysis.unsupported_ops()} - FREE
    module.train(was_training)
    if unknown:
        raise StageError(f"can't count {type(module).__name__}: unknown cost of {sorted(unknown)}")
    return counts


def _attention_flops(inputs: list[object], outputs: list[object]) -> int:
    """Count Q K^T and its product with V: 2 B H T^2 D for queries of shape (B, H, T, D)."""
    from fvcore.nn.jit_handles import get_shape

    *batch, tokens, depth = get_shape(inputs[0])
    *_, keys, _ = get_shape(inputs[1])
    return 2 * math.prod(int(n) for n in batch) * int(tokens) * int(keys) * int(depth)


def cost(module: nn.Module, image_shape: Shape, deferral_rate: float = 0.0) -> Cost:
    """Measure the average cost of an image; all weights count.

    A mixture costs its router and one student. A cascade costs the second pass
    for the share of images that it defers.
    """
    first = _totals(_parts(module, image_shape))
    second = _totals(_second_parts(module, image_shape))
    tensors = module.state_dict().values()
    return Cost(
        flops=first[0] + deferral_rate * second[0],
        macs=first[1] + deferral_rate * second[1],
        params=sum(p.numel() for p in module.parameters()),
        bytes=sum(t.numel() * t.element_size() for t in tensors),
    )


Parts = list[tuple[nn.Module, tuple[int, ...]]]
"""The parts that an image runs through, and the shape of each one's input."""


def _parts(module: nn.Module, image_shape: Shape) -> Parts:
    """List the parts of a model. Those of a mixture are counted apart: a trace of the routed
    module would drop the router, because an expert chosen by an argmax does not depend on it
    in the graph."""
    if isinstance(module, CascadeNet):
        return _parts(module.first, image_shape)
    if isinstance(module, EnsembleNet):
        return [(student, image_shape) for student in module.students]
    if not isinstance(module, MoIST):
        return [(module, image_shape)]
    reads = _trunk_output(module, image_shape)
    trunk = [] if isinstance(module.trunk, nn.Identity) else [(module.trunk, image_shape)]
    free = isinstance(module.router, OracleRouter | ClusterSums)
    router = [] if free else [(module.router, reads)]
    return [*trunk, (module.students[0], reads), *router]


def _second_parts(module: nn.Module, image_shape: Shape) -> Parts:
    """List the parts that a deferred image runs through in addition."""
    if not isinstance(module, CascadeNet):
        return []
    if module.fallback is not None:
        return _parts(module.fallback, image_shape)
    assert isinstance(module.first, MoIST)
    return [(module.first.students[0], _trunk_output(module.first, image_shape))]


def _trunk_output(net: MoIST, image_shape: Shape) -> tuple[int, ...]:
    """Return the shape of the output of a mixture's trunk for one image."""
    device = next((p.device for p in net.parameters()), torch.device("cpu"))
    with inference(net, device, "float32"):
        return tuple(net.trunk(torch.zeros(1, *image_shape, device=device)).shape[1:])


def _totals(parts: Parts) -> tuple[int, int]:
    """Add up all that fvcore counts, and the multiply-adds of convolutions and linear layers."""
    counts = [count_flops(part, shape) for part, shape in parts]
    flops = sum(sum(count.values()) for count in counts)
    return flops, sum(n for count in counts for op, n in count.items() if op not in NOT_MACS)
