"""Accuracy, cost and time of a model. N images, B a batch, C classes, E experts."""

from __future__ import annotations

import logging
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from moist.artifacts import Dataset, Split
from moist.augment import plain_batches
from moist.env import Env
from moist.errors import StageError
from moist.fit import autocast
from moist.mixture import MoIST
from moist.nets import Shape
from moist.opinions import Average, SecondOpinion
from moist.report import Cost, Timing
from moist.routers import OracleRouter

EVAL_BATCH = 512

FREE = {
    "add", "add_", "clone", "div", "dropout", "dropout_", "expand", "flatten", "mean", "mul",
    "pad", "relu", "relu_", "max_pool2d", "softmax", "transpose", "unflatten", "view",
    "constant_pad_nd", "feature_dropout", "avg_pool2d", "exp", "log", "log_softmax", "logsumexp",
    "hardtanh_",
}  # fmt: skip
"""Operators fvcore leaves uncounted: elementwise, or moving data, as in its own conventions."""

NOT_MACS = {"batch_norm", "layer_norm", "adaptive_avg_pool2d"}
"""Counted by fvcore, but no multiply-adds of a convolution or a linear layer."""


@contextmanager
def inference(module: nn.Module, device: torch.device, precision: str) -> Iterator[None]:
    """Evaluation mode, no gradients, and the run's arithmetic."""
    was_training = module.training
    module.eval()
    try:
        with torch.inference_mode(), autocast(device, precision):
            yield
    finally:
        module.train(was_training)


@dataclass(frozen=True)
class Answers:
    """What a model says of N images: class logits (N, C), and router logits (N, E) if it routes.

    Of a `SecondOpinion`: `logits_NC` is its first, and every image was given a second, too.
    """

    logits_NC: torch.Tensor
    gate_NE: torch.Tensor | None = None
    certainty_N: torch.Tensor | None = None
    second_NC: torch.Tensor | None = None

    def below(self, threshold: float) -> torch.Tensor:
        """Which images (N,) the first opinion is less certain of."""
        assert self.certainty_N is not None
        return self.certainty_N < threshold

    def settled(self, threshold: float) -> torch.Tensor:
        """Logits (N, C): the second opinion's below the threshold, else the first's."""
        assert self.second_NC is not None
        return torch.where(self.below(threshold)[:, None], self.second_NC, self.logits_NC)


def classify(env: Env, net: nn.Module, split: Split, data: Dataset, precision: str) -> Answers:
    """What `net` says of a split's images. An oracle is told the labels; nothing else is."""
    parts: list[Answers] = []
    with inference(net, env.device, precision):
        for batch in plain_batches(
            split, mean=data.mean, std=data.std, batch_size=EVAL_BATCH, device=env.device
        ):
            parts.append(answers(net, batch.images_BCHW, batch.labels_B))
    return Answers(*(_joined([getattr(part, f.name) for part in parts]) for f in fields(Answers)))


def _joined(column: list[Any]) -> Any:
    """What all batches say of one thing; None of what none says."""
    return None if column[0] is None else torch.cat(column)


def answers(
    net: nn.Module, images_BCHW: torch.Tensor, labels_B: torch.Tensor | None = None
) -> Answers:
    """What `net` says of one batch, on the CPU; only an oracle router reads the labels."""
    if isinstance(net, MoIST):
        return Answers(*(x.float().cpu() for x in net.routed(images_BCHW, labels_B)))
    if isinstance(net, SecondOpinion):
        first = net.doubted(images_BCHW)
        gate_BE = None if first.gate_BE is None else first.gate_BE.cpu()
        second_BC = net.second(*first.left).cpu()
        return Answers(first.logits_BC.cpu(), gate_BE, first.certainty_B.cpu(), second_BC)
    return Answers(net(images_BCHW).float().cpu())


def accuracy(logits_NC: torch.Tensor, labels_N: torch.Tensor) -> float:
    """Share of images whose class has the largest logit."""
    return float((logits_NC.argmax(1) == labels_N).double().mean())


def validation(
    env: Env, net: nn.Module, data: Dataset, precision: str
) -> Callable[[], dict[str, float]] | None:
    """What to call after each epoch: `val_accuracy`; None when there is no validation split."""
    if not len(data.val):
        return None

    def validate() -> dict[str, float]:
        said = classify(env, net, data.val, data, precision)
        return {"val_accuracy": accuracy(said.logits_NC, data.val.labels_N)}

    return validate


def calibration_error(probs_NC: torch.Tensor, labels_N: torch.Tensor, bins: int = 15) -> float:
    """Expected calibration error: mean |accuracy - confidence| over equal-width bins of the top
    probability, weighted by their images (Guo et al. 2017)."""
    confidence_N, predicted_N = probs_NC.max(1)
    hit_N = (predicted_N == labels_N).float()
    bin_N = (confidence_N * bins).long().clamp(0, bins - 1)
    gap = torch.zeros(bins, dtype=torch.float64).index_add_(
        0, bin_N, (hit_N - confidence_N).double()
    )
    return float(gap.abs().sum() / len(labels_N))


def negative_log_likelihood(logits_NC: torch.Tensor, labels_N: torch.Tensor) -> float:
    """Mean cross-entropy in nats."""
    return float(F.cross_entropy(logits_NC.double(), labels_N))


