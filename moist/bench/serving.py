"""The time of classifying images: routed models against their parts, in torch and exported.

The networks are untrained and the images drawn: what is computed is the same as after training.

B images, C classes, E experts.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from moist.bench.rows import Row, row
from moist.config.overrides import build
from moist.data.augment import normalize
from moist.data.random import generator
from moist.env import Env
from moist.measure.latency import time_interleaved
from moist.nets.build import blank, module
from moist.nets.cascade import CascadeNet, threshold_for
from moist.nets.mixture import MoIST
from moist.nets.onnx_graph import check_installed, onnx_of, session
from moist.nets.torch_graph import program_of
from moist.stages.latency import BATCH_SIZES, synchronizer
from moist.store.artifacts import Dataset, Split
from moist.systems import architecture

MIXTURE_PARTS = "router and a student"
FORMS: dict[str, tuple[dict[str, Any], str]] = {
    "CNN router": ({"router": "cnn"}, MIXTURE_PARTS),
    "shared trunk": ({"router": "shared"}, MIXTURE_PARTS),
    "cascade": (
        {"system": "student", "cascade.fallback": "resnet20"},
        "student and ResNet-20",
    ),
}
"""What is timed: keys beside those given, and what the parts are of which it consists."""
SHAPE, CLASSES = (32, 32, 3), 10
SECONDS = 0.5
"""Of each round."""


@dataclass(frozen=True)
class Form:
    """An untrained model that uses all its students, images, and its parts without a choice."""

    name: str
    net: nn.Module
    data: Dataset
    parts: str

    def images(self, size: int) -> torch.Tensor:
        """Return uint8 images (B, H, W, C)."""
        return self.data.train.images_NHWC[:size]

    def pixels(self, size: int, device: torch.device) -> torch.Tensor:
        """Return the same images as torch's networks take them."""
        return normalize(self.images(size).to(device), self.data.mean, self.data.std)


class Parts(nn.Module):
    """The parts that images of a model pass, each run on the number of images that need it."""

    def __init__(self, net: nn.Module, deferred: int) -> None:
        super().__init__()
        self.net, self.deferred = net, deferred

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        """Return logits (B, C), to which every part contributes, so that no compiler drops one."""
        net = self.net
        if isinstance(net, CascadeNet):
            logits_BC: torch.Tensor = net.first(x_BCHW)
            if not self.deferred:
                return logits_BC
            assert net.fallback is not None
            second_BC: torch.Tensor = net.fallback(x_BCHW[: self.deferred])
            return logits_BC + 0 * second_BC.sum()
        assert isinstance(net, MoIST)
        x_BCHW = net.trunk(x_BCHW)
        return net.expert(0, x_BCHW) + 0 * net.route(x_BCHW).mean(1, keepdim=True)


def dispatch(values: Mapping[str, Any], env: Env, *, rounds: int) -> list[Row]:
    """Time routed models in torch against their parts without a choice, and image by image.

    `values` are config keys, which set the students' sizes.
    """
    rows = []
    for form in forms(values, env.device):
        for size in BATCH_SIZES:
            x_BCHW = form.pixels(size, env.device)
            name = f"{form.name}, batch {size}"
            calls: dict[str, Callable[[], object]] = {
                name: partial(form.net, x_BCHW),
                form.parts: partial(parts(form, size), x_BCHW),
            }
            if size > 1:
                calls["image by image"] = partial(one_by_one, form.net, x_BCHW)
            rows += timed("dispatch", name, calls, env, rounds)
    return rows


def serve(values: Mapping[str, Any], env: Env, *, rounds: int) -> list[Row]:
    """Time exported models against torch, those in onnxruntime also against their parts there.

    On the CPU, from uint8 images. `values` are config keys, which set the students' sizes. Raises
    ConfigError without onnx or onnxruntime.
    """
    check_installed("onnx", "onnxruntime")
    rows = []
    for form in forms(values, torch.device("cpu")):
        routed = session(onnx_of(form.net, form.data, {}))
        loaded = torch.export.load(io.BytesIO(program_of(form.net, form.data, {}))).module()
        for size in BATCH_SIZES:
            inputs = {"images": form.images(size).numpy()}
            apart = session(onnx_of(parts(form, size), form.data, {}))
            name, taught = f"exported {form.name}, batch {size}", "eager torch"
            exported: dict[str, Callable[[], object]] = {
                name: partial(routed.run, ["logits"], inputs),
                f"{form.parts}, exported": partial(apart.run, ["logits"], inputs),
            }
            for_torch = f"exported for torch {form.name}, batch {size}"
            in_torch: dict[str, Callable[[], object]] = {
                for_torch: partial(loaded, form.images(size)),
                taught: partial(eager, form, size),
            }
            # apart: the threads of each wait in a loop for a while, and would slow the other's
            ms = times([exported, in_torch], env, rounds)
            pairs = [(name, f"{form.parts}, exported"), (name, taught), (for_torch, taught)]
            rows += [row("serve", one, other, ms[one], ms[other]) for one, other in pairs]
    return rows


def forms(values: Mapping[str, Any], device: torch.device) -> Iterator[Form]:
    """Build a model of each form, with images that reach every student."""
    split = Split(
        torch.randint(256, (max(BATCH_SIZES), *SHAPE), generator=generator(0, "bench")).byte(),
        torch.zeros(max(BATCH_SIZES), dtype=torch.int64),
    )
    classes = tuple(map(str, range(CLASSES)))
    data = Dataset("drawn", classes, (0.5,) * 3, (0.25,) * 3, split, split, split)
    for name, (keys, consists) in FORMS.items():
        config = build({**values, **keys})
        assert isinstance(config.k, int)
        net = module(blank(architecture(config), data.image_shape, CLASSES, config.k), device)
        form = Form(name, net.eval(), data, consists)
        with torch.inference_mode():
            x_BCHW = form.pixels(len(split), device)
            if isinstance(net, MoIST):
                mean_E = net.route(net.trunk(x_BCHW)).mean(0)
                net.router.register_forward_hook(lambda _, args, gate_BE, m=mean_E: gate_BE - m)
            if isinstance(net, CascadeNet):
                certainty_B = net.first_pass(x_BCHW).certainty_B
                net.threshold = threshold_for(certainty_B, config.cascade.defer)
                # the most certain image is the one that is classified alone
                order_N = certainty_B.argsort(descending=True).cpu()
                split.images_NHWC.copy_(split.images_NHWC[order_N])
        yield form


def parts(form: Form, size: int) -> Parts:
    """Return a model's parts for so many images."""
    net, deferred = form.net, 0
    if isinstance(net, CascadeNet):
        device = next(net.parameters()).device
        with torch.inference_mode():
            deferred = int(net.answer(form.pixels(size, device)).deferred_B.sum())
    return Parts(net, deferred).eval()


def one_by_one(net: nn.Module, x_BCHW: torch.Tensor) -> None:
    """Classify images each by itself."""
    for one_1CHW in torch.split(x_BCHW, 1):
        net(one_1CHW)


def eager(form: Form, size: int) -> None:
    """Classify uint8 images in torch."""
    form.net(form.pixels(size, torch.device("cpu")))


def timed(
    bench: str, name: str, calls: Mapping[str, Callable[[], object]], env: Env, rounds: int
) -> list[Row]:
    """Time calls in turn; return a row of the named one against each of the others."""
    ms = times([calls], env, rounds)
    return [row(bench, name, other, ms[name], ms[other]) for other in calls if other != name]


def times(
    groups: Sequence[Mapping[str, Callable[[], object]]], env: Env, rounds: int
) -> dict[str, list[float]]:
    """Return the median ms of each call by round; the calls of a group are interleaved."""
    ms: dict[str, list[float]] = {name: [] for group in groups for name in group}
    with torch.inference_mode():
        for _ in range(rounds):
            for group in groups:
                found = time_interleaved(group, synchronizer(env), repeats=20, seconds=SECONDS)
                for name, timing in found.items():
                    ms[name].append(timing.median)
    return ms