def class_means(values_N: torch.Tensor, group_N: torch.Tensor, groups: int) -> list[float]:
    """Mean of `values_N` in each group; 0 where a group has no image."""
    total = torch.zeros(groups, dtype=torch.float64).index_add_(0, group_N, values_N.double())
    return (total / torch.bincount(group_N, minlength=groups).clamp_min(1)).tolist()


def count_flops(module: nn.Module, shape: tuple[int, ...]) -> dict[str, int]:
    """fvcore's count for one image of such a shape, by operator; a multiply-add is one.

    Raises StageError when the module has an operator whose cost fvcore does not know: an
    inexact count is worse than none.
    """
    was_training = module.training
    module.eval()
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    with _plain_encoder_layers(), warnings.catch_warnings():
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


@contextmanager
def _plain_encoder_layers() -> Iterator[None]:
    """Trace transformer layers as the linear layers they are, not as one fused operator."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    log = logging.getLogger("fvcore")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)
        torch.backends.mha.set_fastpath_enabled(fast)


def _attention_flops(inputs: list[object], outputs: list[object]) -> int:
    """Q K^T and its product with V: 2 B H T^2 D for queries of shape (B, H, T, D)."""
    from fvcore.nn.jit_handles import get_shape

    *batch, tokens, depth = get_shape(inputs[0])
    *_, keys, _ = get_shape(inputs[1])
    return 2 * math.prod(int(n) for n in batch) * int(tokens) * int(keys) * int(depth)


def cost(module: nn.Module, image_shape: Shape, asked: float = 0.0) -> Cost:
    """What one image costs on average; all weights count.

    A mixture costs its router and one student. A second opinion costs for the share of images
    that is `asked` for one.
    """
    first = _totals(_parts(module, image_shape))
    second = _totals(_second_parts(module, image_shape))
    tensors = module.state_dict().values()
    return Cost(
        flops=first[0] + asked * second[0],
        macs=first[1] + asked * second[1],
        params=sum(p.numel() for p in module.parameters()),
        bytes=sum(t.numel() * t.element_size() for t in tensors),
    )


Parts = list[tuple[nn.Module, tuple[int, ...]]]
"""What an image runs through, and the shapes of what each is given."""


def _parts(module: nn.Module, image_shape: Shape) -> Parts:
    """The parts of a mixture are counted by themselves: a trace of the routed module would drop
    the router, because an expert picked by an argmax does not depend on it in the graph."""
    if isinstance(module, SecondOpinion):
        return _parts(module.first, image_shape)
    if isinstance(module, Average):
        return [(student, image_shape) for student in module.students]
    if not isinstance(module, MoIST):
        return [(module, image_shape)]
    seen = _seen(module, image_shape)
    trunk = [] if isinstance(module.trunk, nn.Identity) else [(module.trunk, image_shape)]
    router = [] if isinstance(module.router, OracleRouter) else [(module.router, seen)]
    return [*trunk, (module.students[0], seen), *router]


def _second_parts(module: nn.Module, image_shape: Shape) -> Parts:
    if not isinstance(module, SecondOpinion):
        return []
    if module.fallback is not None:
        return _parts(module.fallback, image_shape)
    assert isinstance(module.first, MoIST)
    return [(module.first.students[0], _seen(module.first, image_shape))]


def _seen(net: MoIST, image_shape: Shape) -> tuple[int, ...]:
    """The shape of what a mixture's trunk hands on of one image."""
    device = next((p.device for p in net.parameters()), torch.device("cpu"))
    with inference(net, device, "float32"):
        return tuple(net.trunk(torch.zeros(1, *image_shape, device=device)).shape[1:])


def _totals(parts: Parts) -> tuple[int, int]:
    """All that fvcore counts, and the multiply-adds of convolutions and linear layers."""
    counts = [count_flops(part, shape) for part, shape in parts]
    flops = sum(sum(count.values()) for count in counts)
    return flops, sum(n for count in counts for op, n in count.items() if op not in NOT_MACS)


def time_interleaved(
    calls: Mapping[str, Callable[[], object]],
    synchronize: Callable[[], None],
    *,
    repeats: int,
    seconds: float,
    warm_up: int = 20,
) -> dict[str, Timing]:
    """Time each call in turn, round by round, so that a drifting machine slows all alike.

    `repeats` rounds after `warm_up` untimed ones; past `seconds` it stops early, with at least
    10 rounds and 2 of warm-up. A call's time runs until the device has finished.
    """
    clock = time.perf_counter
    begin = clock()
    for done in range(warm_up):
        for call in calls.values():
            call()
        synchronize()
        if done >= 1 and clock() - begin > seconds / 4:
            break
    taken: dict[str, list[float]] = {name: [] for name in calls}
    begin = clock()
    for done in range(repeats):
        if done >= 10 and clock() - begin > seconds:
            break
        for name, call in calls.items():
            start = clock()
            call()
            synchronize()
            taken[name].append((clock() - start) * 1e3)
    return {name: summarize(times) for name, times in taken.items()}


def summarize(times: list[float]) -> Timing:
    """Median and 95th percentile of n calls."""
    return Timing(
        median=float(np.median(times)), p95=float(np.percentile(times, 95)), n=len(times)
    )
